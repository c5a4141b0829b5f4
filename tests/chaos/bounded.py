"""A run in a process of its own, so that one that hangs or breaks ends neither the others nor the table."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

from tests.chaos.plan import Plan

GRACE = 120.0  # seconds that a run which was interrupted has to stop its farm and to keep its folder


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run has come to, for the table.

    Attributes:
        recovered: seconds from each kill to the next picture of the killed worker's jobs.
        outlived: likewise, from each freeze.
        references: hash of the picture of each prompt.
    """

    plan: Plan
    jobs: int
    seconds: float
    injected: int = 0
    left_out: int = 0
    attempts: int = 0
    leftovers: int = 0
    recovered: list[float] = field(default_factory=list)
    outlived: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)


class BoundedRun:
    """One run that has been started.

    Args:
        plan: what happens.
        jobs: how many.
        limit: seconds, after which it is ended.
        run: does it, in a folder, and tells.
        keep: where to put the folder of a run that had to be killed; others keep it themselves.
    """

    def __init__(
        self, plan: Plan, jobs: int, run: Callable[[Path], Told], *, limit: float, keep: Path | None
    ) -> None:
        self.plan, self._jobs, self._limit, self._keep = plan, jobs, limit, keep
        self.folder = Path(tempfile.mkdtemp(prefix="pm-"))
        self._began = time.monotonic()
        context = multiprocessing.get_context("fork")  # the servers are there already
        self.answer, there = context.Pipe(duplex=False)
        self._process: ForkProcess = context.Process(target=_tell, args=(run, self.folder, there))
        self._process.start()
        there.close()

    @property
    def left(self) -> float:
        """Seconds until its limit."""
        return max(0.0, self._began + self._limit - time.monotonic())

    def result(self) -> Told:
        """Wait until it has ended or its limit is reached, leave nothing of it, and return what it told."""
        said: Told | str = f"it did not end within {self._limit:.0f} s"
        with contextlib.suppress(EOFError):
            if self.answer.poll(self.left):
                said = "it broke off; its traceback was written"
                said = self.answer.recv()
        self.end()
        if isinstance(said, Told):
            return said
        seconds = time.monotonic() - self._began
        return Told(plan=self.plan, jobs=self._jobs, seconds=seconds, wrong=[said])

    def end(self) -> None:
        """End it if it goes on, first as Ctrl-C does, and whatever is left of it."""
        if self._process.exitcode is None and self._process.pid:
            self._process.join(1)
        if self._process.exitcode is None and self._process.pid:
            os.kill(self._process.pid, signal.SIGINT)
            self._process.join(GRACE)
        killed = self._process.exitcode is None
        self._process.kill()
        self._process.join()
        self.answer.close()
        _kill_all_below(self.folder)
        if killed and self._keep is not None:
            shutil.copytree(self.folder, self._keep / f"seed-{self.plan.seed}", ignore=NO_SOCKETS)
        for disk in self.folder.glob("*/disk"):
            if disk.is_mount():
                subprocess.run(["umount", "-l", str(disk)], check=False)  # noqa: S607 - the system's own
        shutil.rmtree(self.folder, ignore_errors=True)


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
NO_SOCKETS = shutil.ignore_patterns("*.sock", "pg")


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    for number in _INTERRUPTS:  # what is being cleaned up then is not to be interrupted
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _tell(run: Callable[[Path], Told], folder: Path, answer: Connection) -> None:
    for number in _INTERRUPTS:
        signal.signal(number, _interrupted)
    try:
        answer.send(run(folder))
    except KeyboardInterrupt:
        sys.exit(130)  # its limit is reached; who has set it knows that


def _kill_all_below(folder: Path) -> None:
    """Kill every process that works in a folder, by its environment or its command line."""
    mark = str(folder).encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes() or mark in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
