"""Fairness, with workers that only sleep: the real dispatcher and job store, in simulated time.

One submission of 20,000 jobs, and twenty of 50 that arrive 5 s apart; 8 workers of 8 jobs at once, each 2 s.
The yardstick is an ideal stride schedule: whenever a place is free, the submission with the lowest pass gets
it, with neither window nor ticks between. Then a stream of small submissions at 110 % of what the workers can
do.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import structlog
from report import arguments, median, show

from storage import dispatch
from storage.database import upgrade
from storage.dispatch import TICK, Dispatcher
from storage.parameters import JobParameters
from storage.records import Claim, Image
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore, base, claiming, dispatching, liveness, reading, submitting
from storage.stores import open_job_store
from tests.records import worker_record
from worker.introduction import LOOK_AHEAD, SAVING
from worker.ticking import FAST_TICK

WORKERS, PLACES, SECONDS = 8, 8, 2.0
SMALL, ARRIVAL = 50, 5.0
AHEAD = LOOK_AHEAD + SAVING  # jobs that a worker holds beyond those
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobParameters(prompt="a fox", seed=1, num_inference_steps=30, guidance_scale=7.5, width=512, height=512)


class Clock(datetime):
    """Simulated time, in place of `datetime` where the dispatcher asks it."""

    passed = 0.0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # noqa: ARG003 - datetime's signature; ours is another class
        """Return it."""
        return BEGAN + timedelta(seconds=cls.passed)


@dataclass
class Messages:
    """A queue of messages, as Redis keeps them."""

    waiting: deque[int] = field(default_factory=deque)

    def publish(self, jobs: Iterable[int]) -> None:
        """Append."""
        self.waiting.extend(jobs)

    def pending(self) -> set[int]:
        """Return what nobody has taken."""
        return set(self.waiting)


class Farm:
    """Workers that sleep, one after the other event in simulated time.

    Attributes:
        large: the submission that is there from the start.
        arrived, ended: seconds, by submission.
        done: jobs, by submission.
        late: jobs of the large one in the last fifth of the time.
    """

    def __init__(self, store: SqlJobStore, arrivals: list[float], large: int, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self._messages = Messages()
        self._dispatcher = Dispatcher(store, cast("Any", self._messages), "demo", clock=lambda: Clock.passed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._claims: dict[str, deque[Claim]] = {str(number): deque() for number in range(WORKERS)}
        self._working: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._worked = 0.0
        self.arrived: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self.late = 0
        for name in self._claims:
            store.add_worker(worker_record(name, lanes=2 * PLACES, concurrency=PLACES + AHEAD))
        self.large = self._arrive(large)
        self._at(0.0, self._tick)
        for moment in arrivals:
            self._at(moment, lambda: self._arrive(SMALL))

    def run(self) -> None:
        """Let the time pass."""
        while self._events and self._events[0][0] <= self._seconds:
            Clock.passed, _, happen = heapq.heappop(self._events)
            happen()
            self._take_messages()
            self._start_jobs()

    @property
    def busy(self) -> float:
        """Share of the lanes' time in which they worked."""
        return self._worked / (WORKERS * PLACES * self._seconds)

    @property
    def small(self) -> list[float]:
        """How long each small submission took that ended."""
        return [self.ended[name] - self.arrived[name] for name in self.ended if name != self.large]

    def _at(self, moment: float, happen: Callable[[], object]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), cast("Callable[[], None]", happen)))

    def _arrive(self, count: int) -> str:
        submission, _ = self._store.add_submission(model="demo", source="benchmark")
        self._store.add_jobs(submission.id, (JOB for _ in range(count)))
        self._store.open_submission(submission.id)
        self.arrived[submission.id], self._left[submission.id] = Clock.passed, count
        return submission.id

    def _tick(self) -> None:
        self._at(Clock.passed + (FAST_TICK if self._dispatcher.tick() else TICK), self._tick)

    def _take_messages(self) -> None:
        """Give each message to the worker that holds least: Redis answers who waits, and they all wait."""
        while self._messages.waiting:
            name = min(self._claims, key=self._held)
            if self._held(name) >= PLACES + AHEAD:
                return
            granted = self._store.claim(self._messages.waiting.popleft(), name, defaults={})
            if isinstance(granted, Claim):
                self._claims[name].append(granted)

    def _held(self, name: str) -> int:
        return len(self._claims[name]) + self._working[name]

    def _start_jobs(self) -> None:
        for name, waiting in self._claims.items():
            while waiting and self._working[name] < PLACES:
                self._working[name] += 1
                self._at(Clock.passed + SECONDS, partial(self._end, name, waiting.popleft()))

    def _end(self, name: str, claim: Claim) -> None:
        self._store.finish(claim, _image(claim))
        self._working[name] -= 1
        self._worked += SECONDS
        self.done[claim.submission] += 1
        self._left[claim.submission] -= 1
        self.late += claim.submission == self.large and Clock.passed > 0.8 * self._seconds
        if not self._left[claim.submission]:
            self.ended[claim.submission] = Clock.passed


