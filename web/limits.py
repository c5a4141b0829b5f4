"""How much one caller gets, a bucket of requests for each address, and how many may be in at a time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from web.problems import RefusedError

MAX_CALLERS = 10_000  # addresses remembered; the one that was silent longest is forgotten
COME_BACK = 60  # seconds after which somebody who found no place may try again


class RateLimit:
    """A token bucket for each caller.

    Args:
        rate: requests/s in the long run.
        burst: requests at once.
        clock: seconds, monotonic.
    """

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, caller: str) -> float:
        """Return 0 where a caller has a request left, or the seconds after which there will be one."""
        left, _ = self._filled(caller)
        return 0.0 if left >= 1 else (1 - left) / self._rate

    def _filled(self, caller: str) -> tuple[float, float]:
        now = self._clock()
        left, since = self._callers.get(caller, (float(self._burst), now))
        return min(float(self._burst), left + (now - since) * self._rate), now

    def wait(self, caller: str) -> float:
        """Take one request of a caller; return 0, or the seconds after which there will be one."""
        left, now = self._filled(caller)
        self._callers.pop(caller, None)
        taken = left >= 1
        self._callers[caller] = (left - 1 if taken else left, now)
        if len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._rate


class Places:
    """So many requests may stay at a time.

    Args:
        most: how many.
        refusal: what is said to whoever comes then.
    """

    def __init__(self, most: int, refusal: str) -> None:
        self._left = most
        self._refusal = refusal

    @property
    def are_taken(self) -> bool:
        """Whether nobody else may stay."""
        return self._left <= 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place meanwhile.

        Raises:
            RefusedError: when all are taken.
        """
        if self.are_taken:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, self._refusal, headers={"retry-after": str(COME_BACK)}
            )
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1
