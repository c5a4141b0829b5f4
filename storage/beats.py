"""A supervisor's sign of life on its own machine: a small file in the home, for probes of containers.

Not the database: a probe that asked it would let all workers be killed when only the database is down.
"""

from __future__ import annotations

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
    """The file of this process; a home that cannot be written costs nothing but what probes find."""

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
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, json.dumps(said).ljust(_SIZE).encode(), 0)

    def close(self) -> None:
        """Take the file away."""
        if self._file is not None:
            os.close(self._file)
            self._path.unlink(missing_ok=True)


def read_beats(settings: Settings) -> list[Beat]:
    """Return the last beats of the supervisors of this home whose processes are there, on this host."""
    found = []
    for path in sorted(beats_path(settings).glob(f"{socket.gethostname()}-*.json")):
        try:
            said = json.loads(path.read_bytes())
            pid = int(said["pid"])
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # one that was killed leaves its file
        except PermissionError:
            pass  # a process of somebody else's is one
        found.append(
            Beat(
                pid=pid,
                age=time.monotonic() - float(said["at"]),
                devices=int(said["devices"]),
                ready=int(said["ready"]),
                draining=bool(said["draining"]),
            )
        )
    return found
