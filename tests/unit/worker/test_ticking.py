"""The tick does a little of everything, and never so much of one thing that the others have to wait."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest

from storage.errors import SchemaError
from storage.jobstore import JobStore
from storage.queue import JobQueue
from worker.ticking import SWEEP_EVERY, SWEEP_TICK, TICK, Ticker


@pytest.fixture
def jobs() -> Any:
    """A job store in which nothing is to be done."""
    store = create_autospec(JobStore, instance=True)
    store.workers.return_value = store.forget_workers.return_value = []
    store.sweep_cancelled.return_value = store.release_orphans.return_value = 0
    store.oldest_worker_version.return_value = "0.1.0"
    return store


@pytest.fixture
def too_old() -> Any:
    """What hears that this version is too old for the database."""
    return Mock()


@pytest.fixture
def ticker(jobs: Any, too_old: Any) -> Ticker:
    """A ticker of a worker that dispatches nothing; its thread does not run."""
    queue = create_autospec(JobQueue, instance=True)
    queue.model = "demo"
    return Ticker(jobs, [queue], None, lease=30.0, dispatches=lambda: False, too_old=too_old)


def tick(ticker: Ticker, times: int) -> list[float]:
    """Tick, and return the pauses that follow."""
    pauses = []
    for _ in range(times):
        pauses.append(ticker._tick())
        ticker._ticks += 1
    return pauses


def test_a_huge_sweep_is_done_a_moment_a_tick(ticker: Ticker, jobs: Any) -> None:
    """As long as there is more to sweep, every tick sweeps for a moment, and ticks come faster."""
    jobs.sweep_cancelled.side_effect = [5_000, 5_000, 0]
    assert tick(ticker, 3) == [SWEEP_TICK, SWEEP_TICK, TICK]
    assert [call.kwargs["seconds"] < math.inf for call in jobs.sweep_cancelled.call_args_list] == [True] * 3


def test_a_look_for_what_was_left_behind_is_not_for_every_tick(ticker: Ticker, jobs: Any) -> None:
    """Nothing is swept, freed or forgotten twice a second where there is nothing to do."""
    tick(ticker, 2 * SWEEP_EVERY)
    assert jobs.sweep_cancelled.call_count == jobs.release_orphans.call_count == 2
    assert jobs.forget_workers.call_count == 1


def test_an_upgrade_that_leaves_this_version_behind_is_noticed(
    ticker: Ticker, jobs: Any, too_old: Any
) -> None:
    """Every few seconds the database is asked which workers it still allows."""
    tick(ticker, SWEEP_EVERY)
    too_old.assert_not_called()
    jobs.oldest_worker_version.return_value = "99.0"
    tick(ticker, SWEEP_EVERY)
    (error,) = too_old.call_args.args
    assert isinstance(error, SchemaError)
    assert "the database asks for 99.0 or newer" in str(error)
