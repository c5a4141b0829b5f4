"""The picture store: any fsspec URL, written so that a reader never sees half a file.

A key is a path below the store's root, made by `picture_key`; nothing that comes from outside can leave it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Protocol

from storage.errors import BadInputError, StoreFullError, UnreachableError
from storage.hints import hint

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What stays free on a local disk, since the database that lies there needs room, too: bytes, or a hundredth
# of a small disk.
RESERVE, SHARE = 64 * 2**20, 100
# Of s3fs: what others write is seen at once, and a server that does not answer is soon given up.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 5,  # seconds
        "read_timeout": 15,
        "retries": {"mode": "standard", "max_attempts": 4},  # with backoff; then the worker's own patience
    },
}


class ImageStore(Protocol):
    """Where pictures rest."""

    @property
    def is_local(self) -> bool:
        """Whether it is a disk of this machine, which several at a time only keep waiting for each other."""
        ...

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

    def link(self, key: str) -> str:
        """Return where other programs find `key`: a folder's path, or the store's URL, with the key."""
        ...

    def free_bytes(self) -> int | None:
        """How many bytes pictures may still take; None where nobody can say."""
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


def open_files(
    url: str, *, what: str = "picture store", setting: str = "PROMPTMILL_STORE_URL"
) -> tuple[Any, str]:
    """Open any fsspec URL, or a folder; return the file system and the path in it, without a last slash.

    Args:
        url: such as `s3://BUCKET/FOLDER`, `file:///FOLDER` or a folder's path.
        what: what it is, for errors.
        setting: where it was said, likewise.

    Raises:
        UnreachableError: when it cannot be opened, or what opens it is not installed.
    """
    import fsspec  # noqa: PLC0415  (slow to import, and reading commands need no store)

    try:
        # Not parsed where it is a folder: `::` in its name would be a chain of file systems.
        if url.startswith("file://"):
            return fsspec.filesystem("file"), url.removeprefix("file://").rstrip("/")
        options = _S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
        files, root = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        extra = "`pip install 'promptmill[s3]'`" if "s3fs" in str(error) else "install what it names"
        raise UnreachableError(
            f"The {what} {url} cannot be opened: {str(error).rstrip('.')}; {extra}."
        ) from error
    except (ValueError, OSError) as error:
        raise UnreachableError(
            f"The {what} {url} cannot be opened: {str(error).rstrip('.')}; check {setting}."
        ) from error
    if options:
        files.retries = 1  # s3fs would do all of botocore's tries five times
    return files, str(root).rstrip("/")


class FsspecImageStore:
    """An image store on any fsspec file system.

    Local files are written to a temporary name, flushed to disk and renamed; object stores replace a whole
    object in one PUT anyway.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._root = open_files(url)
        self._local = "file" in _protocols(self._files)

    @property
    def is_local(self) -> bool:
        """See `ImageStore.is_local`."""
        return self._local

    def free_bytes(self) -> int | None:
        """See `ImageStore.free_bytes`; object stores have no end."""
        if not self._local:
            return None
        try:
            return _room_below(Path(self._root))
        except OSError as error:
            raise translated(error, self.url, "say how much space is free") from error

    def path(self, key: str) -> str:
        """Return the full path of `key` inside the file system."""
        return f"{self._root}/{check_key(key)}"

    def link(self, key: str) -> str:
        """See `ImageStore.link`."""
        return self.path(key) if self._local else f"{self.url.rstrip('/')}/{check_key(key)}"

    def write(self, key: str, data: bytes) -> None:
        """See `ImageStore.write`."""
        path = self.path(key)
        try:
            if self._local:
                _write_local(Path(path), data)
            else:
                self._files.pipe_file(path, data)
        except Exception as error:
            raise translated(error, self.url, f"write {key}") from error

    def read(self, key: str) -> bytes:
        """See `ImageStore.read`."""
        path = self.path(key)
        try:
            # What fsspec does around a local file takes longer than a small picture.
            return Path(path).read_bytes() if self._local else bytes(self._files.cat_file(path))
        except Exception as error:
            raise translated(error, self.url, f"read {key}") from error

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
            raise translated(error, self.url, f"delete {key}") from error

    def exists(self, key: str) -> bool:
        """See `ImageStore.exists`."""
        path = self.path(key)
        try:
            return bool(self._files.exists(path))
        except Exception as error:
            raise translated(error, self.url, f"look for {key}") from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _room_below(path.parent) < len(data):
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


def _room_below(folder: Path) -> int:
    """Return the bytes that pictures may take where a folder lies, or will lie."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.free - min(RESERVE, usage.total // SHARE)


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


# What S3 and its libraries say, and what to do about it.
_HINTS = (
    (
        re.compile(r"bucket does not exist|NoSuchBucket"),
        "create the bucket, or check PROMPTMILL_STORE_URL",
    ),
    (
        re.compile(r"credentials|[Aa]ccess ?[Dd]enied|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden"),
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do",
    ),
    (
        re.compile(r"connect to the endpoint|Connect timeout|[Cc]annot connect"),
        "start the server, or check AWS_ENDPOINT_URL",
    ),
    (
        re.compile(r"Permission denied|Read-only file system|^write .*(No such file|Not a directory)"),
        "let this user write there, or choose another PROMPTMILL_STORE_URL",
    ),
)


def translated(
    error: Exception,
    url: str,
    doing: str,
    *,
    what: str = "picture store",
    setting: str = "PROMPTMILL_STORE_URL",
) -> UnreachableError:
    """Name a store's fault; object stores let errors of their own HTTP libraries through.

    Args:
        error: what was raised.
        url: the store's.
        doing: what failed, such as `write 000000.png`.
        what: see `open_files`.
        setting: likewise.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return StoreFullError(f"The {what} {url} is full: no space left to {doing}; free some, then resume.")
    said = " ".join(str(error).split())[:300]
    reason = getattr(error, "strerror", None) or said or type(error).__name__
    mend = hint(_HINTS, f"{doing} {reason} {said}")
    advice = f"; {mend.replace('PROMPTMILL_STORE_URL', setting)}" if mend else ""
    return UnreachableError(f"The {what} {url} failed to {doing}: {reason.rstrip('.')}{advice}.")
