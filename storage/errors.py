"""Every error a user can meet, each with the exit code the command line ends with.

A message is one sentence that says what was wrong, where, and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class PromptmillError(Exception):
    """Base of all errors that are shown to the user as one sentence."""

    exit_code: ClassVar[int] = 1


class DifferenceError(PromptmillError):
    """A picture is not what it was, or what its row says that it is."""


class BadInputError(PromptmillError):
    """What the user gave cannot be used; nothing was written."""

    exit_code = 2


class UnreachableError(PromptmillError):
    """A database, queue or store is down, full, refuses us, or has another schema version."""

    exit_code = 3


class StoreFullError(UnreachableError):
    """The disk or bucket behind the database or the picture store has no space left."""


class SchemaError(UnreachableError):
    """The database's schema is older or newer than this version of promptmill."""


class WaitTimeoutError(PromptmillError):
    """`wait --timeout` ran out before the submission was done."""

    exit_code = 4


class ModelLoadError(PromptmillError):
    """A model cannot be loaded: missing, gated, incomplete, corrupt or of an unsafe format."""

    exit_code = 5


class StaleWorkerError(PromptmillError):
    """This worker was declared dead by a reaper (it froze past its lease) and must not go on."""

    exit_code = 3
