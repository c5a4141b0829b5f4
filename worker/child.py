"""`python -m worker.child ORDER`: one device's worker process, as its supervisor starts it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

import structlog
from celery.worker import WorkController, state

from storage.errors import PromptmillError, StaleWorkerError
from storage.queue import broker_url, make_app, queue_name
from storage.worker_options import MAX_LANES
from worker import celery_end
from worker.consuming import Consumption
from worker.exits import Exit
from worker.exposition import snapshot
from worker.introduction import LOOK_AHEAD, SAVING
from worker.live import Live
from worker.logs import configure_logs
from worker.metrics import PROCESS
from worker.orders import DRAIN, METRICS, STOP, parse_order, report
from worker.process import WorkerProcess
from worker.retirement import Retirement
from worker.rota import Rota
from worker.switching import Switcher
from worker.tasks import add_render_task

log = structlog.get_logger()

MOST_JOBS = MAX_LANES + LOOK_AHEAD + SAVING  # that a process can hold at once, whatever its model


def main(arguments: list[str]) -> int:
    """Load the model, consume the queue until told otherwise, end in order; return the exit code."""
    configure_logs()
    process: WorkerProcess | None = None
    try:
        process = WorkerProcess(parse_order(arguments[0]))
        _obey(process)
        report("listening")
        process.load()
        _consume(process)
    except StaleWorkerError:
        return Exit.STALE
    except PromptmillError as error:
        report("failed", message=str(error), exit_code=error.exit_code)
        return error.exit_code
    finally:
        if process is not None:
            process.close()
    if process.gave_up:
        report("failed", message=process.gave_up, exit_code=int(Exit.SURROUNDINGS))
        return Exit.SURROUNDINGS
    return Exit.DONE


def _consume(process: WorkerProcess) -> None:
    """Be a Celery worker on the queue of the model that has its turn: threads pool, prefetch 1."""
    app = make_app(broker_url(process.settings))
    several = len(process.models) > 1
    consumption = Consumption(app, prefetch=process.concurrency) if several else None
    add_render_task(app, process)
    app.set_current()
    app.set_default()  # the pool's threads look the task up in the default app
    celery = WorkController(
        app=app,
        hostname=f"{process.name}.{process.incarnation[:8]}"
        if "@" in process.name
        else f"{process.name}@{process.incarnation[:8]}",
        pool_cls="threads",
        # Threads are made as they are needed; how many jobs a model of several gets, the prefetch says.
        concurrency=MOST_JOBS if several else process.concurrency,
        queues=[queue_name(process.model.name)],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=False,
        # Not the signal worker_ready: only Celery's own command line sends it.
        ready_callback=lambda _consumer: report("ready", incarnation=process.incarnation),
    )
    if consumption is not None:
        rota = Rota(process.models, patience=process.model_patience)
        Switcher(process, consumption, rota).start(process.model.name)
    threading.Thread(target=_stop_when_told, args=(process,), name="stopper", daemon=True).start()
    celery.start()


def _stop_when_told(process: WorkerProcess) -> None:
    """Once the process stops, tell Celery; its loop looks at this at least every second."""
    process.stopping.wait()
    state.should_stop = Exit.DONE


def _obey(process: WorkerProcess) -> None:
    """Take orders from the supervisor's pipe; signals sent to this process alone mean drain."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=_drain, args=(process,), name="drain", daemon=True).start()

    def on_drain() -> None:
        report("retiring")  # now: if it crashes on the way, it is not to be started again either
        _drain(process)

    PROCESS.register(Live(process))
    process.retirement = Retirement(on_drain, late=lambda: process.leave(Exit.DONE))
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(process,), name="orders", daemon=True).start()


def _listen(process: WorkerProcess) -> None:
    for line in sys.stdin:
        if line.strip() == DRAIN:
            _drain(process)
        elif line.strip() == METRICS:
            _tell_metrics()
        elif line.strip() == STOP:
            process.leave(Exit.DONE)
    log.warning("the supervisor is gone", action="orphan", pid=os.getpid())
    process.leave(Exit.ORPHAN)


def _tell_metrics() -> None:
    try:
        families = snapshot(PROCESS)
    except Exception:  # a device that cannot say how full it is must not keep orders from being heard
        log.exception("metrics failed", action="metrics")
        families = []  # an answer all the same: whoever waits for one does not ask again
    report("metrics", families=families)


def _drain(process: WorkerProcess) -> None:
    celery_end.finish(process, leave=lambda: process.leave(Exit.DONE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
