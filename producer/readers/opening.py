"""The way in to the readers: look at a file's head, pick its reader and hand it the whole file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from producer.lines import Line, Problem, Reader
from producer.readers import READERS
from producer.readers.detect import detect_format
from producer.readers.rejoined import peek


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A prompt file that has no path here: what somebody has sent.

    Attributes:
        name: what it is called, for messages; never a path that is opened.
        file: open, at its start.
    """

    name: str
    file: BinaryIO

    def __str__(self) -> str:
        return self.name

    def lines(self, input_format: str | None) -> Iterator[Line | Problem]:
        """Yield what it holds, as `read` does."""
        suffix = PurePosixPath(self.name).suffix
        yield from read(self.file, self.name, suffix=suffix, input_format=input_format)


Source = str | Upload


def reader_of(input_format: str) -> Reader:
    """Return the reader of one of `FORMATS`."""
    module, _, attribute = READERS[input_format].partition(":")
    reader: Reader = getattr(importlib.import_module(module), attribute)
    return reader


def read(
    file: BinaryIO, name: str, *, suffix: str = "", input_format: str | None = None
) -> Iterator[Line | Problem]:
    """Yield what a prompt file holds, whatever its format; memory stays flat.

    Args:
        file: open, at its start; a pipe will do. It is left open.
        name: for messages.
        suffix: of the file's name, a hint: `.csv`; empty where there is none.
        input_format: one of `FORMATS`; None lets the content decide.
    """
    head, whole = peek(file)
    found = detect_format(head, suffix=suffix, input_format=input_format)
    if found.reason is not None:
        yield Problem(file=name, reason=found.reason)
    else:
        yield from reader_of(found.format)(whole, name)
