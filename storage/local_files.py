"""Pictures in a folder of this machine: written whole or not at all, removed with what lies beside them."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

# What stays free on a local disk, since the database that lies there needs room, too: bytes, or a hundredth
# of a small disk.
RESERVE, SHARE = 64 * 2**20, 100
TRIES = 5  # at a folder that somebody else writes or deletes in meanwhile


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: not even a power cut leaves half of it; OSError as it comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if room_below(path.parent) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the row must never promise a file that a power cut can empty
        temporary.replace(path)
    except BaseException:  # also an interrupt: no half file stays
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name has to survive a power cut, too
    finally:
        os.close(folder)


def remove_tree(folder: Path, *, root: Path) -> None:
    """Remove a folder with all that is in it, then those above it, up to `root`, that are empty now.

    Raises:
        FileNotFoundError: when there is no such folder.
        OSError: as it comes.
    """
    for left in reversed(range(TRIES)):
        try:
            shutil.rmtree(folder)
            break
        except OSError:
            # A late worker deletes or writes his own file in here just now.
            if not left or not folder.is_dir():
                raise
    _remove_empty(folder.parent, root)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove folders that nothing is left in, from `folder` up to the store's root, which stays."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # something is in it, or somebody writes into it just now
            return
        folder = folder.parent


def room_below(folder: Path) -> int:
    """Return the bytes that pictures may take where a folder lies, or will lie."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.free - min(RESERVE, usage.total // SHARE)
