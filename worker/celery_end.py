"""How Celery's loop in a worker process is ended, whoever started the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celery.worker import state

from worker.exits import Exit

if TYPE_CHECKING:
    from worker.process import WorkerProcess  # loads torch


def finish(process: WorkerProcess, *, leave: Callable[[], object]) -> None:
    """Take nothing new, and end Celery once what was begun is done.

    Args:
        process: whose jobs are meant.
        leave: ends the process at once: while it still loads there is nothing to finish.
    """
    if not hasattr(process, "engine"):
        leave()
        return
    process.drain()
    state.should_stop = Exit.DONE
