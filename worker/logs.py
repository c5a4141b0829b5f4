"""Logging of worker processes: `action=… job=… submission=…` lines on standard error, for people or as JSON.

Our own lines come from structlog, those of Celery and other libraries from `logging`; both come out alike.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

LOG_FORMAT, LOG_LEVEL = "PROMPTMILL_LOG_FORMAT", "PROMPTMILL_LOG_LEVEL"


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
    """Send all lines to standard error, as PROMPTMILL_LOG_FORMAT (console, json) and _LEVEL say."""
    level = logging.getLevelNamesMapping().get(os.environ.get(LOG_LEVEL, "INFO").upper(), logging.INFO)
    stream = cast("TextIO", Lossy(sys.stderr))
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = _renderer()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
    logging.getLogger("celery.worker.request").addFilter(in_one_line)
    structlog.configure(
        processors=[*before, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def _renderer() -> Any:
    if os.environ.get(LOG_FORMAT, "").lower() == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
