"""One worker process: its models and engines, its row and heartbeat, the jobs it holds.

`worker.tasks` works with it; `worker.child` starts it under a supervisor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import structlog

from storage.embedded_redis import EmbeddedRedis
from storage.errors import StaleWorkerError, UnreachableError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.models import parse_model
from storage.records import Claim, Refusal, WorkerState
from storage.settings import Settings, load_settings
from storage.stores import open_image_store, open_job_store
from worker.coalescing.engines import Engines
from worker.company import Company
from worker.engine.request import RenderResult
from worker.exits import Exit
from worker.gate import Gate
from worker.heartbeat import Heartbeat
from worker.held import Held
from worker.inputs import read_pictures
from worker.introduction import concurrency_of, facts_of, loaded_worker, log_ready, ordered_worker
from worker.metrics import SUSPECTS
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.orders import ChildOrder
from worker.retirement import Retirement
from worker.shelf import Shelf
from worker.surroundings import Surroundings
from worker.timed import timed_images, timed_jobs
from worker.version import check_version

log = structlog.get_logger()


class WorkerProcess:
    """Everything that a task needs, in one place.

    Attributes:
        settings: that this process started with.
        jobs, images: the stores.
        engine, model: what has its turn; not there before `load`, and between two turns.
        models: the names of all that are served.
        shelf: what is loaded of them.
        held: the jobs that it has claimed.
        gate: lets jobs of the model in that has its turn.
        company: lets suspects render alone.
        retirement: what happens when `worker drain` asks; set by who started this process, ahead of `load`.
        heartbeat: says that it lives.
        surroundings: patience with stores.
        incarnation: id of this life.
    """

    engine: Engines
    model: LoadedModel | LoadedPipeline
    retirement: Retirement

    def __init__(self, order: ChildOrder) -> None:
        self._order = order
        self.models = tuple(parse_model(text).name for text in order.options.models)
        self.settings: Settings = load_settings()
        self.incarnation = order.incarnation
        self.jobs: JobStore = timed_jobs(open_job_store(self.settings))
        self.images: ImageStore = timed_images(open_image_store(self.settings))
        self.shelf = Shelf(order, self.settings, tunings=self.jobs, on_death=self.engine_died)
        self.gate = Gate(self.models[0])
        self.company = Company()
        self.stopping = threading.Event()
        self.surroundings = Surroundings(self.stopping, self._note)
        self.gave_up: str | None = None
        self._redis = None if self.settings.redis_url else EmbeddedRedis(self.settings, starts=False)
        self._state = WorkerState.STARTING
        self.held = Held()
        self.heartbeat = Heartbeat(
            self.jobs,
            self.incarnation,
            progress=self.held.progress,
            lanes_used=self._lanes_used,
            drop=self.held.drop,
            stray=self._give_back_stray,
            drain=self._told_to_drain,
            stale=self.stale,
        )

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._order.name

    @property
    def model_patience(self) -> float:
        """Seconds that one of several models may have to wait for its turn."""
        return self._order.options.model_patience

    @property
    def concurrency(self) -> int:
        """How many jobs this process holds at once, of the model that has its turn."""
        return concurrency_of(self.engine)

    # From start to end

    def load(self) -> None:
        """Say that we are here, load the model, start the engine, say that we are ready.

        Raises:
            ModelLoadError: the model cannot be loaded.
            BadInputError: the options cannot be used with this device or model.
            SchemaError: this worker is too old for the database.
        """
        check_version(self.jobs)
        if self._redis is not None:
            self._redis.acquire()
        self.jobs.add_worker(ordered_worker(self._order))
        self.heartbeat.start()
        self.render_with(self.shelf.first())
        log_ready(self.engine, mode=self._order.options.mode)

    def render_with(self, name: str) -> None:
        """Let a model have its turn: load it where it is not loaded, and say so in the worker's row.

        Raises:
            ModelLoadError: the model cannot be loaded.
            BadInputError: the options cannot be used with this device or model.
        """
        if not self.shelf.has(name) and self._state is WorkerState.READY:
            # Loading can keep a heart from beating: a worker that starts has six leases, and holds no jobs.
            self._state = WorkerState.STARTING
            self._note(f"loading model {name}")
        self.engine = self.shelf.take(name)
        self.model = self.engine.model
        if self._state is WorkerState.STARTING:  # it may have been told to drain meanwhile
            self._state = WorkerState.READY
        self.introduce(name)
        if len(self.models) > 1:
            self.gate.open(name, places=self.concurrency)

    def introduce(self, name: str) -> None:
        """Say in the row which model it is for, ahead of a switch the next one, and what is known of all."""
        row = loaded_worker(
            self._order,
            self.engine,
            state=self._state,
            concurrency=self.concurrency,
            models=self.shelf.known,
        )
        if name != self.model.name:
            row = replace(row, **facts_of(self.shelf.known, name))
        self.jobs.add_worker(replace(row, model=name))

    def pause_turns(self) -> bool:
        """End a turn: wait until its jobs have left, and let go of its engine; False if the process ends."""
        if not self.gate.shut(self.stopping) or self.draining:
            return False
        del self.engine, self.model
        return True

    @property
    def draining(self) -> bool:
        """Whether nothing new is to begin."""
        return self._state is WorkerState.DRAINING or self.stopping.is_set()

    def drain(self) -> None:
        """Take nothing new, give back what has not begun, finish the rest."""
        self._state = WorkerState.DRAINING
        self._note(None)
        engine = getattr(self, "engine", None)  # there is none between two turns
        if engine is not None:
            engine.release_waiting()
        if len(self.models) > 1:
            self.gate.close()

    def close(self) -> None:
        """End in order: every job is given back, the row says stopped, Redis loses a user."""
        self.stopping.set()
        self.gate.close()
        self.heartbeat.stop()
        try:
            self.jobs.release_incarnation(self.incarnation, crashed=False)
        except UnreachableError as error:
            log.warning("cannot release jobs, the reaper will", action="release", reason=str(error))
        if self._redis is not None:
            self._redis.release()

    def leave(self, code: Exit) -> NoReturn:
        """End now, whatever other threads do: give every job back in one UPDATE, then exit."""
        try:
            self.close()
        finally:
            os._exit(code)

    def give_up(self, reason: str) -> None:
        """Remember why this process cannot go on; `worker.child` stops it."""
        if not self.stopping.is_set():
            self.gave_up = reason
        self.stopping.set()

    # What tasks do

    @contextmanager
    def claimed(self, job: int) -> Iterator[Claim | None]:
        """Claim a job for the length of a `with`; None if there is nothing to do.

        It waits for its model's turn. Suspects are claimed alone, all others in company.
        """
        model = self._model_of(job)
        if model not in self.models:
            log.error("message rejected", action="reject", model=model)
            yield None
            return
        with self.gate.passing(model) as let_in:
            if not let_in:
                yield None
                return
            with self._claimed(job) as claim:
                yield claim

    def _model_of(self, job: int) -> str | None:
        if len(self.models) == 1:
            return self.models[0]
        return self.surroundings.patiently(lambda: self.jobs.model_of(job), what="look up", forever=True)

    @contextmanager
    def _claimed(self, job: int) -> Iterator[Claim | None]:
        self.surroundings.wait_until_well()
        with self.company.together():
            claim = self._claim(job, alone=False)
            if isinstance(claim, Claim):
                with self.held.holding(claim):
                    yield claim
                return
        if claim is not Refusal.SUSPECT:
            yield None
            return
        with self.company.alone():
            claim = self._claim(job, alone=True)
            if not isinstance(claim, Claim):
                yield None
                return
            SUSPECTS.labels(claim.model).inc()
            with self.held.holding(claim):
                yield claim

    def render(self, claim: Claim) -> Future[RenderResult]:
        """Hand a claimed job to the engine; one that was cancelled meanwhile is dropped at its next step."""
        pictures = read_pictures(self, claim.parameters)
        ticket = self.engine.submit(claim.parameters, priority=claim.priority, pictures=pictures)
        self.held.submitted(claim.job, ticket)
        return ticket.future

    def _claim(self, job: int, *, alone: bool) -> Claim | Refusal:
        if self.stopping.is_set():
            return Refusal.GONE
        return self.surroundings.patiently(
            lambda: self.jobs.claim(job, self.incarnation, defaults=self.model.defaults, alone=alone),
            what="claim",
            forever=True,
        )

    # What the heartbeat asks and says

    def _lanes_used(self) -> int:
        engine = getattr(self, "engine", None)  # there is none between two turns
        return engine.lanes_used if engine is not None else 0

    def _told_to_drain(self, timeout: float) -> None:
        log.info("told to drain", action="drain", seconds=timeout)
        self.retirement.ask(timeout)

    def _give_back_stray(self, job: int) -> None:
        if self.jobs.release_stray(job, self.incarnation):
            log.warning("gave back a job that nobody held", action="stray", job_id=job)

    def stale(self, error: StaleWorkerError) -> None:
        """End at once: what this process still holds is rendered elsewhere."""
        log.error(str(error), action="stale", incarnation=self.incarnation)
        self.leave(Exit.STALE)

    def engine_died(self, error: BaseException) -> None:
        """End at once: what is on the device cannot be trusted."""
        log.error("engine died", action="engine_died", reason=str(error))
        os._exit(Exit.ENGINE)  # no release: the supervisor makes these jobs suspects

    def _note(self, note: str | None) -> None:
        try:
            self.jobs.set_worker_state(self.incarnation, self._state, note=note)
        except UnreachableError as error:
            log.debug("note lost", action="note", reason=str(error))
