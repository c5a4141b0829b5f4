"""What a worker process knows of itself at the moment somebody looks: lanes, jobs, memory, its last beat."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.models.memory import usage
from worker.process import WorkerProcess


class Live(Collector):
    """Collects them; whoever wants them registers it."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family each; what only a loaded model has is left out between two models."""
        process = self._process
        yield _plain(
            "promptmill_held_jobs", "Jobs that are held, from claim to image row.", len(process.held)
        )
        yield _plain("promptmill_beat_age_seconds", "Since the last heartbeat.", process.heartbeat.age)
        yield _plain(
            "promptmill_struggles", "Threads that wait for database or store.", process.surroundings.ailing
        )
        engine = getattr(process, "engine", None)  # there is none between two turns
        if engine is None:
            return
        used = engine.lanes_used
        for name, words, number in (
            ("promptmill_lanes", "R, of the model that has its turn.", engine.lanes),
            ("promptmill_lanes_in_use", "Lanes of jobs in the step that runs.", used),
        ):
            yield _of_model(name, words, engine.model.name, number)
        memory = GaugeMetricFamily(
            "promptmill_device_memory_bytes",
            "Of the device: used (by this process), free, total; on a CPU that is the host's memory.",
            labels=["kind"],
        )
        for kind, number in usage(engine.model.device).items():
            memory.add_metric([kind], number)
        yield memory


def _plain(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, value=value)


def _of_model(name: str, words: str, model: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=["model"])
    family.add_metric([model], value)
    return family
