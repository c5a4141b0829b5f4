"""From what the user gave to checked prompts: readers, the problems they find, and the list they make.

A reader (`producer.readers`) turns one source into lines. Everything is read and checked before anything is
written, so lines rest in a spool (memory first, then disk): standard input can be read only once, and a file
may change meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from producer.jobchecks import CLASHING, check_line, check_one_model
from producer.jobs import JobOptions
from producer.limits import Most, Tally, wanted_by
from producer.lines import Line, Problem
from producer.loras import with_tagged_loras
from producer.output import remark
from producer.problems import Problems
from producer.readers.opening import Source, Upload, read
from producer.readers.slips import Slips
from producer.readers.text import parse_line
from storage.errors import BadInputError

if TYPE_CHECKING:
    from producer.inputs import Inputs
    from producer.rewriting import Rewriting

STDIN = "-"
MAX_COMBINATIONS = 10_000  # of settings, that are remembered
PENDING = 1_000  # lines written at once
SPOOL_IN_MEMORY = 8 * 2**20  # bytes
_PARTING = re.compile("[\t\n\ud800-\udfff]")  # what the spool cannot hold: a file may be called so
_ASKED = tuple(item.name for item in dataclasses.fields(Line) if item.name not in {"file", "line"})


class PromptList:
    """The checked prompts of one submission, in order; iterate as often as needed.

    Attributes:
        count: how many prompts.
        source: where they came from, in a few words.
        model: that the lines name; None if none does.
        draws: whether a line wants drawn seeds, whatever the flags say.
        combinations: of what may clash with a model's recommendations, by `clash_key`; None if they are too
            many to be remembered.
        wanted: how many prompts say that they want so many seeds (0: they do not say) and images of each.
    """

    def __init__(self, *, source: str) -> None:
        self.count = 0
        self.source = source
        self.model: str | None = None
        self.draws = False
        self.combinations: set[str] | None = set()
        self.wanted: Counter[tuple[int, int | None]] = Counter()
        self._digest = hashlib.sha256()
        self._pending: list[str] = []
        self._spool: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (lives as long as the list)
            SPOOL_IN_MEMORY, "w+", encoding="utf-8", newline="\n"
        )
        weakref.finalize(self, self._spool.close)

    def append(self, line: Line) -> int:
        """Add a line at the end; return how many characters are kept of it."""
        text = _spooled(line)
        self._pending.append(text)
        if len(self._pending) >= PENDING:
            self._flush()
        self.count += 1
        self.model = self.model or line.model
        self.wanted[wanted_by(line)] += 1
        self.draws |= line.drawn
        if self.combinations is not None:
            self.combinations.add(clash_key(line))
            if len(self.combinations) > MAX_COMBINATIONS:
                self.combinations = None
        return len(text)

    def _flush(self) -> None:
        """Write what is pending: a call for each line would cost as much as reading it."""
        if not self._pending:  # nor could anything be written where a reader stopped half-way
            return
        self._spool.write("".join(self._pending))
        # File and line say where it stood, not what it asks for.
        self._digest.update("".join(text.split("\t", 2)[2] for text in self._pending).encode())
        self._pending.clear()

    @property
    def digest(self) -> str:
        """Sha256 of what the prompts ask for, wherever they stood."""
        self._flush()
        return self._digest.hexdigest()

    def all_combinations(self) -> Iterator[str]:
        """Yield each of `combinations`; where they are too many, going through the lines once more."""
        return iter(self.combinations) if self.combinations is not None else map(clash_key, self)

    def samples(self) -> Iterator[Line]:
        """Yield a line for each combination, once."""
        return map(sample_of, set(self.all_combinations()))

    def __iter__(self) -> Iterator[Line]:
        self._flush()
        self._spool.seek(0)
        for text in self._spool:
            file, number, asked = text.split("\t", 2)
            if asked[0] == "=":
                yield Line(file=file, line=int(number), prompt=asked[1:-1])
            else:
                fields = dict(zip(_ASKED, json.loads(asked), strict=True))
                fields["seeds"] = tuple(fields["seeds"])
                yield Line(**fields, file=json.loads(file), line=int(number))
        self._spool.seek(0, 2)


def clash_key(line: Line) -> str:
    """Tell apart what lines say that may clash with a model's recommendations; "" where they say nothing."""
    if not line.settings:
        return ""
    clashing = {name: line.settings[name] for name in CLASHING if name in line.settings}
    if "negative_prompt" in line.settings:
        clashing["negative_prompt"] = "any" if line.settings["negative_prompt"] else ""
    return json.dumps(clashing) if clashing else ""


def sample_of(key: str) -> Line:
    """Return a line that says what a `clash_key` stands for."""
    return Line(file="", line=0, prompt="any", settings=json.loads(key) if key else {})


def _spooled(line: Line) -> str:
    """Write a line as file, number and what it asks for; most ask for a prompt alone, kept as it is."""
    plain = not (line.settings or line.seeds or line.drawn or line.images or line.model or line.extra)
    if plain and "\n" not in line.prompt and not _PARTING.search(line.file):
        return f"{line.file}\t{line.line}\t={line.prompt}\n"
    asked = json.dumps([getattr(line, name) for name in _ASKED])
    return f"{json.dumps(line.file)}\t{line.line}\t{asked}\n"


