"""Where an export goes: a folder of this machine, or any fsspec URL, behind one interface.

Whatever is written is there whole or not at all: a folder's files get their name when they are complete, an
object is one PUT.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from producer.folder_faults import folder_faults
from producer.pictures import HIDDEN_MARKER, check_makeable
from storage.errors import BadInputError
from storage.imagestore import open_files
from storage.records import Image
from storage.safe_url import safe_store_url
from storage.store_faults import translated

WHAT, SETTING = "target", "--to"


class Target(Protocol):
    """Files by names with slashes below one place. All methods raise UnreachableError for its faults."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        ...

    def is_empty(self) -> bool:
        """Whether nothing is there yet; BadInputError if nothing could ever be written there."""
        ...

    def make(self) -> None:
        """Make the place."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None without one."""
        ...

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None without one."""
        ...

    def holds(self, name: str, image: Image) -> bool:
        """Whether a file is that picture, as far as can be told without fetching it from far away."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file whole."""
        ...

    def published(self, name: str) -> AbstractContextManager[Path]:
        """Give a path to write a large file to; it becomes `name` at the end of the with block."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


def open_target(to: str) -> Target:
    """Open what `--to` names.

    Raises:
        BadInputError: for an empty name, or a protocol that nobody knows.
        UnreachableError: when what opens it is not installed.
    """
    if not to.strip():
        raise BadInputError("--to is empty; name a folder or a URL such as s3://BUCKET/FOLDER.")
    protocol, separator, _ = to.partition("://")
    if not separator or "/" in protocol or protocol == "file":
        return FolderTarget(Path(to.removeprefix("file://")))
    from fsspec import available_protocols  # noqa: PLC0415  (slow to import)

    if protocol.partition("::")[0] not in available_protocols():
        raise BadInputError(
            f"--to {to}: nobody knows the protocol {protocol!r}; name a folder or an fsspec URL."
        )
    return RemoteTarget(to)


class FolderTarget:
    """A folder on a disk."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self._shown = folder
        self._folder = folder.absolute()

    def __str__(self) -> str:
        return str(self._shown)

    def is_empty(self) -> bool:
        """See `Target.is_empty`."""
        folder = self._folder
        if not os.path.lexists(folder):
            check_makeable(self._shown)
            return True
        if not folder.is_dir():
            raise BadInputError(f"{self} is a file, not a folder; choose another place for the export.")
        try:
            # A run that was killed before its marker had its name has written nothing else.
            begun = _partial(folder / HIDDEN_MARKER)
            empty = all(path == begun for path in folder.iterdir())
        except OSError as error:
            raise BadInputError(
                f"The folder {self} cannot be read ({error.strerror}); choose another."
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadInputError(f"The folder {self} cannot be written; choose another.")
        return empty

    def make(self) -> None:
        """See `Target.make`."""
        with folder_faults(self._shown):
            self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        with folder_faults(self._shown):
            try:
                return (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """See `Target.size`."""
        with folder_faults(self._shown):
            try:
                return os.stat(f"{self._folder}/{name}").st_size  # noqa: PTH116  (see `write`)
            except FileNotFoundError:
                return None

    def holds(self, name: str, image: Image) -> bool:
        """See `Target.holds`: here every byte is looked at."""
        if self.size(name) != image.bytes:
            return False
        return hashlib.sha256(self.read(name) or b"").hexdigest() == image.file_sha256

    def write(self, name: str, data: bytes) -> None:
        """See `Target.write`."""
        # In plain strings: for a small picture, paths as objects take longer than the file.
        above, _, last = f"{self._folder}/{name}".rpartition("/")
        partial = f"{above}/.{last}.part"
        with folder_faults(self._shown):
            try:
                file = open(partial, "wb")  # noqa: PTH123, SIM115  (as said; closed below)
            except FileNotFoundError:  # the first picture of a folder that a template names
                Path(above).mkdir(parents=True, exist_ok=True)
                file = open(partial, "wb")  # noqa: PTH123, SIM115  (likewise)
            with file:
                file.write(data)
            os.replace(partial, f"{above}/{last}")  # noqa: PTH105  (as said)

    @contextmanager
    def published(self, name: str) -> Iterator[Path]:
        """See `Target.published`."""
        with folder_faults(self._shown):
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = _partial(path)
            try:
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())  # the marker must never count on what a power cut can empty
                partial.replace(path)
            except BaseException:  # also an interrupt: no half file stays
                partial.unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        with folder_faults(self._shown):
            (self._folder / name).unlink(missing_ok=True)


class RemoteTarget:
    """A place that fsspec reaches; large files are made in the temporary folder of this machine first."""

    is_local = False

    def __init__(self, url: str) -> None:
        self._url = safe_store_url(url)  # what is shown
        self._files, self._root = open_files(url, what=WHAT, setting=SETTING)

    def __str__(self) -> str:
        return self._url

    def is_empty(self) -> bool:
        """See `Target.is_empty`."""
        with self._faults("list"):
            try:
                return not self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return True

    def make(self) -> None:
        """See `Target.make`: object stores have no folders, and others get theirs with the first file."""

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        with self._faults(f"read {name}"):
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """See `Target.size`."""
        with self._faults(f"look for {name}"):
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def holds(self, name: str, image: Image) -> bool:
        """See `Target.holds`: by name and size, since a PUT is whole or not at all."""
        return self.size(name) == image.bytes

    def write(self, name: str, data: bytes) -> None:
        """See `Target.write`."""
        with self._faults(f"write {name}"):
            self._make_folder(name)
            self._files.pipe_file(self._path(name), data)

    @contextmanager
    def published(self, name: str) -> Iterator[Path]:
        """See `Target.published`."""
        with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
            path = Path(folder) / "file"
            with folder_faults(path.parent):
                yield path
            with self._faults(f"write {name}"):
                self._make_folder(name)
                self._files.put_file(str(path), self._path(name))

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        with self._faults(f"remove {name}"):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        """Make the folder of a file where the file system has folders."""
        if not hasattr(self._files, "s3"):  # there it could make a bucket
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise translated(error, self._url, doing, what=WHAT, setting=SETTING) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
