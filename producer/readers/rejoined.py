"""Look at the head of a file that may be a pipe, and lose nothing of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD = 2**16  # bytes looked at; a header line is far shorter


def peek(file: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Return the first bytes of a file, and the file as if they had not been read."""
    if file.seekable():
        start = file.tell()
        head = file.read(HEAD)
        file.seek(start)
        return head, file
    head = file.read(HEAD)
    return head, cast("BinaryIO", io.BufferedReader(_Rejoined(head, file), HEAD))


class _Rejoined(io.RawIOBase):
    """The bytes that were read already, then the rest of the file; closing it leaves the file open."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file
        # At a terminal, a file that has ended would ask for a second Ctrl-D.
        self._ended = len(head) < HEAD

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer from the head, then from the file."""
        view = memoryview(buffer).cast("B")
        if self._head:
            part, self._head = self._head[: len(view)], self._head[len(view) :]
        else:
            part = b"" if self._ended else self._file.read(len(view))
        view[: len(part)] = part
        return len(part)
