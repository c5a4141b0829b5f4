"""What a prompt file holds, as its reader found it: lines, and the places that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from storage.record import light_record


@light_record
class Line:
    """One prompt with what its file says of it; what it does not say is left to the command's flags.

    Attributes:
        file, line: where it stands, for messages; line counts from 1; 0 is a text without lines.
        prompt: the text, white space stripped.
        settings: job parameters that the line sets itself, by their name in `JobParameters`; `options` is
            added to what the flags say.
        seeds: one picture for each, times `images`; empty leaves them to the flags.
        drawn: whether its seeds are drawn, whatever the flags say.
        images: pictures of each seed; None leaves it to the flags.
        model: that renders it, as it is called here; None leaves it to the flags.
        extra: unknown columns, kept with the job.
    """

    file: str
    line: int
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    drawn: bool = False
    images: int | None = None
    model: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why something cannot be used, and where it stands.

    Attributes:
        file, line: as in `Line`.
        reason: one sentence that says what to do.
        column: counts from 1: the character in a text's line; in a table, the cell.
    """

    file: str
    reason: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """Write it the way compilers do, so that editors can jump there."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.reason}"


# A reader yields what it found in an open binary file, named as given: lines, and problems in between.
# It never raises about what the file holds, and holds one line at a time.
Reader = Callable[[BinaryIO, str], Iterator[Line | Problem]]
