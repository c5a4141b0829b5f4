"""Switching between models: in which order, and what a failure or an end on the way leaves behind."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storage.errors import ModelLoadError, StaleWorkerError, UnreachableError
from tests.records import worker_record
from worker import surroundings as surroundings_module
from worker.gate import Gate
from worker.rota import LINGER, Rota
from worker.surroundings import Surroundings
from worker.switching import Switcher


class FakeProcess:
    """A worker process without engine, database and device: it notes what is done to it."""

    incarnation = "w1"
    models = ("a", "b", "c")
    concurrency = 6

    def __init__(self) -> None:
        self.jobs = self.shelf = cast("Any", self)
        self.gate = Gate("a")
        self.stopping = threading.Event()
        self.surroundings = Surroundings(self.stopping, lambda _note: None)
        self.working: set[str] = set()
        self.others: list[Any] = []
        self.broken: dict[str, Exception] = {}
        self.problems: dict[str, str] = {}
        self.ended: Exception | str | None = None
        self.draining = False
        self.done: list[str] = []

    def models_with_work(self, models: tuple[str, ...]) -> set[str]:
        """Return who has work."""
        return {model for model in models if model in self.working}

    def workers(self, *, alive_only: bool) -> list[Any]:
        """Return who lives."""
        assert alive_only
        return self.others

    def introduce(self, name: str) -> None:
        """Note it."""
        self.done.append(f"announce {name}")

    def pause_turns(self) -> bool:
        """Note it; nobody is inside."""
        self.done.append("wait")
        return self.gate.shut(self.stopping) and not self.draining

    def render_with(self, name: str) -> None:
        """Load, or fail."""
        if name in self.broken:
            raise self.broken[name]
        self.done.append(f"load {name}")
        self.gate.open(name, places=6)

    def loading(self, name: str) -> float:
        """Nothing takes time."""
        assert name in self.models
        return 0.0

    def note_problem(self, name: str, problem: str) -> None:
        """Note it."""
        self.problems[name] = problem

    def end(self, reason: Any) -> None:
        """Note why."""
        self.ended = reason
        self.stopping.set()

    give_up = stale = engine_died = end

    def change(self, queue: str | None, stopping: threading.Event, *, prefetch: int = 1) -> bool:
        """Note what is consumed."""
        assert stopping is self.stopping
        self.done.append(f"consume {queue}" + (f" {prefetch}" if queue else ""))
        return not stopping.is_set()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> FakeProcess:
    """A process that renders with model a."""
    monkeypatch.setattr(surroundings_module, "BACKOFF_BASE", 0.0)
    return FakeProcess()


@pytest.fixture
def switcher(process: FakeProcess, clock: Any) -> Switcher:
    """Its switcher, once model a has had nothing to do for a while."""
    rota = Rota(process.models, patience=60, clock=clock)
    rota.begin("a")
    clock.advance(LINGER + 1)
    return Switcher(process, process, rota)


def test_a_switch_keeps_to_its_order(process: FakeProcess, switcher: Switcher) -> None:
    """Nothing of the old model is consumed before the new one is there, and nobody is inside meanwhile."""
    switcher.look()
    assert process.done == []
    process.working = {"b"}
    switcher.look()
    assert process.done == [
        "consume None",
        "announce b",
        "wait",
        "load b",
        "consume render.b 6",
    ]
    assert switcher.switches == 1
    switcher.look()
    assert switcher.switches == 1


def test_a_model_that_cannot_be_loaded_gives_its_turn_back(process: FakeProcess, switcher: Switcher) -> None:
    """The model before goes on, the row says why, and others have their turns."""
    process.broken["b"] = ModelLoadError("No such file.")
    process.working = {"b"}
    switcher.look()
    assert process.done[-2:] == ["load a", "consume render.a 6"]
    assert process.problems == {"b": "No such file. (tried again in 30 s)"}
    process.working = {"b", "c"}
    switcher._rota._fed -= LINGER + 1
    switcher.look()
    assert process.done[-1] == "consume render.c 6"


def test_an_end_between_two_turns_begins_nothing(process: FakeProcess, switcher: Switcher) -> None:
    """A process that drains while its jobs leave loads no other model."""
    process.working, process.draining = {"b"}, True
    switcher.look()
    assert process.done == ["consume None", "announce b", "wait"]
    process.stopping.set()
    process.done.clear()
    switcher.look()
    assert process.done == ["consume None"]


def test_a_database_that_fails_on_the_way_is_waited_for(process: FakeProcess, switcher: Switcher) -> None:
    """A switch is completed once the row can be written."""
    faults: list[Exception] = [UnreachableError("down"), UnreachableError("down")]
    introduce = process.introduce

    def fail(name: str) -> None:
        if faults:
            raise faults.pop()
        introduce(name)

    process.introduce = fail  # type: ignore[method-assign]
    process.working = {"b"}
    switcher.look()
    assert process.done[-1] == "consume render.b 6"


@pytest.mark.parametrize(
    "error", [StaleWorkerError("dead"), RuntimeError("CUDA error")], ids=["declared dead", "device fault"]
)
def test_what_cannot_go_on_ends_the_process(
    error: Exception, process: FakeProcess, switcher: Switcher
) -> None:
    """Half-way between two models nothing is certain: another incarnation begins anew."""
    process.broken["b"] = error
    process.working = {"b"}
    switcher.run()
    assert process.ended is error


def test_what_another_worker_renders_is_left_to_it(
    process: FakeProcess, switcher: Switcher, clock: Any
) -> None:
    """A ready worker with that model counts, one that drains or this one does not."""
    process.working = {"a", "b"}
    process.gate = cast(
        "Any", SimpleNamespace(inside=1, shut=lambda _stopping: True, open=lambda *_, **__: 0)
    )
    process.others = [worker_record("w2", model="b")]
    for _ in range(3):
        switcher.look()
        clock.advance(61)
    assert process.done == []
    process.others = [worker_record("w1", model="b"), worker_record("w3", model="b", state="draining")]
    switcher.look()
    clock.advance(61)
    switcher.look()
    assert process.done[-1] == "consume render.b 6"
