"""One function over much work, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from storage.devices import usable_cores
from training.errors import TrainingError

T = TypeVar("T")


def in_parallel(
    function: Callable[..., T], work: Sequence[tuple[Any, ...]], *, chunksize: int = 1
) -> Iterator[T]:
    """Yield `function(*arguments)` for all of `work`, in order, from as many processes as there are cores.

    Args:
        function: is pickled.
        work: the arguments of each call.
        chunksize: calls in one piece of a process' work.

    Raises:
        TrainingError: when a process was killed, as by a machine that has too little memory.
    """
    processes = max(1, min(usable_cores(), len(work) // chunksize))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawned, initializer=_follow) as pool:
        try:
            yield from pool.map(function, *zip(*work, strict=True), chunksize=chunksize)
        except BrokenProcessPool as error:
            raise TrainingError(
                f"A process ended before its work was done ({error}); start again."
            ) from error


def _follow() -> None:
    """Leave Ctrl-C to the parent, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
