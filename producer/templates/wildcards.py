"""A folder of wildcard files: text, one option a line, in folders of any depth."""

from __future__ import annotations

import difflib
import functools
import os
import re
from pathlib import Path

from producer.templates.errors import TemplateError
from producer.templates.nodes import Choice, Node, make_choice
from producer.templates.syntax import MAX_DEPTH, Parser
from storage.errors import BadInputError

MAX_FILE = 4 * 2**20  # bytes
MAX_LINES = 100_000  # and opening braces, of one file: both take memory and time
MAX_ALL_LINES = 500_000  # of all that one command reads
MAX_FILES = 100_000  # in the folder
SUFFIX = ".txt"

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*+")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_GLOB = re.compile(r"(\*\*/|\*\*|\*|\?)")
_OF_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

_Lines = dict[str, tuple[float, Node]]  # text -> weight, what it is


class Wildcards:
    """Finds and reads wildcard files, each once.

    Args:
        folder: where they lie; None if there is none.

    Raises:
        BadInputError: when that is no folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None and not folder.is_dir():
            raise BadInputError(f"The folder of wildcards {str(folder)!r} is not there; check its name.")
        self._choices: dict[str, Choice] = {}
        self._files: dict[str, _Lines] = {}
        self._reading: list[str] = []
        self._lines = 0

    def choice(self, name: str, depth: int) -> Choice:
        """Return the lines of the files that `name` stands for, which stands within `depth` choices.

        Raises:
            TemplateError: when there is none, or one cannot be used; `column` is for the caller to say.
        """
        if name not in self._choices:
            if depth > MAX_DEPTH:
                raise TemplateError(f"choices are nested more than {MAX_DEPTH} deep; flatten them.")
            lines: _Lines = {}
            for file in self._find(name):
                lines |= self._file(file, depth)  # a line that stands in two files counts once
            self._choices[name] = _choice(name, lines)
        return self._choices[name]

    def _find(self, name: str) -> list[str]:
        """Return the names of the files that a wildcard stands for."""
        wanted = name.replace("\\", "/")
        if self._folder is None:
            raise TemplateError(f"wildcard __{name}__ needs a folder of wildcard files, and none was given.")
        if wanted.startswith(("/", "~")) or ".." in wanted.split("/") or re.match("[A-Za-z]:", wanted):
            raise TemplateError(
                f"wildcard __{name}__ leads out of the folder {self._folder.name!r}; name a file in it."
            )
        if wanted in self._names:
            return [wanted]
        # As there: a name that is not found is looked for at any depth, so that collections can be moved.
        for pattern in (_pattern(wanted), _pattern(f"**/{wanted}")):
            if found := [name for name in self._names if pattern.fullmatch(name)]:
                return found
        raise TemplateError(self._unknown(name, wanted))

    def _unknown(self, name: str, wanted: str) -> str:
        folder = self._folder.name if self._folder else ""
        last = {full.rpartition("/")[2]: full for full in self._names}
        near = difflib.get_close_matches(wanted, self._names, n=3)
        near += [
            last[part] for part in difflib.get_close_matches(wanted, last, n=3) if last[part] not in near
        ]
        meant = f"write {' or '.join(f'__{other}__' for other in near[:3])}" if near else "correct the name"
        return f"there is no wildcard __{name}__ in the folder {folder!r}; {meant}, or add {wanted}{SUFFIX}."

    @functools.cached_property
    def _names(self) -> dict[str, Path]:
        """Every wildcard file by its name, sorted; hidden ones are left out, linked folders not entered."""
        found: dict[str, Path] = {}
        root = self._folder or Path()
        for folder, inner, files in os.walk(root):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for file in files:
                if file.endswith(SUFFIX) and not file.startswith("."):
                    path = Path(folder, file)
                    found[path.relative_to(root).as_posix().removesuffix(SUFFIX)] = path
            if len(found) > MAX_FILES:
                raise TemplateError(
                    f"the folder {root.name!r} has over {MAX_FILES:,} files; name one with wildcards only."
                )
        return dict(sorted(found.items()))

    def _file(self, name: str, depth: int) -> _Lines:
        """Return the lines of a file, which may name other wildcards."""
        if name in self._reading:
            circle = " -> ".join([*self._reading[self._reading.index(name) :], name])
            raise TemplateError(f"wildcards name each other in a circle, {circle}; break it.")
        if name not in self._files:
            self._reading.append(name)
            try:
                self._files[name] = self._parse(name, self._read(name), depth)
            finally:
                self._reading.pop()
        return self._files[name]

    def _parse(self, name: str, text: str, depth: int) -> _Lines:
        rows = _NEWLINE.split(text)
        size = len(rows) + text.count("{")
        self._lines += size
        if size > MAX_LINES or self._lines > MAX_ALL_LINES:
            raise TemplateError(
                f"wildcard file {name}{SUFFIX} is too long; a file may have {MAX_LINES:,} lines and choices, "
                f"all that are read {MAX_ALL_LINES:,}."
            )
        lines: _Lines = {}
        for number, row in enumerate(rows, 1):
            line = _COMMENT.sub("", row).rstrip()
            start = len(line) - len(line.lstrip())
            if line and line[start:] not in lines:
                try:
                    lines[line[start:]] = Parser(line, self, start=start, depth=depth).option()
                except TemplateError as error:
                    place = f"{name}{SUFFIX}, line {number}, column {error.column}"
                    raise TemplateError(f"{place}: {error.reason}") from None
        return lines

    def _read(self, name: str) -> str:
        """Read a file of the folder, wherever links lead it."""
        what = f"wildcard file {name}{SUFFIX}"
        try:
            path = self._names[name].resolve(strict=True)
            if not path.is_relative_to((self._folder or Path()).resolve()):
                raise TemplateError(f"{what} is a link out of the folder; put the file itself there.")
            if not path.is_file():
                raise TemplateError(f"{what} is no plain file; put one there.")
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise TemplateError(f"{what} cannot be read ({getattr(error, 'strerror', error)}).") from error
        if len(data) > MAX_FILE:
            raise TemplateError(f"{what} has over {MAX_FILE // 2**20} MiB; split it.")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise TemplateError(f"{what}, line {line}, is not UTF-8; save it as UTF-8.") from error


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile("".join(_OF_GLOB.get(part) or re.escape(part) for part in _GLOB.split(glob)))


def _choice(name: str, lines: _Lines) -> Choice:
    usable = [(weight, node) for weight, node in lines.values() if weight]
    if not usable:
        raise TemplateError(f"wildcard __{name}__ has no lines to choose from; write one option a line.")
    weights, nodes = zip(*usable, strict=True)
    return make_choice(nodes, weights, wildcard=True)
