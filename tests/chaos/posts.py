"""The workers of a run, kept alive as an init system does: who ends is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from storage.errors import UnreachableError
from storage.records import Job, JobStatus, Worker, WorkerState
from tests.chaos.world import World, faketime

OPTIONS = ("--model", "tiny", "--lanes", "4", "--dtype", "float32", "--drain-timeout", "20")
MOST_RESTARTS = 20  # of supervisors in a run; more are a worker that cannot even start
SLEEP_OVER = 3.0  # seconds past its lease that a frozen process sleeps
THE_CLOCK = "two"  # whose clock can jump


class Posts:
    """Supervisors by name, and the worker processes below them.

    Attributes:
        restarts: how often a supervisor had to be started again.
        stopped: pids of worker processes that are frozen, and since when.
    """

    def __init__(self, world: World, names: tuple[str, ...] = ("one", THE_CLOCK)) -> None:
        self._world = world
        self._clock = world.farm.home.parent / "clock"
        self._clock.write_text("+0")
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.restarts = 0
        self.stopped: dict[int, float] = {}
        for name in names:
            self.start(name)
        self._over = threading.Event()

    def start(self, name: str) -> None:
        """Start a supervisor."""
        library = faketime() if name == THE_CLOCK else None
        own = (
            {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set does not change it either
            }
            if library
            else {}
        )
        self.processes[name] = self._world.farm.start("worker", "start", "--name", name, *OPTIONS, **own)

    def set_clock(self, hours: int) -> bool:
        """Let one worker's clock jump; False where there is no libfaketime."""
        self._clock.write_text(f"{hours:+d}h")
        return faketime() is not None

    def look(self) -> None:
        """Start again what has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                self.restarts += 1
                assert self.restarts < MOST_RESTARTS, self._world.farm.output(process)
                self.start(name)

    def keep_waking(self) -> None:
        """From now on wake who has slept past its lease, in a thread.

        The harness itself may wait just then, for a lock that the sleeper has.
        """
        threading.Thread(target=self._keep_waking, name="waker", daemon=True).start()

    def _keep_waking(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(UnreachableError):  # the harness meets the same outages
                self._wake()

    def _wake(self) -> None:
        now = time.monotonic()
        for worker in self._world.farm.workers():
            if is_frozen(worker.pid):
                self.stopped.setdefault(worker.pid, now)
        for pid, since in list(self.stopped.items()):
            if now - since > self._world.lease + SLEEP_OVER:
                if is_frozen(pid):
                    os.kill(pid, signal.SIGCONT)
                del self.stopped[pid]

    def ready(self) -> list[Worker]:
        """Return the workers that are ready, awake and really there."""
        return [
            worker
            for worker in self._world.farm.workers()
            if worker.state is WorkerState.READY and is_there(worker.pid) and not is_frozen(worker.pid)
        ]

    def starting(self) -> list[Worker]:
        """Return the worker processes that load their model."""
        return [
            worker
            for worker in self._world.farm.workers()
            if worker.state is WorkerState.STARTING and is_there(worker.pid)
        ]

    def stop(self) -> dict[str, int]:
        """Wake everybody, ask all to end in order, and return their exit codes."""
        self._over.set()
        for pid in list(self.stopped):
            if is_frozen(pid):
                os.kill(pid, signal.SIGCONT)
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=120) for name, process in self.processes.items()}


def held_by(world: World, incarnation: str, submissions: list[str]) -> list[Job]:
    """Return the jobs that run under an incarnation."""
    return [
        job
        for submission in submissions
        for job in world.farm.store().jobs(submission, statuses=(JobStatus.RUNNING,))
        if job.incarnation == incarnation
    ]


def is_there(pid: int) -> bool:
    """Whether a process lives."""
    return _state(pid) not in ("", "Z")


def is_frozen(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return _state(pid) == "T"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