def read_prompts(
    files: Sequence[Source],
    texts: Sequence[str],
    *,
    options: JobOptions | None = None,
    input_format: str | None = None,
    skip_bad: bool = False,
    rewriting: Rewriting | None = None,
    pictures: Sequence[str] = (),
    inputs: Inputs | None = None,
    most: Most | None = None,
) -> PromptList:
    """Read and check all prompts: the files in their order, the texts of `--prompt`, those of pictures.

    Args:
        files: names, `-` for standard input, or uploads.
        texts: prompts.
        options: the command's flags, which have to go with what the lines say.
        input_format: of all files, one of `producer.readers.FORMATS`; None lets each one's content decide.
        skip_bad: leave out the lines that cannot be used, and say so; a file that cannot be read at all is
            an error all the same.
        pictures: files of `--from-image`.
        rewriting: styles, presets and templates, if any are asked for.
        inputs: takes the pictures that lines name.
        most: that they may make.

    Raises:
        BadInputError: listing every line that cannot be used, or saying that there is none at all,
            or more than may be.
    """
    if not files and not texts and not pictures:
        raise BadInputError("No prompts were given; name a prompt file, - for standard input, or -p TEXT.")
    options, most = options or JobOptions(), most or Most()
    prompts = PromptList(source=_describe([*files, *pictures], texts))
    problems, tally = Problems(), Tally(most, options)
    if rewriting:
        rewriting.check(options)
    read_ones = _all(files, texts, input_format)
    found_ones = itertools.chain(_remarked(read_ones), _of_pictures(pictures, options))
    named = inputs.of_lines(found_ones) if inputs else found_ones
    lines = _rewritten(iter(named), rewriting, options) if rewriting else iter(named)
    with closing(read_ones):  # a reader that is stopped half-way holds its file
        for found in inputs.sized_lines(lines) if inputs else lines:
            checked = _checked(found, options, prompts)
            if isinstance(checked, Problem):
                problems.add(checked)
                if problems.count > most.jobs:  # one line can unfold into millions: these will do
                    break
                continue
            jobs = tally.add(checked)
            if skip_bad or not problems.count:
                tally.keep(prompts.append(checked), jobs=jobs)
            else:
                prompts.model = prompts.model or checked.model
    problems.settle(skip_bad=skip_bad and problems.count <= most.jobs, left=prompts.count)
    if not prompts.count:
        raise BadInputError(
            f"There is no prompt in {prompts.source}, only blank lines and comments; add some."
        )
    return prompts


def _of_pictures(names: Sequence[str], options: JobOptions) -> Iterator[Line | Problem]:
    if names:
        from producer.readers.image import read_image  # noqa: PLC0415  (only pictures need it)

        yield from (read_image(name, options) for name in names)


def _rewritten(
    found_ones: Iterator[Line | Problem], rewriting: Rewriting, options: JobOptions
) -> Iterator[Line | Problem]:
    number = 0
    for found in found_ones:
        if isinstance(found, Problem):
            yield found
        else:
            yield from rewriting.lines(found, number, options)
            number += 1


def _all(
    files: Sequence[Source], texts: Sequence[str], input_format: str | None
) -> Generator[Line | Problem]:
    for at, name in enumerate(files):
        if isinstance(name, Upload):
            yield from name.lines(input_format)
        elif name == STDIN and STDIN in files[:at]:
            yield Problem(file=STDIN, reason="standard input can be read only once; name it once.")
        else:
            yield from _source(name, input_format)
    for number, text in enumerate(texts, 1):
        found = parse_line(text, f"--prompt {number}", 0)
        yield dataclasses.replace(found, line=None) if isinstance(found, Problem) else found


def _remarked(found_ones: Iterator[Line | Problem]) -> Iterator[Line | Problem]:
    """Pass on what was found, and remark once on each column that may be a slip of another."""
    slips = Slips()
    for found in found_ones:
        if isinstance(found, Line) and found.extra:
            for text in slips.of(found):
                remark(text)
        yield found


def _source(name: str, input_format: str | None) -> Iterator[Line | Problem]:
    try:
        if name == STDIN:
            yield from _stdin(input_format)
        else:
            with Path(name).open("rb") as file:
                yield from read(file, name, suffix=Path(name).suffix, input_format=input_format)
    except FileNotFoundError:
        yield Problem(file=name, reason="there is no such file; check its name.")
    except IsADirectoryError:
        yield Problem(file=name, reason="this is a folder; name the prompt file in it.")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        yield Problem(file=name, reason=f"it cannot be read ({getattr(error, 'strerror', None) or error}).")


def _stdin(input_format: str | None) -> Iterator[Line | Problem]:
    if sys.stdin is None or sys.stdin.closed:
        yield Problem(file=STDIN, reason="standard input is closed; name a prompt file instead.")
        return
    if sys.stdin.isatty():
        click.echo("Reading prompts from the terminal, one a line; Ctrl-D ends the list.", err=True)
    yield from read(sys.stdin.buffer, "stdin", input_format=input_format)


def _checked(found: Line | Problem, options: JobOptions, before: PromptList) -> Line | Problem:
    """Check a line by itself, with the flags and with the lines before it."""
    if isinstance(found, Problem):
        return found
    try:
        found = with_tagged_loras(found, options)
        check_line(found, options)
        check_one_model(found.model, before.model)
    except BadInputError as error:
        return Problem(file=found.file, line=found.line or None, reason=str(error))
    return found


def _describe(files: Sequence[Source], texts: Sequence[str]) -> str:
    names = ["stdin" if name == STDIN else Path(str(name)).name for name in files]
    names += ["the command line"] if texts else []
    return re.sub(r"^(.{197}).{4,}$", r"\1…", ", ".join(names), flags=re.DOTALL)
