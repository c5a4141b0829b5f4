"""Pictures that jobs begin with: from files that the user names to hashes, and into the picture store.

What a flag or a line names is read and checked once, before anything is written; jobs carry its hash. The
store gets the files before the submission's rows, so that no job ever lacks its input, and is asked once more
after them, should a prune have taken one for unused in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.jobs import JobOptions
from producer.lines import Line, Problem
from producer.output import remark
from storage.errors import BadInputError
from storage.inputs import (
    CONTROL_IMAGE,
    INIT_IMAGE,
    INPUTS,
    MASK_IMAGE,
    MAX_BYTES,
    digest,
    input_key,
    is_hash,
    open_input,
    shown_input,
)
from storage.parameters import MAX_SIZE, MIN_SIZE, SIZE_STEP

if TYPE_CHECKING:
    from producer.models import KnownModel
    from storage.imagestore import ImageStore

FLAGS = {INIT_IMAGE: "--init-image", MASK_IMAGE: "--mask", CONTROL_IMAGE: "--control-image"}
_SIZE = frozenset({"width", "height"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A picture that can be used.

    Attributes:
        sha256: of its file.
        size: (width, height) as it is looked at, in pixels.
    """

    sha256: str
    size: tuple[int, int]


class Inputs:
    """The inputs of one submit, each read once.

    Attributes:
        used: which of INPUTS any flag or line has named.
    """

    def __init__(self, store: Callable[[], ImageStore], *, may_name_files: bool = True) -> None:
        """Begin with none.

        Args:
            store: opens the picture store, where it is needed.
            may_name_files: whether who asks may name files of this machine, not only the hash of what is in
                the store.
        """
        self._may_name_files = may_name_files
        self.used: set[str] = set()
        self._store = store
        self._files: dict[str, Path | None] = {}  # by hash; None was in the store already
        self._known: dict[tuple[Path, str], Input] = {}
        self._by_hash: dict[str, Input] = {}
        self._of_flags: dict[str, Input] = {}
        self._sized = False

    def of_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Return the command's flags with hashes for the files that they name.

        Raises:
            BadInputError: about the first file that cannot be used.
        """
        named = {name: flags[name] for name in INPUTS if flags.get(name) is not None}
        self._of_flags = {name: self._take(FLAGS[name], name, file, Path()) for name, file in named.items()}
        return {**flags, **{name: found.sha256 for name, found in self._of_flags.items()}}

    def sized(self, options: JobOptions) -> JobOptions:
        """Return the checked flags with the size of the picture that they name, if they ask for no other."""
        self._sized = options.width is not None or options.height is not None or bool(options.swept & _SIZE)
        size: dict[str, Any] = {} if self._sized else _size_of(self._of_flags)
        return dataclasses.replace(options, **size) if size else options

    def of_lines(self, found_ones: Iterable[Line | Problem]) -> Iterator[Line | Problem]:
        """Pass on lines with hashes for the files that they name; a Problem where one cannot be used."""
        for found in found_ones:
            try:
                yield self._hashed(found) if isinstance(found, Line) else found
            except BadInputError as error:
                yield Problem(file=found.file, line=found.line or None, reason=str(error))

    def _hashed(self, line: Line) -> Line:
        given = line.settings.get("options", {})
        base = Path(line.file).parent if line.line else Path()  # beside the file that it stands in
        found = {name: self._take(name, name, given[name], base) for name in INPUTS if name in given}
        if not found:
            return line
        hashes = {name: each.sha256 for name, each in found.items()}
        self._by_hash |= {each.sha256: each for each in found.values()}
        return dataclasses.replace(line, settings={**line.settings, "options": given | hashes})

    def sized_lines(self, found_ones: Iterable[Line | Problem]) -> Iterator[Line | Problem]:
        """Pass on lines with the size of the pictures that they name, where nothing says another."""
        for found in found_ones:
            try:
                yield self._sized_line(found) if isinstance(found, Line) else found
            except BadInputError as error:
                yield Problem(file=found.file, line=found.line or None, reason=str(error))

    def _sized_line(self, line: Line) -> Line:
        given = line.settings.get("options", {})
        found = {name: self._by_hash[given[name]] for name in INPUTS if name in given}
        # The flags' init image goes before the line's own control image.
        lesser = INIT_IMAGE not in found and INIT_IMAGE in self._of_flags
        if not found or lesser or self._sized or _SIZE & line.settings.keys():
            return line
        return dataclasses.replace(line, settings={**line.settings, **_size_of(found)})

    def keep(self, *, again: bool = False) -> None:
        """Write into the store what is not there yet, or not whole.

        Args:
            again: it was kept a moment ago: what is there is whole.

        Raises:
            BadInputError: when a file has changed since it was checked, or cannot be read any more.
            UnreachableError: when the store fails.
        """
        for sha256, path in self._files.items():
            key = input_key(sha256)
            if self._store().exists(key) and (again or digest(self._store().read(key)) == sha256):
                continue
            if path is None:
                raise BadInputError(f"Input {sha256} was pruned at this moment; name the file itself.")
            try:
                data = _bytes_of(path)
            except BadInputError as error:
                raise BadInputError(f"{path}: {error}") from error
            if digest(data) != sha256:
                raise BadInputError(f"{path} has changed since it was checked; submit again.")
            self._store().write(key, data)

    def _take(self, what: str, name: str, value: str, base: Path) -> Input:
        """Return the input that a flag or cell names: a file, or the hash of what is in the store."""
        self.used.add(name)
        known = self._known.get((base, value))
        if known is None:
            try:
                known = self._known[base, value] = self._looked_at(value, base / value)
            except BadInputError as error:
                raise BadInputError(f"{what} {value!r}: {error}") from error
        return known

    def _looked_at(self, value: str, path: Path) -> Input:
        if not self._may_name_files and not is_hash(value):
            raise BadInputError("only a picture in the store can be named here, by the sha256 of its file.")
        stored = is_hash(value) and not (self._may_name_files and path.exists())
        data = self._stored(value) if stored else _bytes_of(path)
        found = Input(sha256=digest(data), size=open_input(data).size)
        if stored and found.sha256 != value:
            raise BadInputError("the picture store has other bytes under this hash; name the file itself.")
        if self._files.get(found.sha256) is None:
            self._files[found.sha256] = None if stored else path
        return found

    def _stored(self, sha256: str) -> bytes:
        if not self._store().exists(input_key(sha256)):
            raise BadInputError("the picture store has no input of this hash; name the file itself.")
        return self._store().read(input_key(sha256))


def check_takes(used: Collection[str], model: KnownModel) -> None:
    """Check that a model can begin with what jobs name, as far as its newest worker has said it.

    Raises:
        BadInputError: when it cannot. A ControlNet is the worker's own, and another may have one: a remark.
    """
    takes = INPUTS if model.takes is None else model.takes
    lacking = [name for name in INPUTS if name in used and name not in takes]
    if CONTROL_IMAGE in lacking:
        remark(
            f"Warning: the newest worker of {model.name} has no ControlNet; jobs with a control image fail "
            f"there. Start one with --controlnet NAME=REPO_OR_PATH."
        )
        lacking.remove(CONTROL_IMAGE)
    if lacking:
        raise BadInputError(
            f"Model {model.name} takes no {shown_input(lacking[0])}; leave it out, or take another model."
        )


def check_stored(store: ImageStore, options: Mapping[str, Any]) -> None:
    """Check that a job's inputs are in the store.

    Raises:
        BadInputError: when one is not; one sentence that begins small, after the job's name.
    """
    for name in INPUTS:
        if name in options and not store.exists(input_key(options[name])):
            raise BadInputError(
                f"its {shown_input(name)}, the file with the sha256 {options[name]}, is not in the picture "
                f"store; bring it there with a job of its own: `promptmill submit -p any {FLAGS[name]} FILE`."
            )


def _bytes_of(path: Path) -> bytes:
    """Read a file that the user names; BadInputError, beginning small, where that cannot be."""
    try:
        if path.is_dir():
            raise BadInputError("this is a folder; name a picture in it.")
        if path.exists() and not path.is_file():
            raise BadInputError("this is a device or a pipe; name a picture's file.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise BadInputError("there is no such file; check its name.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadInputError(f"it cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _size_of(found: Mapping[str, Input]) -> dict[str, int]:
    """Return the size of a job that names none: its init image's, else its control image's, made to fit."""
    first = found.get(INIT_IMAGE) or found.get(CONTROL_IMAGE)
    if first is None:
        return {}
    width, height = (side // SIZE_STEP * SIZE_STEP for side in first.size)
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in (width, height)):
        what, given = (INIT_IMAGE if INIT_IMAGE in found else CONTROL_IMAGE), "x".join(map(str, first.size))
        raise BadInputError(
            f"The {shown_input(what)} is {given}, and pictures "
            f"have {MIN_SIZE} to {MAX_SIZE} pixels a side; say which size with --size or in a column size."
        )
    return {"width": width, "height": height}
