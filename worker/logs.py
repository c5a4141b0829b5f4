"""Logging of worker processes: `action=… job=… submission=…` lines on standard error."""

from __future__ import annotations

import logging
import os
import sys

import structlog


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
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR")),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
