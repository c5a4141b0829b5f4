"""What a supervisor and its worker process say to each other."""

from __future__ import annotations

import io
import json
import sys

import pytest

from storage.worker_options import WorkerOptions
from worker.orders import ChildOrder, parse_order, report


def test_an_order_survives_the_command_line() -> None:
    """What is written on the command line reads back the same, odd characters included."""
    order = ChildOrder(
        options=WorkerOptions(model="x=/a b/ü'\"", lanes=8), device="cuda", incarnation="ab12", name="x@höst"
    )
    command = order.command()
    assert command[:4] == [sys.executable, "-P", "-m", "worker.child"]
    assert parse_order(command[4]) == order


def test_a_report_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in an event, it stays on one line."""
    report("failed", message="two\nlines", exit_code=3)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"event": "failed", "message": "two\nlines", "exit_code": 3}


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_report_that_nobody_reads_is_no_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A supervisor that is gone does not stop its worker from ending in order."""

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stdout", Broken())
    report("ready")
