"""What a supervisor is told on its command line."""

from __future__ import annotations

import sys

import pytest

from storage.errors import BadInputError
from storage.worker_options import WorkerOptions, check_devices, check_lanes, parse_options


def test_options_survive_the_command_line() -> None:
    """What is written on the command line reads back the same, odd characters included."""
    options = WorkerOptions(
        model="x=/a b/ü'\"", devices="0,1", dtype="float16", lanes=8, name="n", parent_pipe=True
    )
    command = options.command()
    assert command[:5] == [sys.executable, "-P", "-m", "worker", "supervise"]
    assert parse_options(command[5]) == options


@pytest.mark.parametrize("text", ["auto", "cpu", "mps", "all", "0", "0,1,15"])
def test_devices_that_can_be_asked_for(text: str) -> None:
    """Words and GPU numbers pass."""
    assert check_devices(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "0,", "-1", "0, 1", "cuda:0", "٣", "0000"])
def test_devices_that_cannot_be(text: str) -> None:
    """Anything else is refused with the choices."""
    with pytest.raises(BadInputError, match="choose auto"):
        check_devices(text)


def test_lanes_are_auto_or_a_number() -> None:
    """`auto` leaves the choice to the worker; a number has limits."""
    assert check_lanes("auto") is None
    assert (check_lanes("1"), check_lanes("256")) == (1, 256)
    for text in ("0", "257", "-1", "1.5", "many", ""):
        with pytest.raises(BadInputError, match="1 to 256"):
            check_lanes(text)
