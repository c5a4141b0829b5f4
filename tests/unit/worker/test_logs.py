"""What a worker says must not be what ends it."""

from __future__ import annotations

import errno
import io
import logging
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
