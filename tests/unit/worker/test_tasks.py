"""From claim to image row: what becomes of a job on every path, with a fake engine and real stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from celery import Celery
from PIL import Image as Picture

from storage.errors import BadInputError, SchemaError, StoreFullError, UnreachableError
from storage.imagestore import picture_key
from storage.infotext import read_infotext
from storage.inputs import digest, input_key
from storage.jobstore import MAX_FAILURES
from storage.parameters import JobParameters
from storage.picture_metadata import read_texts
from storage.picture_record import read_record
from storage.records import (
    Claim,
    Finish,
    Job,
    JobStatus,
    Refusal,
    Submission,
    SubmissionState,
    Worker,
    WorkerState,
)
from storage.strict_transport import TASK
from storage.version import MESSAGE_VERSION
from storage.worker_options import WorkerOptions
from worker import heartbeat, surroundings
from worker import process as process_module
from worker.coalescing.engines import Engines
from worker.engine.engine import Engine
from worker.engine.errors import Cancelled, EngineDeadError, OutOfMemoryError, Released, RenderError
from worker.engine.request import RenderResult
from worker.exits import Exit
from worker.introduction import loaded_worker, ordered_worker
from worker.metrics import LOST
from worker.orders import ChildOrder
from worker.process import WorkerProcess
from worker.stages.picture import encoder_versions
from worker.tasks import add_render_task, render_job
from worker.version import check_version

PATIENCE = 10.0
NUMERICS = {"dtype": "x"}


class FakeTicket:
    """What an engine hands out; the test decides how it ends."""

    def __init__(self) -> None:
        self.future: Future[RenderResult] = Future()
        self.progress = 0.0
        self.cancelled = False

    def cancel(self) -> None:
        """Drop the request, as the engine does at its next step."""
        self.cancelled = True
        if not self.future.done():
            self.future.set_exception(Cancelled("cancelled"))


class FakeEngine:
    """Ends every request with the next of its outcomes: an error, or else a picture."""

    lanes = 4
    lanes_used = 0
    lanes_per_job = Engine.lanes_per_job
    model: Any

    def __init__(self) -> None:
        self.outcomes: list[Exception] = []
        self.submitted: list[JobParameters] = []
        self.on_submit: Callable[[FakeTicket], None] | None = None
        self.numerics = NUMERICS
        self.released = False
        self.pictures: dict[str, Any] = {}
        self.priority: int | None = None  # of the last one

    def submit(self, parameters: JobParameters, *, priority: int, pictures: dict[str, Any]) -> FakeTicket:
        """Render at once."""
        self.submitted.append(parameters)
        self.priority = priority
        self.pictures = pictures
        ticket = FakeTicket()
        if self.on_submit is not None:
            self.on_submit(ticket)
        elif self.outcomes:
            ticket.future.set_exception(self.outcomes.pop(0))
        else:
            ticket.future.set_result(picture())
        return ticket

    def numerics_of(self, _parameters: JobParameters) -> dict[str, Any]:
        """Return the record of every picture."""
        return self.numerics

    def release_waiting(self) -> None:
        """Remember that the process drains."""
        self.released = True


def picture() -> RenderResult:
    """Return a small red picture."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    return RenderResult(pixels=pixels, warnings=["truncated"], seconds={"denoise": 0.5}, numerics=NUMERICS)


