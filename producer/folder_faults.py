"""Faults of a folder's file system, as sentences."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StoreFullError, UnreachableError


@contextmanager
def folder_faults(folder: Path) -> Iterator[None]:
    """Turn a fault of the folder's file system into a sentence.

    Raises:
        StoreFullError: when its disk is full.
        UnreachableError: for any other fault.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"No space is left to write {folder}; free some, then run it again."
            ) from error
        raise UnreachableError(
            f"The folder {folder} cannot be written: {error.strerror or error}."
        ) from error
