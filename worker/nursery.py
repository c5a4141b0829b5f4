"""The supervisor's children: start them, hear them, restart them with backoff, release what they held."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

import structlog

from storage.devices import Device
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.worker_options import WorkerOptions
from worker.exits import FINAL, ORDERLY
from worker.exposition import ANSWER_TIMEOUT, Counted, Families
from worker.metrics import RESTARTS, TAKEOVERS
from worker.orders import ENVIRONMENT, METRICS, STOP, ChildOrder, read_event

log = structlog.get_logger()

BACKOFF_BASE, BACKOFF_LIMIT = 0.5, 30.0  # seconds before a crashed process is started again
STEADY_AFTER = 60.0  # seconds of a life that got ready, after which a crash counts as the first one again
STILLBORN = 2  # crashes before it was ever ready, after which one more ends the supervisor
STOP_TIMEOUT = 15.0  # seconds between `stop` and SIGKILL
HEARING_TIMEOUT = 2.0  # seconds for the rest of the output of a process that has ended


class Child:
    """One device's worker process through all its incarnations.

    Attributes:
        ready, was_ready: whether this incarnation, or any, has loaded its model.
        killed: whether this incarnation did not stop when told, and was killed.
        retiring: whether `worker drain` has asked this process to end for good.
        message: what this incarnation said about its end.
        counted: what this incarnation has counted, for Prometheus.
    """

    def __init__(self, options: WorkerOptions, device: Device, name: str) -> None:
        self._options = options
        self._device = device
        self.name = name
        self._process: subprocess.Popen[str] | None = None
        self._born = 0.0
        self._told: str | None = None
        self._told_at = 0.0
        self._hearing: threading.Thread | None = None
        self._sending = threading.Lock()
        self.counted = Counted()
        self.incarnation = ""
        self.crashes = 0
        self.not_before = 0.0
        self.listening = False
        self.ready = False
        self.was_ready = False
        self.retiring = False
        self.killed = False
        self.message = ""

    def start(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Start another incarnation."""
        self.incarnation = uuid.uuid4().hex
        order = ChildOrder(
            options=self._options, device=self._device.kind, incarnation=self.incarnation, name=self.name
        )
        environment = {**ENVIRONMENT, **os.environ, **self._device.environment}
        self._process = subprocess.Popen(  # noqa: S603  (our own command line)
            order.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._born = time.monotonic()
        self._told = None
        self.listening = False
        self.ready = False
        self.killed = False
        self.message = ""
        self.counted.forget()
        assert self._process.stdout is not None  # noqa: S101  (we asked for the pipe)
        self._hearing = threading.Thread(
            target=self._hear, args=(self._process.stdout, on_event), daemon=True
        )
        self._hearing.start()

    def _hear(self, lines: IO[str], on_event: Callable[[dict[str, Any]], None]) -> None:
        with lines:
            for line in lines:
                event = read_event(line)
                if event is None:
                    log.warning("unexpected output", action="hear", line=line.strip()[:200])
                    continue
                self.listening = True
                if event["event"] == "ready":
                    self.ready = self.was_ready = True
                if event["event"] == "retiring":
                    self.retiring = True
                    continue
                if event["event"] == "metrics":
                    self.counted.hear(event["families"])
                elif event["event"] == "failed":
                    self.message = str(event.get("message"))
                else:
                    on_event(event)

    def tell(self, order: str) -> None:
        """Send `drain` or `stop`; a repeated order is sent once."""
        if self._process is None or self._told in (order, STOP):
            return
        self._told, self._told_at = order, time.monotonic()
        self._send(order)

    def ask(self) -> None:
        """Ask what it has counted; from any thread."""
        if self.listening:
            self.counted.ask(lambda: self._send(METRICS))

    def _send(self, line: str) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            with self._sending:
                process.stdin.write(line + "\n")
                process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is going already

    @property
    def alive(self) -> bool:
        """Whether a process is there."""
        return self._process is not None

    def ended(self) -> int | None:
        """Return the exit code if the process has ended, once; SIGKILL one that does not stop."""
        if self._process is None:
            return None
        # One that still imports its libraries hears nothing yet, and has nothing to give back.
        deaf = self._told is not None and not self.listening
        if deaf or (self._told == STOP and time.monotonic() - self._told_at > STOP_TIMEOUT):
            self.killed = True
            self._process.kill()
        code = self._process.poll()
        if code is None:
            return None
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # what was not read is of no use any more
                self._process.stdin.close()
        if self._hearing is not None:
            self._hearing.join(timeout=HEARING_TIMEOUT)  # its last words say why it ended
        self._process = None
        self.counted.forget()
        if self.ready and time.monotonic() - self._born > STEADY_AFTER:
            self.crashes = 0  # only a life that rendered: a large model may take longer than that to fail
        return code

    def back_off(self) -> float:
        """Count a crash and return the seconds until the next start."""
        pause = min(BACKOFF_LIMIT, BACKOFF_BASE * 2.0 ** min(self.crashes, 16))
        self.crashes += 1
        self.not_before = time.monotonic() + pause
        return pause


class Nursery:
    """All worker processes of one supervisor.

    Attributes:
        failure: the sentence and exit code of what made the supervisor give up; None after an orderly end.
    """

    def __init__(
        self,
        options: WorkerOptions,
        devices: list[Device],
        jobs: JobStore,
        *,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        names = [name] if len(devices) == 1 else [f"{name}-{number}" for number in range(len(devices))]
        self._children = [Child(options, device, own) for device, own in zip(devices, names, strict=True)]
        self._jobs = jobs
        self._on_event = on_event
        self._leaving = False
        self._unreleased: dict[str, bool] = {}
        self.failure: tuple[str, int] | None = None

    def start(self) -> None:
        """Start every device's first incarnation."""
        for child in self._children:
            self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start(self._on_event)
        except OSError as error:  # no memory or no process number left: a fault that passes
            pause = child.back_off()
            log.error("cannot start", action="start", reason=str(error), seconds=pause)  # noqa: TRY400

    @property
    def over(self) -> bool:
        """Whether all children are gone and none will be started again."""
        retiring = all(child.retiring for child in self._children)
        return (self._leaving or retiring) and not any(child.alive for child in self._children)

    @property
    def ready(self) -> int:
        """How many worker processes have loaded their model."""
        return sum(child.alive and child.ready for child in self._children)

    def tell(self, order: str) -> None:
        """Send an order to all; nobody is started again after it."""
        self._leaving = True
        for child in self._children:
            child.tell(order)

    def metrics(self) -> dict[str, Families]:
        """Return what each worker process has counted, by its worker's name; none that has left for good."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        asked = [child for child in self._children if child.alive or not (child.retiring or self._leaving)]
        for child in asked:
            child.ask()
        return {child.name: child.counted.wait(deadline) for child in asked}

    def look(self) -> None:
        """See who has ended, free their jobs at once, and start again whose time has come."""
        for child in self._children:
            code = child.ended()
            if code is not None:
                # One that we had to kill did not crash: its jobs are above suspicion.
                self._unreleased[child.incarnation] = code not in ORDERLY and not child.killed
                self._judge(child, code)
            elif (
                not (child.alive or child.retiring or self._leaving) and time.monotonic() >= child.not_before
            ):
                self._start(child)
        self._release()

    def _judge(self, child: Child, code: int) -> None:
        if self._leaving:
            return
        if child.retiring:
            log.info("worker process drained", action="retire", incarnation=child.incarnation)
            return
        # One that was ready before and now cannot even load meets a passing fault, e.g. of the database.
        if code in FINAL and (child.ready or not child.was_ready):
            self.failure = (child.message or f"A worker process ended by itself with exit code {code}.", code)
            self.tell(STOP)
            return
        if child.crashes >= STILLBORN and not child.was_ready:
            times = f"{STILLBORN + 1} times before it was ready"
            self.failure = (f"The worker process died {times}, last with exit code {code}; see its log.", 3)
            self.tell(STOP)
            return
        RESTARTS.inc()
        pause = child.back_off()
        log.error("worker process died", action="restart", code=code, reason=child.message, seconds=pause)
        self._on_event({"event": "restarting", "exit_code": code, "seconds": pause})

    def _retire_if_asked(self, incarnation: str) -> None:
        """Do not start one again that `worker drain` has asked to end and that died before it heard of it."""
        asked = any(
            worker.incarnation == incarnation and worker.drain_timeout is not None
            for worker in self._jobs.workers()
        )
        for child in self._children:
            child.retiring |= asked and child.incarnation == incarnation

    def _release(self) -> None:
        """Free the jobs of the dead; what the database cannot take now, the next look or a reaper does."""
        for incarnation, crashed in list(self._unreleased.items()):
            try:
                freed = self._jobs.release_incarnation(incarnation, crashed=crashed)
                self._retire_if_asked(incarnation)
            except UnreachableError as error:
                log.warning(
                    "cannot release jobs yet", action="release", incarnation=incarnation, reason=str(error)
                )
                return
            del self._unreleased[incarnation]
            TAKEOVERS.inc(freed if crashed else 0)
            if freed:
                log.info("released jobs", action="release", incarnation=incarnation, jobs=freed)
