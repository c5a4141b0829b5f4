"""What a worker says must not be what ends it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import redis
import structlog
from kombu import Message

from worker.logs import configure_logs


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, _text: str) -> int:
        """Fail as the system does."""
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads log what fails them: one that died of it would be missing when the disk has room again."""
    monkeypatch.setattr("sys.stderr", Full())
    configure_logs()
    structlog.get_logger().warning("heartbeat failed, trying again", action="heartbeat")


def test_lines_that_can_be_written_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to standard error, with their facts."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logs()
    structlog.get_logger().warning("worker expired", jobs=3)
    assert "jobs=3" in stream.getvalue()


def test_a_message_that_cannot_be_acknowledged_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Redis is away now and then, and the rows know what is done: no traceback, no alarm."""

    def away(*_: object, **__: object) -> None:
        raise redis.ConnectionError("Connection refused")

    configure_logs()
    message = Message(channel=SimpleNamespace(basic_ack=away, no_ack_consumers=None), delivery_tag="tag")
    message.ack_log_error(logging.getLogger("celery.worker.request"), (redis.ConnectionError,))
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "ConnectionError" in record.getMessage()


SCRIPT = """
import logging, structlog
from worker.logs import configure_logs
configure_logs()
log = structlog.get_logger()
with structlog.contextvars.bound_contextvars(job="abcd2345:7", submission="abcd2345"):
    log.info("rendered", action="finish")
    logging.getLogger("celery.worker").warning("Couldn't %s", "ack")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", action="fail", what={object})
    logging.getLogger("elsewhere").exception("theirs")
"""


def logged(**environment: str) -> list[str]:
    """Log some lines in a process of its own, and return them."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1", **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stderr.splitlines()


def test_as_json_each_line_is_one_object_libraries_lines_too() -> None:
    """With job and submission wherever they are known, and tracebacks inside of the object."""
    ours, theirs, failed, elsewhere = map(json.loads, logged(PROMPTMILL_LOG_FORMAT="json"))
    about = {"job": "abcd2345:7", "submission": "abcd2345"}
    assert {**ours, "timestamp": ""} == {
        "event": "rendered", "action": "finish", "level": "info", "timestamp": "", **about,
    }  # fmt: skip
    assert {**theirs, "timestamp": ""} == {
        "event": "Couldn't ack", "level": "warning", "logger": "celery.worker", "timestamp": "", **about,
    }  # fmt: skip
    assert "ZeroDivisionError" in failed["exception"]
    assert "object" in failed["what"]
    assert "ZeroDivisionError" in elsewhere["exception"]
    assert "job" not in elsewhere


def test_for_people_libraries_lines_look_like_ours() -> None:
    """Whatever the setting says that is not json."""
    first, second, *_ = logged(PROMPTMILL_LOG_FORMAT="")
    for line, words in ((first, "rendered"), (second, "Couldn't ack")):
        assert words in line
        assert "job=abcd2345:7" in line
