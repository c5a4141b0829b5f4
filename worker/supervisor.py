"""The supervisor: one worker process per device, kept alive; the tick; the signals. Never imports torch."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import structlog

from storage.beats import SupervisorBeat
from storage.devices import list_devices
from storage.embedded_redis import EmbeddedRedis
from storage.errors import SchemaError
from storage.jobstore import JobStore
from storage.metrics_server import metrics_url, serve_metrics
from storage.models import parse_model
from storage.queue import JobQueue, broker_url
from storage.settings import Settings, load_settings
from storage.stores import open_job_store
from storage.worker_options import WorkerOptions
from worker.exposition import Exposition
from worker.nursery import Nursery
from worker.orders import DRAIN, STOP, report
from worker.telling import Teller
from worker.ticking import Ticker

log = structlog.get_logger()

LOOK = 0.1  # seconds between two looks at the worker processes and the signals


class Supervisor:
    """Starts worker processes and looks after them, the queues of their models, and the leases.

    The first signal drains: running jobs finish within `--drain-timeout`. The second stops at once: running
    jobs go back to waiting. With `parent_pipe`, the end of standard input counts as the second.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._models = [parse_model(text).name for text in options.models]
        self._settings: Settings = load_settings()
        self._drain = threading.Event()
        self._stop = threading.Event()
        self._signals = 0
        self._too_old: SchemaError | None = None

    def run(self) -> int:
        """Work until told to stop or until nothing can be done; return the exit code."""
        jobs = open_job_store(self._settings)
        redis = None if self._settings.redis_url else EmbeddedRedis(self._settings)
        try:
            if redis is not None:
                redis.acquire()
            self._listen()
            return self._supervise(jobs, redis)
        finally:
            if redis is not None:
                redis.release()
            jobs.close()

    def _supervise(self, jobs: JobStore, redis: EmbeddedRedis | None) -> int:
        name = self._options.name or f"{'+'.join(self._models)}@{socket.gethostname()}"
        devices = list_devices(self._options.devices)
        nursery = Nursery(self._options, devices, jobs, name=name, on_event=self._tell)
        queues = [JobQueue(broker_url(self._settings), model) for model in self._models]
        ticker = Ticker(
            jobs,
            queues,
            redis,
            lease=self._settings.lease,
            dispatches=lambda: not self._drain.is_set(),
            too_old=self._retire,
        )
        if self._options.metrics_port is not None:
            self._serve_metrics(Exposition(name, nursery.metrics))
        nursery.start()
        models = ", ".join(self._options.models)
        log.info("supervisor started", action="start", model=models, name=name, pid=os.getpid())
        teller = Teller(jobs, lease=self._settings.lease) if self._options.hooks else None
        ticker.start()
        if teller is not None:
            teller.start()
        beat = SupervisorBeat(self._settings)
        deadline: float | None = None
        while not nursery.over:
            self._heed_signals()
            if self._drain.is_set() and deadline is None:
                deadline = time.monotonic() + self._options.drain_timeout
                nursery.tell(DRAIN)
            if self._stop.is_set() or (deadline is not None and time.monotonic() > deadline):
                nursery.tell(STOP)
            nursery.look()
            beat.beat(devices=len(devices), ready=nursery.ready, draining=self._drain.is_set())
            time.sleep(LOOK)
        beat.close()
        ticker.stop()
        if teller is not None:
            teller.stop()
        for queue in queues:
            queue.close()
        return self._farewell(nursery)

    def _serve_metrics(self, exposition: Exposition) -> None:
        host, port = self._options.metrics_host, self._options.metrics_port or 0
        server = serve_metrics(exposition, host=host, port=port)
        log.info("metrics are served", action="metrics", url=metrics_url(server))

    def _retire(self, error: SchemaError) -> None:
        """Finish what runs, since the database was upgraded past this version."""
        if self._too_old is None:
            log.error("too old for the database", action="retire", reason=str(error))
            self._too_old = error
            self._drain.set()

    def _farewell(self, nursery: Nursery) -> int:
        if nursery.failure is None and self._too_old is not None:
            nursery.failure = (str(self._too_old), self._too_old.exit_code)
        if nursery.failure is None:
            log.info("supervisor stopped", action="stop", model="+".join(self._models))
            return 0
        message, code = nursery.failure
        if self._options.parent_pipe:
            report("failed", message=message, exit_code=code)
        else:
            sys.stderr.write(f"Error: {message}\n")
        return code

    def _tell(self, event: dict[str, object]) -> None:
        if self._options.parent_pipe:
            report(**event)  # type: ignore[arg-type]  # an event's facts are keyword arguments by construction

    def _listen(self) -> None:
        """Take over the signals, and the pipe from whoever started us."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self._options.parent_pipe:
            threading.Thread(target=self._watch_parent, name="parent", daemon=True).start()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only counts: an Event that this very thread waits on or sets must not be touched here.
        self._signals += 1
        if not self._options.parent_pipe:
            first = self._signals == 1 and not self._drain.is_set()
            what = "finishing running jobs; once more to stop at once" if first else "stopping"
            os.write(2, f"{signal.Signals(number).name}: {what}\n".encode())

    def _heed_signals(self) -> None:
        if self._signals:
            self._drain.set()
        if self._signals > 1:
            self._stop.set()

    def _watch_parent(self) -> None:
        while os.read(0, 4096):
            pass
        self._drain.set()
        self._stop.set()