class Mill:
    """A worker process with a fake engine, and one submission to render."""

    def __init__(self, process: WorkerProcess, engine: FakeEngine, count: int) -> None:
        self.process = process
        self.engine = engine
        self.jobs = process.jobs
        self.id = self.submit(count)

    def submit(self, count: int, *, reuse: bool = False, steps: int = 3) -> str:
        """Submit jobs, the same ones each time, and return the submission's id."""
        submission, _ = self.jobs.add_submission(model="demo", source="test", reuse=reuse)
        self.jobs.add_jobs(
            submission.id,
            (
                JobParameters(prompt=f"otter {i}", seed=i, num_inference_steps=steps, extra={"id": i})
                for i in range(count)
            ),
        )
        return self.jobs.open_submission(submission.id).id

    @property
    def submission(self) -> Submission:
        """The submission as it is now."""
        return self.jobs.find_submission(self.id)

    def job(self, index: int = 0) -> Job:
        """Return a job as it is now."""
        return self.jobs.find_job(f"{self.id}:{index}")

    def dispatch(self, count: int = 1) -> list[int]:
        """Queue jobs and return their ids."""
        return self.jobs.take_for_dispatch("demo", window=count)

    def render(self) -> Job:
        """Render the first job from its message on, and return what became of it."""
        (job,) = self.dispatch()
        render_job(self.process, job)
        return self.job()

    def render_all(self) -> None:
        """Render every job that waits."""
        for job in self.dispatch(100):
            render_job(self.process, job)

    def again(self, *, reuse: bool = True, steps: int = 3) -> Job:
        """Submit the first job once more, render it, and return what became of it."""
        submission = self.submit(1, reuse=reuse, steps=steps)
        self.render_all()
        return self.jobs.find_job(f"{submission}:0")

    def files(self) -> list[str]:
        """Return the keys of all stored pictures."""
        root = self.process.settings.images_path
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def mill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mill]:
    """A ready worker process with three jobs to render."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(surroundings, "BACKOFF_BASE", 0.0)
    order = ChildOrder(
        options=WorkerOptions(model="demo=./demo"), device="cpu", incarnation="w1", name="demo@here"
    )
    process = WorkerProcess(order)
    engine = FakeEngine()
    process.engine = engine  # type: ignore[assignment]
    process.model = SimpleNamespace(  # type: ignore[assignment]
        revision="0123456789abcdef",
        repo=None,
        defaults={"width": 64, "height": 64, "guidance_scale": 7.5},
        unet=SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=None)),
    )
    engine.model = process.model
    add_worker(process)
    yield Mill(process, engine, 3)
    process.jobs.close()


def add_worker(process: WorkerProcess, incarnation: str = "w1") -> None:
    """Say that the process is ready."""
    moment = datetime.now(UTC)
    process._state = WorkerState.READY
    process.jobs.add_worker(
        Worker(
            incarnation=incarnation, name="demo@here", host="here", pid=1, device="cpu", device_uuid=None,
            model="demo", revision=None,
            family=None, defaults={}, mode="exact", dtype="float32", lanes=4, concurrency=6,
            version="0.1.0", state=WorkerState.READY, beat=0, beat_at=moment, started_at=moment,
        )
    )  # fmt: skip


def fail_times(times: int, error: Exception, then: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails so often before it does what it should."""
    left = [error] * times

    def act(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return then(*arguments, **named)

    return act


# -- success


def test_a_job_becomes_a_file_and_a_row(mill: Mill) -> None:
    """The picture lies under its key with its infotext, and the row describes exactly this file."""
    job = mill.render()
    assert job.status is JobStatus.SUCCEEDED
    assert job.warnings == ["truncated"]
    assert job.image is not None
    assert mill.files() == [job.image.key] == [picture_key(mill.id, 0, 1)]
    data = mill.process.images.read(job.image.key)
    assert job.image.bytes == len(data)
    assert set(job.image.seconds) == {"denoise", "save"}
    text = (mill.process.settings.images_path / job.image.key).read_bytes()
    assert b"parameters" in text
    assert mill.engine.submitted[0].width == 64
    assert len(mill.process.held) == 0


def test_the_infotext_says_how_the_picture_was_made(mill: Mill) -> None:
    """Prompt, steps and the model's revision are in the file itself."""
    job = mill.render()
    assert job.image is not None
    with Picture.open(mill.process.settings.images_path / job.image.key) as opened:
        found = read_infotext(opened.info["parameters"])
        record = read_record(opened.info["promptmill"])
    assert (found["prompt"], found["num_inference_steps"], found["seed"]) == ("otter 0", 3, 0)
    assert found["model_hash"] == "0123456789"
    assert record.parameters == replace(job.parameters, extra={})
    assert (record.model, record.source, record.numerics) == ("demo", None, job.image.numerics)


@pytest.mark.parametrize(("image_format", "suffix"), [("jpeg", "jpg"), ("webp", "webp")])
def test_a_job_may_ask_for_another_format(image_format: str, suffix: str, mill: Mill) -> None:
    """Its key ends as its files do, its numerics name the library, and earlier attempts' files go as well."""
    jobs, images = mill.process.jobs, mill.process.images
    submission, _ = jobs.add_submission(model="demo", source="test", priority=1)
    asked = JobParameters(prompt="a fox", seed=1, options={"image_format": image_format, "quality": 90})
    jobs.add_jobs(submission.id, [asked])
    jobs.open_submission(submission.id)
    (number,) = mill.dispatch()
    claimed = jobs.claim(number, "w1", defaults=mill.process.model.defaults)
    assert isinstance(claimed, Claim)
    earlier = picture_key(submission.id, 0, 1, suffix=suffix)
    images.write(earlier, b"what a killed attempt left")
    jobs.release(claimed)
    mill.dispatch()
    render_job(mill.process, number)
    image = jobs.find_job(f"{submission.id}:0").image
    assert image is not None
    assert (image.format, image.key) == (image_format, picture_key(submission.id, 0, 2, suffix=suffix))
    assert image.numerics["versions"] == encoder_versions(image_format)
    assert mill.files() == [image.key]
    with Picture.open(mill.process.settings.images_path / image.key) as opened:
        assert opened.format == image_format.upper()
        assert read_record(read_texts(opened).record).numerics == image.numerics


def test_the_engine_hears_a_jobs_priority(mill: Mill) -> None:
    """It is its submission's at the time of the claim."""
    mill.jobs.adjust(mill.id, priority=9)
    (job,) = mill.dispatch()
    mill.jobs.adjust(mill.id, priority=-2)
    render_job(mill.process, job)
    assert mill.engine.priority == -2


def test_a_duplicate_message_renders_nothing(mill: Mill) -> None:
    """The second message of a job finds nothing to do."""
    (job,) = mill.dispatch()
    render_job(mill.process, job)
    render_job(mill.process, job)
    assert len(mill.engine.submitted) == 1
    assert len(mill.files()) == 1


def test_many_threads_render_many_messages(mill: Mill) -> None:
    """Messages in any number and order give one picture a job."""
    queued = mill.dispatch(3)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: render_job(mill.process, job), [*queued, *reversed(queued)]))
    assert [mill.job(index).status for index in range(3)] == [JobStatus.SUCCEEDED] * 3
    assert len(mill.files()) == 3


