"""A worker started by hand: `celery -A worker.app worker -Q render.NAME -P threads`.

For who runs Celery workers already and has a supervisor of their own (systemd, Kubernetes). The model is
looked up by NAME in PROMPTMILL_MODELS, the concurrency follows from the lanes, and a thread here does a
supervisor's tick. `celery -A worker.app inspect active` and Flower work on it and on promptmill's own
workers; for them this module loads neither torch nor a model.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from celery.worker import state

from storage.embedded_redis import EmbeddedRedis
from storage.errors import BadInputError, PromptmillError
from storage.models import ModelReference, configured_models
from storage.queue import JobQueue, broker_url, make_app
from storage.settings import Settings, load_settings
from storage.strict_transport import QUEUE_PREFIX
from storage.worker_options import WorkerOptions
from worker import celery_end
from worker.exits import Exit
from worker.logs import configure_logs
from worker.orders import ENVIRONMENT, ChildOrder
from worker.retirement import Retirement
from worker.telling import Teller
from worker.ticking import Ticker

if TYPE_CHECKING:
    from worker.process import WorkerProcess  # loads torch

log = structlog.get_logger()


class HandStarted:
    """What one hand-started Celery worker has beside Celery: the worker process and the tick."""

    def __init__(self, settings: Settings, model: ModelReference, *, name: str) -> None:
        self._settings, self._model, self._name = settings, model, name
        self._redis = None if settings.redis_url else EmbeddedRedis(settings)
        self._queue = JobQueue(broker_url(settings), model.name)
        self._ticker: Ticker | None = None
        self._teller: Teller | None = None
        self._closing = threading.Lock()
        self.process: WorkerProcess | None = None

    def load(self) -> WorkerProcess:
        """Load and tune the model, begin to beat and to tick.

        Raises:
            PromptmillError: one sentence says why it cannot.
        """
        from worker.process import WorkerProcess  # noqa: PLC0415  (loads torch)

        atexit.register(self.close)  # whatever ends this process: Celery does not say all of its ends
        if self._redis is not None:
            self._redis.acquire()
        order = ChildOrder(
            options=WorkerOptions(model=str(self._model)),
            device="auto",
            incarnation=uuid.uuid4().hex,
            name=self._name,
        )
        self.process = process = WorkerProcess(order)
        process.retirement = Retirement(
            lambda: celery_end.finish(process, leave=self._leave), late=self._leave
        )
        process.load()
        self._ticker = Ticker(
            process.jobs,
            [self._queue],
            self._redis,
            lease=self._settings.lease,
            dispatches=lambda: not process.stopping.is_set(),
            too_old=lambda error: process.give_up(str(error)),
        )
        self._ticker.start()
        self._teller = Teller(process.jobs, lease=self._settings.lease)
        self._teller.start()
        threading.Thread(target=self._stop_when_told, args=(process,), name="stopper", daemon=True).start()
        return process

    def drain(self, **_: Any) -> None:
        """Take nothing new and give back what has not begun; Celery waits for the rest."""
        if self.process is not None:
            threading.Thread(target=self.process.drain, name="drain", daemon=True).start()

    def close(self, **_: Any) -> None:
        """End in order, once."""
        if not self._closing.acquire(blocking=False):
            return
        if self._ticker is not None:
            self._ticker.stop()
        if self._teller is not None:
            self._teller.stop()
        if self.process is not None:
            self.process.close()
        if self._redis is not None:
            self._redis.release()
        self._queue.close()

    def _leave(self) -> None:
        try:
            self.close()
        finally:
            os._exit(Exit.DONE)

    def _stop_when_told(self, process: WorkerProcess) -> None:
        process.stopping.wait()
        state.should_stop = Exit.SURROUNDINGS if process.gave_up else Exit.DONE


def load_worker(sender: str, options: dict[str, Any], conf: Any, **_: Any) -> None:
    """Become a worker of the one model whose queue Celery was told to consume.

    Args:
        sender: Celery's name of this node, `NAME@HOST`.
        options: Celery's own command line.
        conf: Celery's configuration; gets the concurrency, unless the command line has one.
    """
    configure_logs()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when torch is loaded, which is below
    try:
        settings = load_settings()
        model = _model(options, settings)
        _check_pool(options)
        name = sender if not sender.startswith("celery@") else f"{model.name}@{socket.gethostname()}"
        hand_started = HandStarted(settings, model, name=name)
        process = hand_started.load()
        from worker.tasks import add_render_task  # noqa: PLC0415  (loads torch)

        add_render_task(app, process)
    except PromptmillError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)
    except Exception:  # Celery would log it, go on, and take messages that it has no task for
        log.exception("the worker cannot start", action="load")
        sys.exit(1)
    conf.worker_concurrency = process.concurrency
    signals.worker_shutting_down.connect(hand_started.drain, weak=False)
    signals.worker_shutdown.connect(hand_started.close, weak=False)


def _model(options: dict[str, Any], settings: Settings) -> ModelReference:
    """Return the model of the queue that Celery consumes."""
    queues = options.get("queues") or []
    names = queues.split(",") if isinstance(queues, str) else list(queues)
    if len(names) != 1 or not names[0].startswith(QUEUE_PREFIX):
        raise BadInputError(
            f"A worker serves one model: name its queue, -Q {QUEUE_PREFIX}NAME, and no other "
            f"(not {','.join(names) or 'none'})."
        )
    name = names[0].removeprefix(QUEUE_PREFIX)
    known = configured_models(settings.models)
    if name not in known:
        raise BadInputError(
            f"There is no model {name!r} (known: {', '.join(known)}); configure it in PROMPTMILL_MODELS."
        )
    return known[name]


def _check_pool(options: dict[str, Any]) -> None:
    # A class from the command line, perhaps a name from elsewhere.
    pool = options.get("pool") or options.get("pool_cls")
    name = pool if isinstance(pool, str) else getattr(pool, "__module__", "another")
    if "thread" not in name:
        raise BadInputError(
            f"A worker's jobs share one engine, in one process: start it with -P threads (not {name})."
        )


def _make() -> Any:
    try:
        return make_app(broker_url(load_settings()))
    except PromptmillError as error:
        sys.exit(f"Error: {error}")


app = _make()
signals.celeryd_init.connect(load_worker, weak=False)
