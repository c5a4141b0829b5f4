"""From what the user gave to checked prompts: readers, the problems they find, and the list they make.

A reader turns one source into lines; another format is one more reader in `READERS`. Everything is read and
checked before anything is written, so lines rest in a spool (memory first, then disk): standard input can
be read only once, and a file may change meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

import click

from producer.jobs import JobOptions, check_line
from producer.lines import Line, Problem, Reader
from producer.textfile import check_options, read_text
from storage.errors import BadInputError

STDIN = "-"
SHOWN_PROBLEMS = 20
SPOOL_IN_MEMORY = 8 * 2**20  # bytes
_ASKED = tuple(item.name for item in dataclasses.fields(Line) if item.name not in {"file", "line"})


def _read_text(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    for found in read_text(file):
        if found.reason is None:
            yield Line(file=name, line=found.line, prompt=found.text)
        else:
            yield Problem(file=name, line=found.line, column=found.column, reason=found.reason)


READERS: dict[str, Reader] = {".txt": _read_text, "": _read_text}


class PromptList:
    """The checked prompts of one submission, in order; iterate as often as needed.

    Attributes:
        count: how many prompts.
        source: where they came from, in a few words.
        model: that the lines name; None if none does.
        wanted: how many prompts say that they want so many seeds (0: they do not say) and images of each.
    """

    def __init__(self, *, source: str) -> None:
        self.count = 0
        self.source = source
        self.model: str | None = None
        self._digest = hashlib.sha256()
        self.wanted: Counter[tuple[int, int | None]] = Counter()
        self._spool: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (lives as long as the list)
            SPOOL_IN_MEMORY, "w+", encoding="utf-8", newline="\n"
        )
        weakref.finalize(self, self._spool.close)

    def append(self, line: Line) -> None:
        """Add a line at the end."""
        # File and line say where it stood, not what it asks for.
        place, asked = (
            json.dumps([line.file, line.line]),
            json.dumps([getattr(line, name) for name in _ASKED]),
        )
        self._digest.update(asked.encode())
        self._spool.write(f"[{place},{asked}]\n")
        self.count += 1
        self.model = self.model or line.model
        self.wanted[len(line.seeds), line.images] += 1

    @property
    def digest(self) -> str:
        """Sha256 of what the prompts ask for, wherever they stood."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Line]:
        self._spool.seek(0)
        for text in self._spool:
            (file, number), asked = json.loads(text)
            fields = dict(zip(_ASKED, asked, strict=True))
            yield Line(**{**fields, "file": file, "line": number, "seeds": tuple(fields["seeds"])})


def read_prompts(
    files: Sequence[str], texts: Sequence[str], *, options: JobOptions | None = None
) -> PromptList:
    """Read and check all prompts: the files in their order, then the texts of `--prompt`.

    Args:
        files: names, `-` for standard input.
        texts: prompts.
        options: the command's flags, which have to go with what the lines say.

    Raises:
        BadInputError: listing every line that cannot be used, or saying that there is none at all.
    """
    if not files and not texts:
        raise BadInputError("No prompts were given; name a prompt file, - for standard input, or -p TEXT.")
    prompts = PromptList(source=_describe(files, texts))
    problems: list[Problem] = []
    count = 0
    for found in _all(files, texts):
        checked = _checked(found, options or JobOptions(), prompts)
        if isinstance(checked, Line):
            if not count:
                prompts.append(checked)
            continue
        count += 1
        if count <= SHOWN_PROBLEMS:
            problems.append(checked)
    if count:
        raise BadInputError(_explain(problems, count))
    if not prompts.count:
        raise BadInputError(
            f"There is no prompt in {prompts.source}, only blank lines and comments; add some."
        )
    return prompts


def _all(files: Sequence[str], texts: Sequence[str]) -> Iterator[Line | Problem]:
    for at, name in enumerate(files):
        if name == STDIN and STDIN in files[:at]:
            yield Problem(file=STDIN, reason="standard input can be read only once; name it once.")
        else:
            yield from _source(name)
    for number, text in enumerate(texts, 1):
        reason = check_options(text)
        place = f"--prompt {number}"
        yield Problem(file=place, reason=reason) if reason else Line(file=place, line=0, prompt=text.strip())


def _source(name: str) -> Iterator[Line | Problem]:
    if name == STDIN:
        yield from _stdin()
        return
    reader: Reader | None = READERS.get(Path(name).suffix.lower())
    if reader is None:
        yield Problem(
            file=name,
            reason=f"this version reads text files (.txt, one prompt a line), not {Path(name).suffix} files; "
            f"save the prompts as text.",
        )
        return
    try:
        with Path(name).open("rb") as file:
            yield from reader(file, name)
    except FileNotFoundError:
        yield Problem(file=name, reason="there is no such file; check its name.")
    except IsADirectoryError:
        yield Problem(file=name, reason="this is a folder; name the prompt file in it.")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        yield Problem(file=name, reason=f"it cannot be read ({getattr(error, 'strerror', None) or error}).")


def _stdin() -> Iterator[Line | Problem]:
    if sys.stdin is None or sys.stdin.closed:
        yield Problem(file=STDIN, reason="standard input is closed; name a prompt file instead.")
        return
    if sys.stdin.isatty():
        click.echo("Reading prompts from the terminal, one a line; Ctrl-D ends the list.", err=True)
    yield from _read_text(sys.stdin.buffer, "stdin")


def _checked(found: Line | Problem, options: JobOptions, before: PromptList) -> Line | Problem:
    """Check a line by itself, with the flags and with the lines before it."""
    if isinstance(found, Problem):
        return found
    try:
        check_line(found, options)
        _check_one_model(found.model, before.model)
    except BadInputError as error:
        return Problem(file=found.file, line=found.line or None, reason=str(error))
    return found


def _check_one_model(model: str | None, before: str | None) -> None:
    if model is not None and before not in (None, model):
        raise BadInputError(
            f"This line is for model {model!r} and an earlier one for {before!r}; a submission has one "
            f"model: split the list."
        )


def _explain(problems: Sequence[Problem], count: int) -> str:
    if count == 1:
        return str(problems[0])
    rest = f"\n  … and {count - len(problems):,} more." if count > len(problems) else ""
    listed = "".join(f"\n  {problem}" for problem in problems)
    return f"{count:,} places cannot be used, so nothing was written:{listed}{rest}"


def _describe(files: Sequence[str], texts: Sequence[str]) -> str:
    names = ["stdin" if name == STDIN else Path(name).name for name in files]
    text = ", ".join([*names, *(["the command line"] if texts else [])])
    return re.sub(r"^(.{197}).{4,}$", r"\1…", text, flags=re.DOTALL)
