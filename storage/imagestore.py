"""The picture store: any fsspec URL, written so that a reader never sees half a file.

A key is a path below the store's root, made by `picture_key`; nothing that comes from outside can leave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from storage.errors import BadInputError, UnreachableError
from storage.local_files import remove_tree, room_below, write_file
from storage.safe_url import safe_store_url
from storage.store_faults import NO_BUCKET, translated

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
FOLDER_JOBS = 1000  # jobs whose pictures share a folder
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

    def find(self, key: str) -> bytes | None:
        """Return the bytes under `key`, None if nothing is there.

        Raises:
            UnreachableError: when that cannot be known, the store being down, or a local folder that is not
                there or empty, as where its disk is not mounted.
        """
        ...

    def names(self, folder: str = "") -> Iterator[str]:
        """Yield the paths below the root of all files below `folder`, leftovers of killed writes too."""
        ...

    def discard(self, name: str) -> None:
        """Remove one file that `names` has yielded; nothing happens if it is gone."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Remove all that lies below `folder`, leftovers of killed writes too, and folders left empty by it.

        Nothing happens if nothing is there.
        """
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
    return f"{picture_folder(submission, index)}/{index:06d}{tail}.{suffix}"


def picture_folder(submission: str, index: int) -> str:
    """Return the folder of the pictures of FOLDER_JOBS jobs, those beside `index`."""
    return f"{submission}/{index // FOLDER_JOBS:04d}"


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
            f"The {what} {safe_store_url(url)} cannot be opened: {str(error).rstrip('.')}; {extra}."
        ) from error
    except (ValueError, OSError) as error:
        raise UnreachableError(
            f"The {what} {safe_store_url(url)} cannot be opened: {str(error).rstrip('.')}; check {setting}."
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
        self.url = safe_store_url(url)  # what is shown
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
            return room_below(Path(self._root))
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
                write_file(Path(path), data)
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

    def find(self, key: str) -> bytes | None:
        """See `ImageStore.find`."""
        path = self.path(key)
        try:
            return bytes(self._files.cat_file(path))
        except FileNotFoundError as error:
            self._check_there(error, f"look for {key}")
            return None
        except Exception as error:
            raise translated(error, self.url, f"read {key}") from error

    def names(self, folder: str = "") -> Iterator[str]:
        """See `ImageStore.names`."""
        path = self.path(folder) if folder else self._root
        try:
            found = sorted(self._files.find(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise translated(error, self.url, f"list {folder or 'its files'}") from error
        yield from (str(name).removeprefix(self._root).lstrip("/") for name in found)

    def discard(self, name: str) -> None:
        """See `ImageStore.discard`."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadInputError(f"{name!r} lies outside the picture store.")
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise translated(error, self.url, f"delete {name}") from error

    def delete_folder(self, folder: str) -> None:
        """See `ImageStore.delete_folder`."""
        path = self.path(folder)
        try:
            if self._local:
                remove_tree(Path(path), root=Path(self._root))
            else:
                self._files.rm(path, recursive=True)
        except FileNotFoundError as error:
            if not self._local:
                self._check_there(error, f"delete {folder}")
        except Exception as error:
            raise translated(error, self.url, f"delete {folder}") from error

    def _check_there(self, missing: FileNotFoundError, what: str) -> None:
        """Tell a missing file from a missing store; UnreachableError for the latter."""
        if not self._local:
            if NO_BUCKET.search(str(missing)):
                raise translated(missing, self.url, what) from missing
            return
        root = Path(self._root)
        if root.is_dir() and any(root.iterdir()):
            return
        state = "empty" if root.is_dir() else "not there"
        raise UnreachableError(
            f"The picture store {self.url} is {state}; mount its disk, or check PROMPTMILL_STORE_URL; if its "
            f"pictures are really gone, put any file into it and go on."
        ) from missing

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


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
