"""One worker process with two models of both ways: turns, loading and unloading, and the same pictures."""

from __future__ import annotations

import gc
import queue
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import ModelLoadError
from storage.models import ModelReference
from storage.parameters import JobParameters
from storage.records import JobStatus
from storage.served import served_by
from storage.worker_options import WorkerOptions
from tests.chaos.tiny import make_tiny_model
from tests.pipelines import tiny
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine import lane_parts, tuning
from worker.engine.engine import Engine
from worker.engine.errors import EngineDeadError
from worker.exits import Exit
from worker.models import memory
from worker.orders import ChildOrder
from worker.process import WorkerProcess
from worker.tasks import render_job

JOB = JobParameters(prompt="a fox", seed=1, num_inference_steps=2, guidance_scale=5.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sd`, rendered in the vectorised way, and `xl`, rendered by its own pipeline."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "sd")
    tiny("stable_diffusion_xl").save_pretrained(folder / "xl", safe_serialization=True)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "home"))
    return tmp_path


class Mill:
    """Starts processes in one home, and ends them."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self.started: list[WorkerProcess] = []

    def start(self, *names: str, max_loaded: int | None = None) -> WorkerProcess:
        """Start a process that serves these models."""
        first, *more = [f"{name}={self._models / name}" for name in names]
        options = WorkerOptions(
            model=first, more_models=tuple(more), lanes=4, dtype="float32", max_loaded=max_loaded
        )
        incarnation = f"w{len(self.started)}"
        order = ChildOrder(options=options, device="cpu", incarnation=incarnation, name="several@here")
        process = WorkerProcess(order)
        process._redis = None
        self.started.append(process)
        process.load()
        return process


@pytest.fixture
def mill(home: Path, models: Path) -> Iterator[Mill]:
    """A mill without processes."""
    del home
    mill = Mill(models)
    yield mill
    for process in mill.started:
        process.shelf.close()
        process.close()
        process.jobs.close()


def render(process: WorkerProcess, model: str, count: int = 2) -> list[str]:
    """Render jobs of a model side by side, and return the hashes of their files."""
    jobs = process.jobs
    submission, _ = jobs.add_submission(model=model, source="test")
    jobs.add_jobs(submission.id, [JOB] * count)
    jobs.open_submission(submission.id)
    queued = jobs.take_for_dispatch(model, window=count)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda job: render_job(process, job), queued))
    done = list(jobs.jobs(submission.id))
    assert [job.status for job in done] == [JobStatus.SUCCEEDED] * count, [job.error_message for job in done]
    return [job.image.file_sha256 for job in done if job.image is not None]


def turn_to(process: WorkerProcess, model: str) -> None:
    """Switch, as the switcher does."""
    assert process.pause_turns()
    process.render_with(model)


@pytest.mark.parametrize("max_loaded", [None, 1])
def test_pictures_are_those_of_a_worker_of_one_model(mill: Mill, max_loaded: int | None) -> None:
    """Turn after turn, with both models loaded or one at a time: the same bytes."""
    alone = {name: render(mill.start(name), name, count=1)[0] for name in ("sd", "xl")}
    process = mill.start("sd", "xl", max_loaded=max_loaded)
    for name in ("sd", "xl", "sd", "xl"):
        if process.model.name != name:
            turn_to(process, name)
        assert isinstance(process.engine.main, Engine if name == "sd" else PipelineEngine)
        assert set(render(process, name)) == {alone[name]}
        loaded = [model.name for model in process.shelf.known if model.loaded]
        assert loaded == ([name] if max_loaded == 1 or process.shelf.known[1].bytes == 0 else ["sd", "xl"])


def test_a_broken_device_ends_the_process_for_the_supervisor(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, from the engine's thread, with the code that has its jobs rendered alone."""
    process = mill.start("sd")
    codes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr("worker.process.os._exit", codes.put)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(process.engine.model.unet, "forward", fail)
    ticket = process.engine.submit(JOB)
    assert codes.get(timeout=60) == Exit.ENGINE
    assert isinstance(ticket.future.exception(timeout=60), EngineDeadError)


def test_patience_with_devices_and_jobs_comes_from_the_settings(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROMPTMILL_DEADLINE is for a job's steps, PROMPTMILL_STALL for the watchdog."""
    monkeypatch.setenv("PROMPTMILL_DEADLINE", "66")
    monkeypatch.setenv("PROMPTMILL_STALL", "77")
    engine = mill.start("sd").engine
    assert isinstance(engine.main, Engine)
    assert (engine.main._deadline, engine.main._watchdog._limit) == (66, 77)


def test_an_unloaded_model_leaves_nothing_behind(mill: Mill) -> None:
    """Its tensors are freed, and its engine's thread has ended."""
    process = mill.start("sd", "xl", max_loaded=1)
    unet, thread = weakref.ref(process.engine.model.unet), process.engine.main._thread
    render(process, "sd")
    turn_to(process, "xl")
    gc.collect()
    assert unet() is None
    assert thread is not None
    assert not thread.is_alive()


def test_the_row_tells_of_each_model(mill: Mill) -> None:
    """What is active and loaded, how large, and what a model recommends once it was loaded."""
    process = mill.start("sd", "xl")
    (row,) = process.jobs.workers()
    sd, xl = served_by(row)
    assert (row.model, sd.loaded, xl.loaded, xl.revision) == ("sd", True, False, None)
    assert sd.bytes == memory.weights_bytes(process.model)
    turn_to(process, "xl")
    (row,) = process.jobs.workers()
    sd, xl = served_by(row)
    assert (row.model, row.family, sd.loaded, xl.loaded) == ("xl", "StableDiffusionXLPipeline", True, True)
    assert xl.defaults["num_inference_steps"] == 50


def test_a_row_ahead_of_a_switch_tells_of_the_next_model(mill: Mill) -> None:
    """Nothing of the model that still has its turn stands under the name of the one that follows."""
    process = mill.start("sd", "xl")
    process.introduce("xl")
    (row,) = process.jobs.workers()
    assert (row.model, row.revision, row.family, row.defaults, row.lanes) == ("xl", None, None, {}, 0)
    turn_to(process, "xl")
    process.introduce("sd")
    (row,) = process.jobs.workers()
    (sd, _) = served_by(row)
    assert (row.model, row.family, row.revision) == ("sd", "sd", sd.revision)


def test_the_least_recently_used_model_makes_room(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit stay; an engine that runs out of memory can have the others unloaded, not its own."""
    process = mill.start("sd", "xl")
    shelf = process.shelf
    assert not shelf.make_room()
    turn_to(process, "xl")
    monkeypatch.setattr(memory, "room", lambda _device: 10_000_000_000)
    turn_to(process, "sd")
    assert (shelf.has("sd"), shelf.has("xl")) == (True, True)
    assert shelf.make_room()
    assert (shelf.has("sd"), shelf.has("xl")) == (True, False)
    monkeypatch.setattr(memory, "room", lambda _device: 1)
    turn_to(process, "xl")
    assert (shelf.has("sd"), shelf.has("xl")) == (False, True)


def test_a_model_whose_lanes_do_not_fit_beside_another_gets_its_place(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not fewer lanes and no refusal, as long as another model can leave."""
    process = mill.start("xl", "sd")
    try_lanes = tuning.try_lanes

    def crowded(*arguments: Any, **options: Any) -> Any:
        if process.shelf.has("xl"):
            raise torch.OutOfMemoryError("out of memory")
        return try_lanes(*arguments, **options)

    for module in (tuning, lane_parts):
        monkeypatch.setattr(module, "try_lanes", crowded)
    monkeypatch.setattr(memory, "room", lambda _device: 10_000_000_000)
    turn_to(process, "sd")
    assert (process.shelf.has("xl"), process.engine.lanes) == (False, 4)


def test_one_model_that_cannot_be_loaded_leaves_the_other(mill: Mill, models: Path) -> None:
    """The first that can be loaded begins, and the row says what is wrong; without any the worker ends."""
    (models / "empty").mkdir(exist_ok=True)
    process = mill.start("empty", "sd")
    (row,) = process.jobs.workers()
    assert row.model == process.model.name == "sd"
    assert "model_index.json" in str(served_by(row)[0].problem)
    with pytest.raises(ModelLoadError, match=r"model_index.json"):
        mill.start("empty")


def test_a_job_waits_for_the_turn_of_its_model(mill: Mill) -> None:
    """A message that comes too late for a turn is kept, and its job is rendered in the next one."""
    process = mill.start("sd", "xl")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(render, process, "xl", 1)
        render(process, "sd")
        assert not late.done()
        turn_to(process, "xl")
        late.result()


def test_sizes_are_known_before_and_after_loading(models: Path, mill: Mill) -> None:
    """The files of a float32 model are about as large as its weights."""
    process = mill.start("sd")
    expected = memory.files_bytes(ModelReference(name="sd", source=str(models / "sd")))
    assert memory.weights_bytes(process.model) == pytest.approx(expected, rel=0.2)
    room = memory.room(torch.device("cpu"))
    assert room is None or room > 0
