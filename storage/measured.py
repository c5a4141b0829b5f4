"""The part of the job store's contract that is about what was measured: tunings, self-tests, the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

SELF_TEST = "self_test"  # the fact that only self-tests have


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What somebody measured first, and for what.

    Attributes:
        facts: what it was measured for: a kind of worker, or of `SELF_TEST` also the job.
        found: a tuning, or a self-test's hashes.
    """

    facts: dict[str, Any]
    found: dict[str, Any]
    created_at: datetime


class Measurements(Protocol):
    """What workers have found out, and what `doctor` holds them against."""

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the tuning that is kept for workers of exactly these facts, None without one."""
        ...

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what was measured unless another worker was first; return the tuning that is kept."""
        ...

    def measured(self) -> list[Measured]:
        """Return all that is kept, the newest first: tunings and self-tests."""
        ...

    def forget_tunings(self) -> int:
        """Forget all tunings: the next worker of each kind measures anew; say how many there were.

        Self-tests stay: they are of the numerics that a tuning led to, and hold whichever comes next.
        """
        ...

    def clock(self) -> datetime:
        """Return the time on the database server's clock; of SQLite that of this machine."""
        ...
