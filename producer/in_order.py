"""Do something slow for each item, several at a time where that is faster, and yield results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # a store far away answers in milliseconds, and many at once
AHEAD = 16  # results that wait for their turn, each as large as a picture
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, local: bool
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what the function made of it.

    The first error is raised in its item's turn, and nothing is begun after it.

    Args:
        function: the slow thing.
        items: what to do it for.
        local: whether it only waits for disks of this machine; then it is done for one after the other, since
            threads would take longer to wait for each other than for a disk.
    """
    if local:
        for item in items:
            yield item, function(item)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= AHEAD:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)