# -- pictures that are there already


def test_a_picture_that_is_there_is_taken_over(mill: Mill) -> None:
    """The copy is the job's own file with the same bytes, and says where it came from; so does its copy."""
    mill.render_all()
    rendered = mill.job()
    copies = [mill.again(), mill.again()]
    assert len(mill.engine.submitted) == 3
    for copy in copies:
        assert copy.status is JobStatus.SUCCEEDED
        assert copy.warnings == ["truncated"]
        assert copy.image is not None
        assert rendered.image is not None
        assert copy.image.key == picture_key(copy.submission, 0, 1)
        assert copy.image.copied_from == rendered.label
        assert copy.image.file_sha256 == rendered.image.file_sha256
        assert copy.image.numerics == NUMERICS
        assert set(copy.image.seconds) == {"copy"}
        assert mill.process.images.read(copy.image.key) == mill.process.images.read(rendered.image.key)


@pytest.mark.parametrize("other", ["not asked for", "other steps", "another kind of worker"])
def test_what_is_not_the_very_same_picture_is_rendered(mill: Mill, other: str) -> None:
    """Nothing is taken over unasked, and nothing that this worker would render otherwise."""
    mill.render_all()
    if other == "another kind of worker":
        mill.engine.numerics = {"dtype": "y"}
    job = mill.again(reuse=other != "not asked for", steps=4 if other == "other steps" else 3)
    assert len(mill.engine.submitted) == 4
    assert job.image is not None
    assert job.image.copied_from is None


