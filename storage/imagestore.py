"""The picture store: any fsspec URL, written so that a reader never sees half a file.

A key is a path below the store's root, made by `picture_key`; nothing that comes from outside can leave it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path
from typing import Any, Protocol

from storage.errors import BadInputError, StoreFullError, UnreachableError

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ImageStore(Protocol):
    """Where pictures rest."""

    def write(self, key: str, data: bytes) -> None:
        """Store `data` under `key` atomically: afterwards it is there whole, or not at all.

        Raises:
            StoreFullError: no space left.
            UnreachableError: any other fault of the store.
            BadInputError: a key that would leave the root.
        """
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes under `key`; UnreachableError if it is missing or cannot be read."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key` and what a killed write of it left; nothing happens if neither is there."""
        ...

    def exists(self, key: str) -> bool:
        """Whether something is stored under `key`."""
        ...


def picture_key(submission: str, index: int, attempt: int, *, suffix: str = "png") -> str:
    """Return the key of one attempt's picture, so that no attempt can overwrite another's file."""
    tail = "" if attempt <= 1 else f"-{attempt}"
    return f"{submission}/{index // 1000:04d}/{index:06d}{tail}.{suffix}"


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path, else raise BadInputError."""
    if not _KEY.fullmatch(key):
        raise BadInputError(f"{key!r} is no key of a stored picture; keys are relative paths of plain names.")
    return key


class FsspecImageStore:
    """An image store on any fsspec file system.

    Local files are written to a temporary name, flushed to disk and renamed; object stores replace a whole
    object in one PUT anyway.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # noqa: PLC0415  (slow to import, and reading commands need no store)

        self.url = url
        try:
            # Not parsed where it is a folder: `::` in its name would be a chain of file systems.
            local = fsspec.filesystem("file") if url.startswith("file://") else None
            self._files, root = (local, url.removeprefix("file://")) if local else fsspec.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise UnreachableError(f"The picture store {url} cannot be opened: {error}.") from error
        self._root = str(root).rstrip("/")
        self._local = "file" in _protocols(self._files)

    def path(self, key: str) -> str:
        """Return the full path of `key` inside the file system."""
        return f"{self._root}/{check_key(key)}"

    def write(self, key: str, data: bytes) -> None:
        """See `ImageStore.write`."""
        path = self.path(key)
        try:
            if self._local:
                _write_local(Path(path), data)
            else:
                self._files.pipe_file(path, data)
        except Exception as error:
            raise _translated(error, self.url, f"write {key}") from error

    def read(self, key: str) -> bytes:
        """See `ImageStore.read`."""
        path = self.path(key)
        try:
            return bytes(self._files.cat_file(path))
        except Exception as error:
            raise _translated(error, self.url, f"read {key}") from error

    def delete(self, key: str) -> None:
        """See `ImageStore.delete`."""
        path = self.path(key)
        try:
            if self._local:
                for left in Path(path).parent.glob(f".{Path(path).name}.*.part"):
                    left.unlink(missing_ok=True)
            self._files.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as error:
            raise _translated(error, self.url, f"delete {key}") from error

    def exists(self, key: str) -> bool:
        """See `ImageStore.exists`."""
        path = self.path(key)
        try:
            return bool(self._files.exists(path))
        except Exception as error:
            raise _translated(error, self.url, f"look for {key}") from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
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


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _translated(error: Exception, url: str, what: str) -> UnreachableError:
    """Name the store's fault; object stores let errors of their own HTTP libraries through."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return StoreFullError(
            f"The picture store {url} is full: no space left to {what}; free some, then resume."
        )
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
    return UnreachableError(f"The picture store {url} failed to {what}: {reason}.")
