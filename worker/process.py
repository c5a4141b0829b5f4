"""One worker process: its model and engine, its row and heartbeat, the jobs it holds.

`worker.tasks` works with it; `worker.child` starts it under a supervisor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NoReturn

import structlog

from storage.embedded_redis import EmbeddedRedis
from storage.errors import StaleWorkerError, UnreachableError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.model_families import way_of
from storage.models import parse_model
from storage.records import Claim, Refusal, WorkerState
from storage.settings import Settings, load_settings
from storage.stores import open_image_store, open_job_store
from worker.coalescing.engines import Engines
from worker.company import Company
from worker.engine.request import RenderResult
from worker.engine.ticket import Ticket
from worker.exits import Exit
from worker.heartbeat import Heartbeat
from worker.inputs import read_pictures
from worker.introduction import loaded_worker, ordered_worker
from worker.loading import open_engine
from worker.models.device import dtype_name
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.orders import ChildOrder
from worker.retirement import Retirement
from worker.surroundings import Surroundings
from worker.version import check_version

log = structlog.get_logger()

SAVING = 2  # jobs that may be encoded and written while the engine renders others
LOOK_AHEAD = 2  # jobs that wait in the engine, so that freed lanes are filled at once


class WorkerProcess:
    """Everything that a task needs, in one place.

    Attributes:
        jobs, images: the stores.
        engine: set by `load`.
        company: lets suspects render alone.
        retirement: what happens when `worker drain` asks; set by who started this process, ahead of `load`.
        surroundings: patience with stores.
        incarnation: id of this life.
    """

    engine: Engines
    model: LoadedModel | LoadedPipeline
    retirement: Retirement

    def __init__(self, order: ChildOrder) -> None:
        self._order = order
        self._reference = parse_model(order.options.model)
        self._settings: Settings = load_settings()
        self.incarnation = order.incarnation
        self.jobs: JobStore = open_job_store(self._settings)
        self.images: ImageStore = open_image_store(self._settings)
        self.company = Company()
        self.stopping = threading.Event()
        self.surroundings = Surroundings(self.stopping, self._note)
        self.gave_up: str | None = None
        self._redis = None if self._settings.redis_url else EmbeddedRedis(self._settings, starts=False)
        self._state = WorkerState.STARTING
        self._held: dict[int, Ticket | None] = {}
        self._held_lock = threading.Lock()
        self._heartbeat = Heartbeat(
            self.jobs,
            self.incarnation,
            progress=self._progress,
            lanes_used=self._lanes_used,
            drop=self._drop,
            stray=self._give_back_stray,
            drain=self._told_to_drain,
            stale=self._stale,
        )

    @property
    def settings(self) -> Settings:
        """The settings that this process started with."""
        return self._settings

    @property
    def model_name(self) -> str:
        """The name that jobs and the queue carry."""
        return self._reference.name

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._order.name

    @property
    def concurrency(self) -> int:
        """How many jobs this process holds at once: in lanes, waiting for lanes, and being saved.

        For jobs that are guided as the model recommends; of a guided model's jobs without guidance, 16 lanes
        get 12.
        """
        # Lanes that most of the model's jobs take. A worker that holds many more jobs than it has lanes for
        # would keep them from others at the end of a list, and make suspects of them all if it crashed.
        return max(1, self.engine.lanes // self.engine.lanes_per_job) + LOOK_AHEAD + SAVING

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
        options = self._order.options
        self.jobs.add_worker(ordered_worker(self._order))
        self._heartbeat.start()
        self.engine = open_engine(self._order, self._settings, tunings=self.jobs, on_death=self._engine_died)
        self.model = self.engine.model
        self.engine.start()
        if self._state is WorkerState.STARTING:  # it may have been told to drain meanwhile
            self._state = WorkerState.READY
        self.jobs.add_worker(
            loaded_worker(self._order, self.engine, state=self._state, concurrency=self.concurrency)
        )
        log.info(
            "worker ready",
            action="ready",
            model=self._reference.name,
            family=self.model.family,
            way=way_of(self.model.family),
            revision=self.model.revision[:12],
            device=str(self.model.device),
            dtype=dtype_name(self.model.dtype),
            layout=self.model.layout,
            lanes=self.engine.lanes,
            threads=self.engine.numerics["threads"],
            mode=options.mode,
        )

    def drain(self) -> None:
        """Take nothing new, give back what has not begun, finish the rest."""
        self._state = WorkerState.DRAINING
        self._note(None)
        self.engine.release_waiting()

    def close(self) -> None:
        """End in order: every job is given back, the row says stopped, Redis loses a user."""
        self.stopping.set()
        self._heartbeat.stop()
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

        Suspects are claimed alone, all others in company.
        """
        self.surroundings.wait_until_well()
        with self.company.together():
            claim = self._claim(job, alone=False)
            if isinstance(claim, Claim):
                with self._holding(claim):
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
            with self._holding(claim):
                yield claim

    def render(self, claim: Claim) -> Future[RenderResult]:
        """Hand a claimed job to the engine; one that was cancelled meanwhile is dropped at its next step."""
        ticket = self.engine.submit(claim.parameters, pictures=read_pictures(self, claim.parameters))
        with self._held_lock:
            dropped = claim.job not in self._held
            if not dropped:
                self._held[claim.job] = ticket
        if dropped:
            ticket.cancel()
        return ticket.future

    def _claim(self, job: int, *, alone: bool) -> Claim | Refusal:
        if self.stopping.is_set():
            return Refusal.GONE
        return self.surroundings.patiently(
            lambda: self.jobs.claim(job, self.incarnation, defaults=self.model.defaults, alone=alone),
            what="claim",
            forever=True,
        )

    @contextmanager
    def _holding(self, claim: Claim) -> Iterator[None]:
        with self._held_lock:
            self._held[claim.job] = None
        try:
            yield
        finally:
            with self._held_lock:
                self._held.pop(claim.job, None)

    # What the heartbeat asks and says

    def _progress(self) -> dict[int, float]:
        with self._held_lock:
            return {job: ticket.progress if ticket else 0.0 for job, ticket in self._held.items()}

    def _lanes_used(self) -> int:
        return self.engine.lanes_used if hasattr(self, "engine") else 0

    def _told_to_drain(self, timeout: float) -> None:
        log.info("told to drain", action="drain", seconds=timeout)
        self.retirement.ask(timeout)

    def _drop(self, job: int) -> None:
        with self._held_lock:
            ticket = self._held.pop(job, None)
        if ticket is not None:
            log.info("dropped", action="drop", job=job)
            ticket.cancel()

    def _give_back_stray(self, job: int) -> None:
        if self.jobs.release_stray(job, self.incarnation):
            log.warning("gave back a job that nobody held", action="stray", job=job)

    def _stale(self, error: StaleWorkerError) -> None:
        log.error(str(error), action="stale", incarnation=self.incarnation)
        self.leave(Exit.STALE)

    def _engine_died(self, error: BaseException) -> None:
        log.error("engine died", action="engine_died", reason=str(error))
        os._exit(Exit.ENGINE)  # no release: the supervisor makes these jobs suspects

    def _note(self, note: str | None) -> None:
        try:
            self.jobs.set_worker_state(self.incarnation, self._state, note=note)
        except UnreachableError as error:
            log.debug("note lost", action="note", reason=str(error))
