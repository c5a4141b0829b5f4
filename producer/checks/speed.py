"""How fast the home's disk and the picture store are: small trials of a second each."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from producer.checks.finding import BROKEN, OK, WARNING, Verdict
from producer.output import size_of
from producer.session import Session

PIECE = 2**20  # bytes: a picture, about
PIECES = 16
ENOUGH = 1.0  # seconds after which no further piece is tried
SLOW_COMMIT = 0.25  # seconds of a flush, from which on every commit of every worker is in the way of others
SLOW_PICTURE = 2.0  # seconds
REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "beegfs", "ceph", "fuse.glusterfs"}
)


def home_speed(session: Session) -> Verdict:
    """How long a flush to the home's disk takes, which every commit to SQLite waits for."""
    folder = session.settings.home
    kind = file_system_of(folder)
    if kind in REMOTE and not session.settings.database_url:
        return BROKEN, (
            f"{folder} is on {kind}, where SQLite's locks cannot be relied on; "
            f"set PROMPTMILL_HOME to a local disk"
        )
    path = folder / f"doctor-{secrets.token_hex(8)}.tmp"
    piece = secrets.token_bytes(PIECE)
    try:
        with path.open("xb") as file:

            def write() -> None:
                file.write(piece)
                file.flush()
                os.fsync(file.fileno())

            times = _timed(write)
    except OSError as error:
        return BROKEN, f"{folder} cannot be written: {error.strerror}; set PROMPTMILL_HOME elsewhere"
    finally:
        path.unlink(missing_ok=True)
    middle = sorted(times)[len(times) // 2]
    said = f"{_rate(times)} in pieces of {size_of(PIECE)}, each flushed in {middle * 1000:.0f} ms"
    said += f" ({kind})" if kind else ""
    if middle > SLOW_COMMIT and not session.settings.database_url:
        return WARNING, f"{said}: every commit waits for that; take another disk, or PostgreSQL"
    return OK, said


def store_speed(session: Session) -> Verdict:
    """How fast pictures are written and read."""
    keys = [f"doctor-{secrets.token_hex(8)}.tmp" for _ in range(PIECES)]
    piece = secrets.token_bytes(PIECE)
    written, left = [], list(keys)

    def write() -> None:
        key = left.pop()
        written.append(key)
        session.images.write(key, piece)

    try:
        times = _timed(write)
        unread = list(written)
        reads = _timed(lambda: _check(session.images.read(unread.pop()), piece), most=len(unread))
    finally:
        for key in written:
            session.images.delete(key)
    slowest = max(times)
    said = f"writes {_rate(times)}, reads {_rate(reads)}, in pieces of {size_of(PIECE)}"
    if slowest > SLOW_PICTURE:
        return WARNING, f"{said}; one took {slowest:.1f} s, which keeps a worker's next jobs waiting"
    return OK, said


def _check(found: bytes, piece: bytes) -> None:
    if found != piece:
        raise ValueError("the store gives back other bytes than it was given")


def _timed(action: Callable[[], None], *, most: int = PIECES) -> list[float]:
    """Do it again and again for a second, and return how long each time took."""
    times: list[float] = []
    while len(times) < most and sum(times) < ENOUGH:
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return times


def _rate(times: list[float]) -> str:
    return f"{size_of(int(PIECE * len(times) / max(sum(times), 1e-6)))}/s"


def file_system_of(path: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the kind of file system that a path is on, such as `ext4`; None where Linux does not say it.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    found: tuple[int, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:  # noqa: PLR2004  (the mount point is the fifth)
            continue
        point = fields[4].encode().decode("unicode_escape")
        if path.is_relative_to(point) and (found is None or len(point) >= found[0]):
            found = (len(point), after.split()[0])
    return None if found is None else found[1]