@pytest.mark.parametrize("fault", ["lost", "changed", "unreachable"])
def test_an_original_that_cannot_be_read_is_rendered_anew(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The job is none the worse for what became of another one's file."""
    mill.render_all()
    original = mill.process.settings.images_path / picture_key(mill.id, 0, 1)
    if fault == "lost":
        original.unlink()
    elif fault == "changed":
        original.write_bytes(original.read_bytes()[:-1])
    else:
        monkeypatch.setattr(
            mill.process.images, "read", fail_times(1, UnreachableError("gone"), mill.process.images.read)
        )
    job = mill.again()
    assert (job.status, job.failures) == (JobStatus.SUCCEEDED, 0)
    assert len(mill.engine.submitted) == 4
    assert job.image is not None
    assert job.image.copied_from is None


def test_where_one_copy_is_lost_another_one_does(mill: Mill) -> None:
    """Any picture with the fingerprint is as good."""
    mill.render_all()
    copy = mill.again()
    assert copy.image is not None
    mill.process.images.delete(copy.image.key)
    third = mill.again()
    assert third.image is not None
    assert third.image.copied_from == f"{mill.id}:0"


def test_a_copy_that_was_cancelled_meanwhile_deletes_only_its_own_file(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fencing token holds for copies, too."""
    mill.render_all()
    write, reusing = mill.process.images.write, mill.submit(1, reuse=True)

    def cancel_first(key: str, data: bytes) -> None:
        mill.jobs.cancel(reusing)
        mill.jobs.release_incarnation("w1", crashed=True)
        write(key, data)

    monkeypatch.setattr(mill.process.images, "write", cancel_first)
    mill.render_all()
    assert mill.jobs.find_job(f"{reusing}:0").status is JobStatus.CANCELLED
    assert mill.files() == [picture_key(mill.id, index, 1) for index in range(3)]


def test_a_copy_that_does_not_fit_waits_for_space(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full store is a fault of the surroundings whatever is written."""
    mill.render_all()
    full = fail_times(2, StoreFullError("full"), mill.process.images.write)
    monkeypatch.setattr(mill.process.images, "write", full)
    job = mill.again()
    assert job.image is not None
    assert job.image.copied_from == f"{mill.id}:0"


# -- what the engine says


@pytest.mark.parametrize("outcome", [Cancelled("x"), Released("x")])
def test_what_the_engine_gives_back_waits_again_uncharged(mill: Mill, outcome: Exception) -> None:
    """A request that was taken from the engine is no failure of the job."""
    mill.engine.outcomes = [outcome]
    job = mill.render()
    assert (job.status, job.failures, job.attempt) == (JobStatus.WAITING, 0, 1)


def test_a_cancelled_submission_ends_its_running_job(mill: Mill) -> None:
    """The heartbeat hears of the cancel, the engine drops the request, the row ends cancelled."""
    rendering = threading.Event()
    tickets: list[FakeTicket] = []

    def begin(ticket: FakeTicket) -> None:
        tickets.append(ticket)
        rendering.set()

    mill.engine.on_submit = begin
    (job,) = mill.dispatch()
    task = threading.Thread(target=render_job, args=(mill.process, job))
    task.start()
    assert rendering.wait(PATIENCE)
    mill.process.heartbeat.beat()
    assert not tickets[0].cancelled
    mill.jobs.cancel(mill.id)
    while task.is_alive():  # the ticket may not be known to the process at the first beat
        mill.process.heartbeat.beat()
        task.join(0.01)
    assert tickets[0].cancelled
    assert mill.job().status is JobStatus.CANCELLED


def test_a_job_that_is_cancelled_while_it_enters_the_engine_is_dropped(mill: Mill) -> None:
    """A drop that comes before the engine's ticket is known is not forgotten."""

    def drop_first(ticket: FakeTicket) -> None:
        mill.jobs.cancel(mill.id)
        mill.process.heartbeat.beat()
        assert not ticket.cancelled

    mill.engine.on_submit = drop_first
    assert mill.render().status is JobStatus.CANCELLED


def test_a_dead_engine_leaves_the_job_to_the_supervisor(mill: Mill) -> None:
    """The row stays running: whoever watches the process makes it a suspect."""
    mill.engine.outcomes = [EngineDeadError("x")]
    assert mill.render().status is JobStatus.RUNNING
    assert mill.jobs.release_incarnation("w1", crashed=True) == 1
    assert mill.job().suspect


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RenderError("NaN in the latents"), False),
        (RenderError("no such sampler", permanent=True), True),
        (OutOfMemoryError("too large"), False),
        (BadInputError("too large for this model"), True),
        (ZeroDivisionError("a mistake"), False),
        (ValueError(""), False),
    ],
)
def test_an_error_of_the_job_is_charged_to_it(mill: Mill, error: Exception, *, ends: bool) -> None:
    """What would fail again ends the job at once, everything else may be tried again; both say why."""
    mill.engine.outcomes = [error]
    job = mill.render()
    assert job.status is (JobStatus.FAILED if ends else JobStatus.WAITING)
    assert (job.failures, job.error_type) == (1, type(error).__name__)
    assert job.error_message == (str(error) or type(error).__name__)
    assert type(error).__name__ in (job.traceback or "")
    assert mill.files() == []


