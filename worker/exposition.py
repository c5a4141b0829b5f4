"""How a supervisor shows Prometheus what it and its worker processes have counted.

The processes are asked down their pipes when somebody looks: one that is killed leaves nothing behind, and
where nobody looks nobody pays. A process that was started again counts from 0, as Prometheus expects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from worker.metrics import SUPERVISOR

ANSWER_TIMEOUT = (
    2.0  # seconds; a process that is frozen, or holds Python's lock for longer, has said nothing new
)

ASK_AGAIN = 10.0  # seconds after a question without an answer, twice as long after each: a pipe gets full
ANSWERS = "promptmill_process_answers"

Families = list[Any]  # of JSON: [name, help, type, [[sample, labels, value], …]]


def snapshot(registry: CollectorRegistry) -> Families:
    """Return what a registry has, as JSON can carry it."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [[sample.name, sample.labels, sample.value] for sample in metric.samples],
        ]
        for metric in registry.collect()
    ]


class Counted:
    """What one worker process has counted, as it said when it was asked last.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._unanswered = 0  # questions since the last answer
        self._again_at = 0.0
        self._fresh = False
        self._families: Families = []

    def ask(self, send: Callable[[], None]) -> None:
        """Ask with `send`, unless an answer is due already: a frozen process must not fill its pipe."""
        with self._changed:
            now = self._clock()
            if self._unanswered and now < self._again_at:
                return
            self._again_at = now + ASK_AGAIN * 2.0 ** min(self._unanswered, 16)
            self._unanswered += 1
            self._fresh = False
        send()

    def hear(self, families: Families) -> None:
        """Take the answer; an empty one says that the process could not look."""
        with self._changed:
            self._unanswered, self._fresh = 0, bool(families)
            self._families = families or self._families
            self._changed.notify_all()

    def forget(self) -> None:
        """Begin anew: the process has ended."""
        with self._changed:
            self._unanswered, self._fresh, self._families = 0, False, []
            self._changed.notify_all()

    def wait(self, deadline: float) -> Families:
        """Return the answer, and whether there is one.

        After the deadline (monotonic seconds) that is what was counted before. Gauges are left out then: how
        full a hung process was is no news of how full it is.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: not self._unanswered, timeout=max(0.0, deadline - time.monotonic())
            )
            said = self._families if self._fresh else [one for one in self._families if one[2] != "gauge"]
            return [*said, _answers(fresh=self._fresh)]


def _answers(*, fresh: bool) -> Any:
    words = "Whether a worker process says what it has counted: 1 or 0."
    return [ANSWERS, words, "gauge", [[ANSWERS, {}, float(fresh)]]]


class Exposition(Collector):
    """Collects a supervisor's metrics and its processes', each with its worker's name.

    Args:
        name: of the supervisor.
        ask: asks all worker processes and returns their answers by the worker's name.
    """

    def __init__(self, name: str, ask: Callable[[], Mapping[str, Families]]) -> None:
        self._name, self._ask = name, ask

    def collect(self) -> Iterator[Metric]:
        """Yield the families, each once, whoever has a part in them."""
        merged: dict[str, Metric] = {}
        for worker, families in ((self._name, snapshot(SUPERVISOR)), *self._ask().items()):
            for name, words, kind, samples in families:
                metric = merged.setdefault(name, Metric(name, words, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, "worker": worker}, value)
        yield from merged.values()
