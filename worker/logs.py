"""Logging of worker processes: `action=… job=… submission=…` lines on standard error."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class Lossy:
    """A stream that loses lines where its file cannot take them: a full disk must not end whoever logs.

    A heart that stopped over a line about the full disk would never beat again when there is room.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with suppress(OSError):
            self._stream.flush()


def in_one_line(record: logging.LogRecord) -> bool:
    """Let Celery tell without a traceback that Redis was away when it wanted to acknowledge a message.

    Nothing is lost by it: if the message comes again, its row says that there is nothing to do.
    """
    if str(record.msg).startswith("Couldn't ack"):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
    return True


def configure_logs() -> None:
    """Send structlog's and the libraries' lines to standard error; PROMPTMILL_LOG_LEVEL sets the level."""
    level = logging.getLevelNamesMapping().get(
        os.environ.get("PROMPTMILL_LOG_LEVEL", "INFO").upper(), logging.INFO
    )
    logging.basicConfig(
        level=max(level, logging.WARNING),
        stream=sys.stderr,
        format="%(asctime)s [%(levelname)s] %(name)s: %(message)s",
    )
    logging.getLogger("celery.worker.request").addFilter(in_one_line)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR")),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
