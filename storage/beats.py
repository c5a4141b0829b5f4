"""A supervisor's sign of life on its own machine: a small file in the home, for probes of containers.

Not the database: a probe that asked it would let all workers be killed when only the database is down.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UnreachableError
from storage.settings import Settings, ensure_home

BEAT = 1.0  # seconds between two beats
FRESH = (
    30.0  # seconds without one after which a supervisor hangs; a database that is down may keep it for some
)
_SIZE = 200  # bytes, always the same: written in place, so that a full disk takes no sign of life away


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a supervisor of this host last said.

    Attributes:
        pid: its process.
        age: seconds since then.
        devices: how many worker processes it looks after, and `ready` how many of them render.
        draining: whether it takes nothing new.
    """

    pid: int
    age: float
    devices: int
    ready: int
    draining: bool

    @property
    def fresh(self) -> bool:
        """Whether it is young enough to count; the clock begins anew when a machine starts."""
        return 0 <= self.age < FRESH


def beats_path(settings: Settings) -> Path:
    """Return the folder of the beats; may be deleted while no supervisor runs."""
    return settings.home / "supervisors"


class SupervisorBeat:
    """The file of this process, locked while it lives; without a home that can be written, there is none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = beats_path(settings) / f"{socket.gethostname()}-{os.getpid()}.json"
        self._file: int | None = None
        self._due = 0.0

    def beat(self, *, devices: int, ready: int, draining: bool) -> None:
        """Write that this process lives, and what of its workers; at most once a second."""
        # Monotonic: no jump of the wall clock kills a worker. It is one clock for all processes of a machine.
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + BEAT
        said = {"at": now, "pid": os.getpid(), "devices": devices, "ready": ready, "draining": draining}
        with suppress(OSError, UnreachableError):
            if self._file is None:
                ensure_home(self._settings, self._path.parent)
                _forget_the_dead(self._settings)
                self._file = _locked(self._path, os.O_RDWR | os.O_CREAT)
            if self._file is not None:
                os.pwrite(self._file, json.dumps(said).ljust(_SIZE).encode(), 0)

    def close(self) -> None:
        """Take the file away."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)


def read_beats(settings: Settings) -> list[Beat]:
    """Return the last beats of the supervisors of this home that live, on this host."""
    found = []
    for path in _files(settings):
        if not _is_held(path):
            continue  # one that was killed leaves its file
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_bytes())
            found.append(
                Beat(
                    pid=int(said["pid"]),
                    age=time.monotonic() - float(said["at"]),
                    devices=int(said["devices"]),
                    ready=int(said["ready"]),
                    draining=bool(said["draining"]),
                )
            )
    return found


def _files(settings: Settings) -> list[Path]:
    return sorted(beats_path(settings).glob(f"{socket.gethostname()}-*.json"))


def _is_held(path: Path) -> bool:
    """Whether a process has the file locked; a pid says nothing, since another process may have it by now."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two probes at once are no supervisor. A new one that meets it tries again at its next beat.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _locked(path: Path, flags: int) -> int | None:
    """Open a file and lock it; None where another process has it, or has just taken it away.

    Raises:
        OSError: when it cannot be opened, or this file system has no locks.
    """
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None


def _forget_the_dead(settings: Settings) -> None:
    """Take away the files of killed supervisors, each while it is locked: nobody can be about to use it."""
    for path in _files(settings):
        with suppress(OSError):
            file = _locked(path, os.O_RDWR)
            if file is not None:
                path.unlink(missing_ok=True)
                os.close(file)
