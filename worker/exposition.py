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
    """What one worker process has counted, as it said when it was asked last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = False
        self._families: Families = []

    def ask(self, send: Callable[[], None]) -> None:
        """Ask with `send`, unless an answer is due already: a frozen process must not fill its pipe."""
        with self._changed:
            if self._asked:
                return
            self._asked = True
        send()

    def hear(self, families: Families) -> None:
        """Take the answer."""
        with self._changed:
            self._asked, self._families = False, families
            self._changed.notify_all()

    def forget(self) -> None:
        """Begin anew: the process has ended."""
        self.hear([])

    def wait(self, deadline: float) -> Families:
        """Return the answer, or after the deadline (monotonic seconds) what was said before."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked, timeout=max(0.0, deadline - time.monotonic()))
            return self._families


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
