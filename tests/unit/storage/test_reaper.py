"""The reaper, on a clock under control."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.reaper import LOADING_LEASES, Reaper
from storage.records import WorkerState

LEASE = 30.0


class FakeStore:
    """Incarnations with beats, and whether the database is there."""

    def __init__(self) -> None:
        self.beats = {"w1": 1, "w2": 1}
        self.loading: set[str] = set()
        self.down = False
        self.expired: list[str] = []

    def workers(self, *, alive_only: bool) -> list[Any]:
        """Return who was not expired."""
        assert alive_only
        if self.down:
            raise UnreachableError("The database is down.")
        return [
            SimpleNamespace(
                incarnation=name,
                beat=beat,
                state=WorkerState.STARTING if name in self.loading else WorkerState.READY,
            )
            for name, beat in self.beats.items()
        ]

    def release_incarnation(self, incarnation: str, *, crashed: bool) -> int:
        """Expire one, which held two jobs."""
        assert crashed
        del self.beats[incarnation]
        self.expired.append(incarnation)
        return 2


@pytest.fixture
def store() -> FakeStore:
    """Two living incarnations."""
    return FakeStore()


@pytest.fixture
def reaper(store: FakeStore, clock: Any) -> Reaper:
    """A reaper that has looked once."""
    made = Reaper(cast("JobStore", store), lease=LEASE, clock=clock)
    assert made.tick() == 0
    return made


def pass_time(reaper: Reaper, clock: Any, seconds: float) -> int:
    """Tick every five seconds; return how many jobs were freed."""
    freed = 0
    for _ in range(int(seconds / 5)):
        clock.advance(5)
        freed += reaper.tick()
    return freed


def test_who_is_silent_for_the_lease_is_expired(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """One that beats lives on, one that does not is expired once, and its jobs are counted."""
    assert pass_time(reaper, clock, 25) == 0
    store.beats["w1"] += 1
    assert pass_time(reaper, clock, 5) == 2
    assert store.expired == ["w2"]
    assert pass_time(reaper, clock, 25) == 0
    assert pass_time(reaper, clock, 5) == 2
    assert store.expired == ["w2", "w1"]
    assert pass_time(reaper, clock, 60) == 0


def test_who_still_loads_has_more_time(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """It holds no jobs; expired while a slow disk keeps its heart from beating, it would never get ready."""
    store.loading = {"w1"}
    reaper.tick()
    assert pass_time(reaper, clock, LEASE) == 2
    assert store.expired == ["w2"]
    pass_time(reaper, clock, LEASE * (LOADING_LEASES - 1) - 5)
    assert store.expired == ["w2"]
    pass_time(reaper, clock, 5)
    assert store.expired == ["w2", "w1"]


def test_a_beat_that_starts_again_at_zero_is_a_beat(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """A worker that rewrote its row when it became ready is alive."""
    pass_time(reaper, clock, 25)
    store.beats = {"w1": 0, "w2": 0}
    assert pass_time(reaper, clock, 25) == 0


def test_a_newcomer_gets_a_whole_lease(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """Whoever is seen for the first time was not observed before."""
    pass_time(reaper, clock, 25)
    store.beats["w3"] = 7
    assert pass_time(reaper, clock, 20) == 4
    assert "w3" in store.beats


def test_an_outage_expires_nobody(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """While the database is down nobody can beat; afterwards everybody gets a whole lease."""
    pass_time(reaper, clock, 25)
    store.down = True
    clock.advance(5)
    with pytest.raises(UnreachableError):
        reaper.tick()
    store.down = False
    assert pass_time(reaper, clock, 25) == 0
    assert pass_time(reaper, clock, 10) == 4


def test_a_reaper_that_was_frozen_itself_expires_nobody(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """A machine that slept through the lease finds its workers as silent as itself."""
    pass_time(reaper, clock, 25)
    clock.advance(3600)
    assert reaper.tick() == 0
    assert pass_time(reaper, clock, 25) == 0
    assert store.expired == []


def test_who_has_just_loaded_has_a_whole_lease(reaper: Reaper, store: FakeStore, clock: Any) -> None:
    """Its state is a sign of life, even if its heart could not beat while it loaded."""
    store.loading = {"w1"}
    pass_time(reaper, clock, LEASE * 2)
    store.loading = set()
    pass_time(reaper, clock, LEASE - 5)
    assert store.expired == ["w2"]
