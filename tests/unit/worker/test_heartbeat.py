"""The heartbeat: what it says, what it hears, and when it stops."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import cast

import pytest

from storage.errors import StaleWorkerError, UnreachableError
from storage.jobstore import JobStore
from storage.records import Heard
from worker import heartbeat
from worker.heartbeat import Heartbeat

PATIENCE = 10.0


class FakeStore:
    """Answers beats with what it was told, or raises it."""

    def __init__(self) -> None:
        self.ours: set[int] = set()
        self.drain_timeout: float | None = None
        self.lanes: list[int] = []
        self.errors: list[Exception] = []
        self.beats: list[dict[int, float]] = []
        self.enough = threading.Event()

    def heartbeat(self, incarnation: str, progress: Mapping[int, float], *, lanes_used: int) -> Heard:
        """Count the beat."""
        assert incarnation == "w1"
        if self.errors:
            raise self.errors.pop(0)
        self.beats.append(dict(progress))
        if len(self.beats) >= 2:
            self.enough.set()
        self.lanes.append(lanes_used)
        return Heard(jobs=self.ours, drain_timeout=self.drain_timeout)


class Setup:
    """A heartbeat with a fake store, and what it was told to drop."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.held: dict[int, float] = {}
        self.dropped: list[int] = []
        self.strays: list[int] = []
        self.drains: list[float] = []
        self.stale = threading.Event()
        self.heart = Heartbeat(
            cast("JobStore", self.store),
            "w1",
            progress=lambda: self.held,
            drop=self.dropped.append,
            stray=self.strays.append,
            lanes_used=lambda: 6,
            drain=self.drains.append,
            stale=self.on_stale,
        )

    def on_stale(self, _error: StaleWorkerError) -> None:
        """End as a worker process does: it stops its heart from the heart's own thread."""
        self.heart.stop()
        self.stale.set()


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A heart that beats fast."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.001)
    return Setup()


def test_a_beat_tells_progress_and_drops_what_is_no_longer_ours(setup: Setup) -> None:
    """What is missing in the answer was cancelled or taken over."""
    setup.held = {1: 0.5, 2: 0.25}
    setup.store.ours = {2, 3}
    setup.heart.beat()
    assert setup.store.beats == [{1: 0.5, 2: 0.25}]
    assert setup.dropped == [1]


def test_what_was_claimed_during_a_beat_is_not_dropped(setup: Setup) -> None:
    """A job that was not yet held when the question was asked cannot be in the answer."""
    original = setup.store.heartbeat

    def claim_meanwhile(incarnation: str, progress: Mapping[int, float], *, lanes_used: int) -> Heard:
        setup.held[5] = 0.0
        return original(incarnation, progress, lanes_used=lanes_used)

    setup.store.heartbeat = claim_meanwhile  # type: ignore[method-assign]
    setup.heart.beat()
    assert setup.dropped == []


def test_what_is_ours_for_long_and_held_by_nobody_is_a_stray(setup: Setup) -> None:
    """A job whose claim's reply was lost is found; one that is only just being claimed is left alone."""
    setup.store.ours = {1, 2}
    for _ in range(heartbeat.STRAY_AFTER - 1):
        setup.heart.beat()
    assert setup.strays == []
    setup.held = {2: 0.0}
    setup.heart.beat()
    assert setup.strays == [1]


@pytest.mark.parametrize("error", [UnreachableError("down"), RuntimeError("a mistake of ours")])
def test_no_error_silences_the_heart(setup: Setup, error: Exception) -> None:
    """An outage, or whatever else goes wrong, is followed by another beat."""
    setup.store.errors = [error, error]
    setup.heart.start()
    assert setup.store.enough.wait(PATIENCE)
    setup.heart.stop()
    count = len(setup.store.beats)
    threading.Event().wait(0.01)
    assert len(setup.store.beats) == count


def test_a_process_that_was_declared_dead_hears_it_and_can_end(setup: Setup) -> None:
    """The heart stops for good, and whoever is told may stop it once more from there."""
    setup.store.errors = [StaleWorkerError("expired")]
    setup.heart.start()
    assert setup.stale.wait(PATIENCE)
    assert setup.store.beats == []


def test_a_heart_that_never_beat_can_be_stopped(setup: Setup) -> None:
    """A process that fails before its first beat ends like any other."""
    setup.heart.stop()
    setup.heart.stop()


def test_a_request_to_drain_is_heard_once(setup: Setup) -> None:
    """It stands in every answer from then on, and may be changed."""
    setup.heart.beat()
    assert setup.drains == []
    setup.store.drain_timeout = 60.0
    setup.heart.beat()
    setup.heart.beat()
    assert setup.drains == [60.0]
    setup.store.drain_timeout = 0.0
    setup.heart.beat()
    assert setup.drains == [60.0, 0.0]
    assert setup.store.lanes == [6, 6, 6, 6]
