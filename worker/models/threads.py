"""Keep one OpenMP team: that of the engine's thread.

Every thread that runs a parallel operation of torch gets an OpenMP team of its own for as long as it lives.
Once the teams have more threads than there are cores, libgomp lets idle ones sleep instead of spin, and each
of the hundreds of parallel regions of a forward pass pays for waking them. So what runs beside the engine's
thread either stays below torch's grain size (32,768 elements) or runs in a thread that ends.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_passing_thread(action: Callable[[], T]) -> T:
    """Run `action` in a thread that ends with it, and return or raise what it does."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="passing") as pool:
        return pool.submit(action).result()
