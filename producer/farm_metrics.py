"""What Prometheus hears of a whole farm: from the database, and by asking Redis and the picture store.

Workers have metrics of their own (`worker start --metrics-port`). Labels are models, states, workers' names.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from storage.errors import PromptmillError, UnreachableError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.queue import ping
from storage.records import JobStatus, SubmissionState, Worker, WorkerState
from storage.served import served_by
from storage.settings import Settings
from storage.stores import open_image_store, open_job_store
from storage.surveying import FarmView
from storage.version import promptmill_version

KEPT_FOR = 5.0  # seconds at least that what was seen is shown again
KEPT_TIMES = 10  # times as long as the look at the rows took: watching must not keep a database busy
KEPT_MOST = 60.0  # seconds
PATIENCE = 5.0  # seconds for all parts together; Prometheus gives up after ten
SILENT = "silent"  # the state of a worker that has not beaten for a lease, and that nobody has expired yet
WORKER_STATES = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING, SILENT)
PROBE = "probe"  # a key that no picture has


class FarmMetrics(Collector):
    """Collects them; a part that is down is said to be down, and tried again at the next look.

    Attributes:
        failures: why each part that is down is so, by its name.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._jobs: JobStore | None = None
        self._images: ImageStore | None = None
        self._seen: list[GaugeMetricFamily | InfoMetricFamily] = []
        self._fresh_until = -1.0
        self._probes = [
            _Probe("database", self._survey, clock),
            _Probe("redis", lambda: ping(self._settings), clock),
            _Probe("store", self._free_bytes, clock),
        ]
        self.failures: dict[str, PromptmillError] = {}

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """Yield what was seen; look again where that is old."""
        with self._lock:
            if not self._seen or self._clock() >= self._fresh_until:
                self._seen = list(self._look())
                database = self._probes[0]  # what waits for a part that is down costs nobody anything
                busy = 0.0 if database.part in self.failures else database.seconds
                self._fresh_until = self._clock() + min(KEPT_MOST, max(KEPT_FOR, KEPT_TIMES * busy))
            yield from self._seen

    def close(self) -> None:
        """Close what was opened."""
        if self._jobs is not None:
            self._jobs.close()

    def _look(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield InfoMetricFamily(
            "promptmill_build", "Of whoever looks.", value={"version": promptmill_version()}
        )
        self.failures.clear()
        answers: dict[str, Any] = {}
        up, seconds = (
            _family("up", "Whether a part answers: 1 or 0.", "part"),
            _family("probe_seconds", "What its answer took.", "part"),
        )
        deadline = time.monotonic() + PATIENCE
        for probe in self._probes:
            probe.start()
        for probe in self._probes:
            try:
                answers[probe.part] = probe.wait(deadline)
            except PromptmillError as error:
                self.failures[probe.part] = error
            up.add_metric([probe.part], probe.part not in self.failures)
            seconds.add_metric([probe.part], probe.seconds)
        yield up
        yield seconds
        yield _number("lease_seconds", "After which a silent worker's jobs are taken.", self._settings.lease)
        if (free := answers.get("store")) is not None:
            yield _number("store_free_bytes", "What pictures may still take of the disk.", free)
        if "database" in answers:
            yield from described(answers["database"], lease=self._settings.lease)

    def _survey(self) -> FarmView:
        self._jobs = self._jobs or open_job_store(self._settings)
        return self._jobs.survey()

    def _free_bytes(self) -> int | None:
        """Ask the store for a sign of life, and for its room where it has an end."""
        self._images = self._images or open_image_store(self._settings)
        if self._images.is_local:
            return self._images.free_bytes()
        self._images.find(PROBE)
        return None


class _Probe:
    """Asks one part in a thread of its own: one that hangs holds up neither the others nor Prometheus.

    Attributes:
        part: its name.
        seconds: what its last answer took, or how long none has come.
    """

    def __init__(self, part: str, ask: Callable[[], Any], clock: Callable[[], float]) -> None:
        self.part, self._ask, self._clock = part, ask, clock
        self._thread: threading.Thread | None = None
        self._answer: Any = None
        self._fault: Exception | None = None
        self.seconds = 0.0

    def start(self) -> None:
        """Ask, unless it still owes the last answer: what hangs is not asked by more and more threads."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self.part, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        began = self._clock()
        self._answer = self._fault = None
        try:
            self._answer = self._ask()
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            self._fault = error
        self.seconds = self._clock() - began

    def wait(self, deadline: float) -> Any:
        """Return its answer.

        Raises:
            UnreachableError: when there is none by the deadline (monotonic seconds).
        """
        assert self._thread is not None  # noqa: S101  (it was started)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.seconds = PATIENCE
            raise UnreachableError(f"The {self.part} has not answered within {PATIENCE:g} s.")
        if self._fault is not None:
            raise self._fault
        return self._answer


def described(view: FarmView, *, lease: float) -> Iterator[GaugeMetricFamily]:
    """Yield the families of one look at the rows; models of which nothing is known any more have none."""
    models = sorted(
        {model for model, _ in (*view.jobs, *view.submissions)}
        | {served.name for worker in view.workers for served in served_by(worker)}
    )
    jobs = _family("jobs", "Of complete submissions.", "model", "status")
    oldest = _family(
        "oldest_waiting_seconds", "Age of the oldest open submission with jobs that wait.", "model"
    )
    submissions = _family("submissions", "By what may happen to their jobs.", "model", "state")
    for model in models:
        for status in JobStatus:
            jobs.add_metric([model, status], view.jobs.get((model, status), 0))
        for state in SubmissionState:
            submissions.add_metric([model, state], view.submissions.get((model, state), 0))
        since = view.oldest.get(model)
        oldest.add_metric([model], 0.0 if since is None else max(0.0, _age(since, view)))
    yield from (jobs, oldest, submissions)
    yield from _of_workers(view, models, lease=lease)


def _of_workers(view: FarmView, models: Iterable[str], *, lease: float) -> Iterator[GaugeMetricFamily]:
    states: Counter[tuple[str, str]] = Counter()
    lanes: Counter[tuple[str, str]] = Counter()
    used: Counter[tuple[str, str]] = Counter()
    ages: dict[str, float] = {}
    for worker in view.workers:
        state = _state(worker, view, lease=lease)
        states.update((served.name, state) for served in served_by(worker) if not served.problem)
        lanes[worker.name, worker.model] += worker.lanes
        used[worker.name, worker.model] += worker.lanes_used
        ages[worker.name] = max(_age(worker.beat_at, view), ages.get(worker.name, 0.0), key=abs)
    workers = _family("workers", "That serve a model: one of several counts for each.", "model", "state")
    for model in models:
        for state in WORKER_STATES:
            workers.add_metric([model, state], states[model, state])
    beat = _family(
        "worker_beat_age_seconds", "The database's clock less a worker's, at its last beat.", "worker"
    )
    for name, age in ages.items():
        beat.add_metric([name], age)
    yield from (workers, beat)
    for name, words, numbers in (
        ("worker_lanes", "R of a worker's processes.", lanes),
        ("worker_lanes_in_use", "Lanes of jobs, at the last beat.", used),
    ):
        family = _family(name, words, "worker", "model")
        for labels, number in numbers.items():
            family.add_metric(labels, number)
        yield family


def _state(worker: Worker, view: FarmView, *, lease: float) -> str:
    return SILENT if _age(worker.beat_at, view) >= lease else str(worker.state)


def _age(moment: datetime, view: FarmView) -> float:
    return (view.clock - moment).total_seconds()


def _family(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"promptmill_{name}", words, labels=labels)


def _number(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"promptmill_{name}", words, value=value)