def ideal(arrivals: list[float], large: int, seconds: float) -> list[float]:
    """Return how long each small submission takes in an ideal stride schedule."""
    left, passes, arrived = {"large": large}, {"large": 0.0}, {"large": 0.0}
    ended: dict[str, float] = {}
    running: Counter[str] = Counter()
    events = [(moment, 0, f"small {number}") for number, moment in enumerate(arrivals)]
    heapq.heapify(events)
    free, moment = WORKERS * PLACES, 0.0
    while True:
        ready = [name for name, count in left.items() if count]
        if free and ready:
            name = min(ready, key=lambda name: (passes[name], arrived[name]))
            passes[name] += 1
            left[name] -= 1
            running[name] += 1
            free -= 1
            heapq.heappush(events, (moment + SECONDS, 1, name))
            continue
        if not events or events[0][0] > seconds:
            return [ended[name] - arrived[name] for name in ended if name != "large"]
        moment, ends, name = heapq.heappop(events)
        if ends:
            free += 1
            running[name] -= 1
            if not left[name] and not running[name]:
                ended[name] = moment
            continue
        # As `open_submission` has it: in step with the one that is furthest behind.
        passes[name] = min(passes[other] for other, count in left.items() if count or running[other])
        arrived[name], left[name] = moment, SMALL


def _image(claim: Claim) -> Image:
    return Image(
        key=f"{claim.submission}/{claim.index}", file_sha256="", pixel_sha256="", bytes=0, format="png",
        seconds={}, numerics={},
    )  # fmt: skip


def simulate(arrivals: list[float], large: int, seconds: float) -> Farm:
    """Run a farm in a database of its own."""
    Clock.passed = 0.0
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-"))
        stack.enter_context(mock.patch.object(dispatch, "datetime", Clock))
        for module in (base, claiming, dispatching, liveness, reading, submitting):
            if hasattr(module, "now"):
                stack.enter_context(mock.patch.object(module, "now", Clock.now))
        settings = Settings(home=Path(folder))
        upgrade(settings)
        store = cast("SqlJobStore", open_job_store(settings))
        stack.callback(store.close)
        farm = Farm(store, arrivals, large, seconds)
        farm.run()
        return farm


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    large, small, seconds = (2_000, 4, 40.0) if options.quick else (20_000, 20, 160.0)
    arrivals = [ARRIVAL * (number + 1) for number in range(small)]
    calm = simulate(arrivals, large, seconds)
    best = median(ideal(arrivals, large, seconds))
    capacity = WORKERS * PLACES / SECONDS
    every = SMALL / (1.1 * capacity)
    flooded = simulate([every * number for number in range(1, int(seconds / every))], large, seconds)
    rest = capacity * seconds - SMALL * small
    found: list[tuple[str, float, str]] = [
        ("lanes busy", calm.busy, "0.95 or more"),
        ("small ones' median, s", median(calm.small), f"1.6 x {best:.2f} = {1.6 * best:.2f} or less"),
        ("small ones that ended", len(calm.small), str(small)),
        ("large one, of what the small ones leave", calm.done[calm.large] / rest, "about 1"),
        ("at 110 % of small ones: lanes busy", flooded.busy, "0.95 or more"),
        ("  the large one's jobs in all", flooded.done[flooded.large], "more than 0"),
        ("  and in the last fifth of the time", flooded.late, "more than 0"),
    ]
    rows = [{"what": what, "measured": value, "wanted": wanted} for what, value, wanted in found]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
