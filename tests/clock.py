"""Time that passes when a test says so."""

from __future__ import annotations


class FakeClock:
    """A monotonic clock under the test's control."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Say what time it is."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