def test_an_engine_that_refuses_a_job_fails_it(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal at the door is the job's failure, with the engine's sentence."""

    def refuse(_: JobParameters, *, pictures: object, **_rest: object) -> FakeTicket:
        assert pictures == {}
        raise BadInputError("This model has no such size.")

    monkeypatch.setattr(mill.engine, "submit", refuse)
    job = mill.render()
    assert (job.status, job.error_message) == (JobStatus.FAILED, "This model has no such size.")


# -- the surroundings


@pytest.mark.parametrize("error", [StoreFullError("full"), UnreachableError("gone")])
def test_a_store_that_recovers_costs_the_job_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The rendered picture is kept until the store takes it."""
    monkeypatch.setattr(mill.process.images, "write", fail_times(4, error, mill.process.images.write))
    job = mill.render()
    assert (job.status, job.failures, job.attempt) == (JobStatus.SUCCEEDED, 0, 1)
    assert len(mill.engine.submitted) == 1
    assert mill.process.gave_up is None
    assert mill.jobs.workers()[0].note is None


@pytest.mark.parametrize(
    "error", [StoreFullError("The store is full."), UnreachableError("The store is gone.")]
)
def test_a_store_that_stays_broken_pauses_the_submission_and_stops_the_process(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Nobody goes on rendering what cannot be kept: the submission says why, the job waits uncharged."""
    monkeypatch.setattr(mill.process.images, "write", fail_times(10**6, error, print))
    job = mill.render()
    assert (job.status, job.failures) == (JobStatus.WAITING, 0)
    assert (mill.submission.state, mill.submission.note) == (SubmissionState.PAUSED, str(error))
    assert mill.process.gave_up == str(error)
    assert mill.process.stopping.is_set()
    mill.jobs.open_submission(mill.id)
    assert mill.render().attempt == 1  # a process that stops claims nothing


@pytest.mark.parametrize("error", [UnreachableError("down")])
@pytest.mark.parametrize("method", ["claim", "finish", "fail", "release"])
def test_a_database_that_comes_back_is_waited_for(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    """However long the outage, what only this process knows gets into the row."""
    mill.engine.outcomes = {"fail": [RenderError("x", permanent=True)], "release": [Released("x")]}.get(
        method, []
    )
    monkeypatch.setattr(mill.jobs, method, fail_times(20, error, getattr(mill.jobs, method)))
    expected = {"fail": JobStatus.FAILED, "release": JobStatus.WAITING}.get(method, JobStatus.SUCCEEDED)
    assert mill.render().status is expected
    assert mill.process.gave_up is None


@pytest.mark.parametrize("method", ["claim", "finish", "fail", "release"])
def test_a_database_on_a_full_disk_stops_the_process(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Wherever the disk is found to be full, the process gives up, and never drops a job without a word."""
    mill.engine.outcomes = {"fail": [RenderError("x", permanent=True)], "release": [Released("x")]}.get(
        method, []
    )
    full = StoreFullError("The database's disk is full.")
    monkeypatch.setattr(mill.jobs, method, fail_times(10**6, full, print))
    job = mill.render()
    assert mill.process.gave_up == str(full)
    assert job.failures == 0
    monkeypatch.undo()
    mill.process.jobs.release_incarnation("w1", crashed=False)  # as the process does on its way out
    assert mill.job().status in {JobStatus.WAITING, JobStatus.QUEUED}
    assert not mill.job().suspect


def test_a_repeated_finish_keeps_the_picture(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """When only the reply was lost, the second try finds its own work and deletes nothing."""
    finish = mill.jobs.finish
    answers: list[Finish] = []

    def lose_the_reply(*arguments: Any, **named: Any) -> Finish:
        answers.append(finish(*arguments, **named))
        if len(answers) == 1:
            raise UnreachableError("The connection broke.")
        return answers[-1]

    monkeypatch.setattr(mill.jobs, "finish", lose_the_reply)
    job = mill.render()
    assert answers == [Finish.SAVED, Finish.OURS]
    assert job.image is not None
    assert mill.files() == [job.image.key]


def test_a_loser_deletes_only_its_own_file(mill: Mill) -> None:
    """A job that was taken over keeps the picture of the attempt that won."""

    def taken_over(ticket: FakeTicket) -> None:
        mill.jobs.release_incarnation("w1", crashed=False)
        add_worker(mill.process, "w2")
        mill.process.incarnation = "w2"
        mill.engine.on_submit = None
        mill.render()
        ticket.future.set_result(picture())

    mill.engine.on_submit = taken_over
    job = mill.render()
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    assert job.image is not None
    assert mill.files() == [job.image.key] == [picture_key(mill.id, 0, 2)]


def test_a_lost_picture_that_cannot_be_deleted_harms_nobody(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while a loser cleans up is not charged to the job that another attempt holds."""
    monkeypatch.setattr(mill.process.images, "delete", fail_times(9, UnreachableError("gone"), print))

    def taken_over(ticket: FakeTicket) -> None:
        mill.jobs.release_incarnation("w1", crashed=False)
        ticket.future.set_result(picture())

    dropped = LOST.labels("demo")._value.get()
    mill.engine.on_submit = taken_over
    job = mill.render()
    assert (job.status, job.failures) == (JobStatus.WAITING, 0)
    assert LOST.labels("demo")._value.get() == dropped + 1


def test_a_claim_whose_reply_was_lost_is_undone(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that runs under this process although no thread holds it goes back to waiting."""
    claim = mill.jobs.claim

    def lose_the_reply(*arguments: Any, **named: Any) -> Claim | Refusal:
        if isinstance(claim(*arguments, **named), Claim):
            raise UnreachableError("The connection broke.")
        return Refusal.GONE

    monkeypatch.setattr(mill.jobs, "claim", lose_the_reply)
    assert mill.render().status is JobStatus.RUNNING
    monkeypatch.setattr(mill.jobs, "claim", claim)
    for _ in range(heartbeat.STRAY_AFTER):
        mill.process.heartbeat.beat()
    assert (mill.job().status, mill.job().failures) == (JobStatus.WAITING, 0)
    assert mill.render().status is JobStatus.SUCCEEDED


def test_the_winner_deletes_what_a_killed_attempt_left(mill: Mill) -> None:
    """A process killed between file and row leaves a file without a row, until the job has its picture."""

    def killed(_ticket: FakeTicket) -> None:
        stale = mill.process.settings.images_path / picture_key(mill.id, 0, 1)
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"stale")
        stale.with_name(f".{stale.name}.1-abcd.part").write_bytes(b"half")
        mill.jobs.release_incarnation("w1", crashed=False)
        add_worker(mill.process, "w2")
        mill.process.incarnation = "w2"
        raise EngineDeadError("killed")

    mill.engine.on_submit = killed
    mill.render()
    assert len(mill.files()) == 2
    mill.engine.on_submit = None
    job = mill.render()
    assert job.image is not None
    assert mill.files() == [job.image.key] == [picture_key(mill.id, 0, 2)]


# -- suspects, draining, the process itself


def test_a_suspect_renders_while_the_others_wait(mill: Mill) -> None:
    """After a crash the suspects are rendered one at a time, and are then above suspicion."""
    for job in mill.dispatch(3):
        mill.jobs.claim(job, "w1", defaults=mill.process.model.defaults)
    mill.jobs.release_incarnation("w1", crashed=True)
    add_worker(mill.process, "w2")
    mill.process.incarnation = "w2"
    at_once: list[int] = []

    def count(ticket: FakeTicket) -> None:
        at_once.append(len(mill.process.held))
        ticket.future.set_result(picture())

    mill.engine.on_submit = count
    queued = mill.dispatch(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job: render_job(mill.process, job), queued))
    assert at_once == [1, 1, 1]
    assert [(mill.job(i).status, mill.job(i).suspect) for i in range(3)] == [(JobStatus.SUCCEEDED, False)] * 3
    assert mill.job().failures < MAX_FAILURES


def test_a_process_that_drains_claims_nothing_and_stays_draining(mill: Mill) -> None:
    """Draining is said in the row at once, and no later note takes it back."""
    mill.process.drain()
    assert mill.engine.released
    mill.process._note("backing off")
    mill.process._note(None)
    assert mill.jobs.workers()[0].state is WorkerState.DRAINING
    assert mill.render().status is JobStatus.WAITING
    assert mill.engine.submitted == []


def test_a_drain_during_an_outage_still_releases_what_waits(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order to drain is obeyed even if the row cannot say so."""
    monkeypatch.setattr(mill.jobs, "set_worker_state", fail_times(9, UnreachableError("down"), print))
    mill.process.drain()
    assert mill.engine.released


def test_a_process_that_ends_gives_everything_back(mill: Mill) -> None:
    """Closing works before the heart ever beat, and leaves a stopped worker without jobs."""
    (job,) = mill.dispatch()
    mill.jobs.claim(job, "w1", defaults=mill.process.model.defaults)
    mill.process.close()
    assert (mill.job().status, mill.job().suspect) == (JobStatus.WAITING, False)
    assert mill.jobs.workers()[0].state is WorkerState.STOPPED


def test_a_process_that_was_declared_dead_leaves(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen process that wakes up after its lease exits by itself, from the heart's own thread."""
    codes: list[int] = []
    gone = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        gone.set()

    monkeypatch.setattr(process_module.os, "_exit", leave)
    monkeypatch.setattr("worker.heartbeat.BEAT", 0.001)
    mill.jobs.release_incarnation("w1", crashed=True)
    mill.process.heartbeat.start()
    assert gone.wait(PATIENCE)
    assert codes == [Exit.STALE]


def test_a_worker_that_is_too_old_refuses(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema names the oldest worker that it allows."""
    check_version(mill.jobs)
    monkeypatch.setattr(mill.jobs, "oldest_worker_version", lambda: "999.0")
    with pytest.raises(SchemaError, match=r"999\.0 or newer"):
        check_version(mill.jobs)


def test_only_messages_of_ours_are_rendered(mill: Mill) -> None:
    """A message of another version, or one without a number, is dropped and its job left alone."""
    app = Celery("test", broker="memory://", set_as_current=False)
    add_render_task(app, mill.process)
    task = app.tasks[TASK]
    (job,) = mill.dispatch()
    task(job, version=MESSAGE_VERSION + 1)
    task("1; DROP TABLE jobs")
    assert mill.job().status is JobStatus.QUEUED
    task(job, version=MESSAGE_VERSION)
    assert mill.job().status is JobStatus.SUCCEEDED
    app.close()


def test_a_ready_worker_publishes_what_its_model_recommends(mill: Mill) -> None:
    """Its row carries the defaults, what jobs can begin with and what its samplers can do with it.

    One that still loads has none to tell.
    """
    defaults = {"sampler": "euler", "schedule": "karras", "width": 64, "height": 64}
    model = SimpleNamespace(
        revision="0" * 64,
        family="sd",
        loras={},
        defaults=defaults,
        precision="float32",
        device=torch.device("cpu"),
        scheduler_config={"_class_name": "PNDMScheduler", "steps_offset": 1, "beta_end": 0.012},
    )
    order, engine = (
        mill.process._order,
        cast("Engines", SimpleNamespace(model=model, lanes=4, takes=["init_image"])),
    )
    ready = loaded_worker(order, engine, state=WorkerState.READY, concurrency=6)
    scheduler_config = {"_class_name": "PNDMScheduler", "steps_offset": 1, "_use_default_values": []}
    limits = {"scheduler_config": scheduler_config}
    assert ready.defaults == defaults | {"takes": ["init_image"], "limits": limits}
    assert ordered_worker(order).defaults == {}


@pytest.mark.parametrize(
    ("guidance_scale", "cond_width", "jobs"),
    [(7.5, None, 8), (1.0, None, 12), (7.5, 256, 12)],  # the last has its guidance as an input
)
def test_a_worker_holds_jobs_for_the_lanes_that_they_take(
    guidance_scale: float, cond_width: int | None, jobs: int, mill: Mill
) -> None:
    """Eight lanes hold four guided jobs or eight others; two wait, and two are being saved."""
    process: Any = mill.process
    process.engine.lanes = 8
    process.model.defaults["guidance_scale"] = guidance_scale
    process.model.unet.config.time_cond_proj_dim = cond_width
    assert process.concurrency == jobs


def with_input(mill: Mill, data: bytes | None) -> Job:
    """Render a job that begins with a file, which lies in the store if it is given."""
    sha256 = digest(data or b"gone")
    mill.process.images.write("other", b"")  # an empty store is taken for one that is not mounted
    if data is not None:
        mill.process.images.write(input_key(sha256), data)
    options = {"init_image": sha256, "strength": 0.5}
    submission, _ = mill.jobs.add_submission(model="demo", source="test")
    mill.jobs.add_jobs(submission.id, [JobParameters(prompt="x", seed=1, options=options)])
    mill.jobs.cancel(mill.id)
    mill.jobs.open_submission(submission.id)
    for job in mill.jobs.take_for_dispatch("demo", window=1):
        render_job(mill.process, job)
    return mill.jobs.find_job(f"{submission.id}:0")


def test_a_job_gets_the_picture_that_it_begins_with(mill: Mill) -> None:
    """Out of the store by its hash, decoded, and turned as its EXIF data say."""
    made, buffer = Picture.new("RGB", (8, 4), (9, 9, 9)), BytesIO()
    exif = made.getexif()
    exif[0x0112] = 6  # turned by a quarter
    made.save(buffer, "JPEG", exif=exif)
    job = with_input(mill, buffer.getvalue())
    assert job.status is JobStatus.SUCCEEDED, job.error_message
    assert mill.engine.pictures["init_image"].size == (4, 8)
    assert job.image is not None
    with Picture.open(mill.process.settings.images_path / job.image.key) as opened:
        text = read_texts(opened).infotext
    assert "Denoising strength: 0.5" in text
    assert f"Init image hash: {digest(buffer.getvalue())}" in text


def test_a_job_whose_input_is_gone_fails_later_and_says_which(mill: Mill) -> None:
    """It may be brought back, so the job is tried again; what is no picture fails it at once."""
    job = with_input(mill, None)
    assert (job.status, job.failures) == (JobStatus.WAITING, 1)
    assert f"is not in the picture store ({input_key(digest(b'gone'))})" in (job.error_message or "")
    job = with_input(mill, b"no picture")
    assert job.status is JobStatus.FAILED
    assert "The init image of the job cannot be used: it is no picture" in (job.error_message or "")
