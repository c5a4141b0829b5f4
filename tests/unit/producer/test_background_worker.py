"""The pipes between render and the worker process that it starts."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from producer import background_worker
from producer.background_worker import BackgroundWorker, check_worker_extra
from storage.errors import ModelLoadError, PromptmillError
from storage.settings import Settings
from storage.worker_options import WorkerOptions


def start(code: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> BackgroundWorker:
    """Start a process that runs `code` in the place of a supervisor."""
    monkeypatch.setattr(WorkerOptions, "command", lambda _self: [sys.executable, "-c", code])
    return BackgroundWorker(WorkerOptions(model="demo=/x", parent_pipe=True), settings)


def until_raised(worker: BackgroundWorker) -> PromptmillError:
    """Check until the worker's end is reported."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            worker.check()
        except PromptmillError as error:
            return error
        time.sleep(0.02)
    pytest.fail("nothing was reported")


def is_running(pid: int) -> bool:
    """Whether a process of this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_closing_the_pipe_ends_the_worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that reads its standard input to the end stops with us."""
    worker = start("import sys; sys.stdin.read()", settings, monkeypatch)
    worker.check()
    worker.stop()
    assert not is_running(worker.pid)
    worker.stop()  # twice is fine


def test_reported_failure_becomes_our_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Message and exit code come through, whatever else the worker prints."""
    code = """if True:
        import sys
        print("noise")
        print('{"event": "failed", "message": "Model x has no unet.", "exit_code": 5}', flush=True)
        sys.stdin.read()
    """
    worker = start(code, settings, monkeypatch)
    error = until_raised(worker)
    worker.stop()
    assert isinstance(error, ModelLoadError)
    assert str(error) == "Model x has no unet."


def test_silent_death_names_code_and_log(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that just ends leaves its last words and the place of its log."""
    worker = start("raise SystemExit('out of cheese')", settings, monkeypatch)
    error = until_raised(worker)
    worker.stop()
    assert "exit code 1 (out of cheese)" in str(error)
    assert str(worker.log) in str(error)


def test_worker_that_will_not_stop_is_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process stays, however stubborn."""
    monkeypatch.setattr(background_worker, "STOP_PATIENCE", 0.2)
    monkeypatch.setattr(background_worker, "KILL_PATIENCE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    worker = start(code, settings, monkeypatch)
    worker.stop()
    assert not is_running(worker.pid)


def test_missing_extra_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare install says what rendering needs."""
    monkeypatch.setattr(background_worker, "find_spec", lambda _name: None)
    with pytest.raises(ModelLoadError, match=r"pip install 'promptmill\[worker\]'"):
        check_worker_extra()


def test_worker_start_becomes_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked options are handed over, and the process is replaced."""
    from click.testing import CliRunner  # noqa: PLC0415  (only this test needs it)

    from producer.cli import cli  # noqa: PLC0415
    from storage.worker_options import parse_options  # noqa: PLC0415

    calls: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda path, args: calls.append((path, args)))
    arguments = [
        "worker",
        "start",
        "--model",
        "demo",
        "--devices",
        "cpu",
        "--lanes",
        "4",
        "--drain-timeout",
        "9",
    ]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.stderr
    ((path, args),) = calls
    options = parse_options(args[-1])
    assert path == sys.executable
    assert options.model.startswith("demo=/")
    assert (options.devices, options.lanes, options.drain_timeout, options.parent_pipe) == (
        "cpu",
        4,
        9.0,
        False,
    )
