"""How a worker process ends, so that its supervisor knows what to do next."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of a worker process; 2 to 5 are those of the command line."""

    DONE = 0  # drained or stopped in order
    BAD_INPUT = 2  # its options cannot be used: starting again is pointless
    SURROUNDINGS = 3  # store, database or queue failed for long: the supervisor stops and says so
    MODEL = 5  # the model cannot be loaded
    STALE = 70  # declared dead while frozen; start again as another incarnation
    ENGINE = 71  # the engine or its device died; start again
    ORPHAN = 72  # the supervisor is gone


FINAL = frozenset({Exit.BAD_INPUT, Exit.SURROUNDINGS, Exit.MODEL})
ORDERLY = frozenset(
    {Exit.DONE, Exit.SURROUNDINGS, Exit.MODEL, Exit.BAD_INPUT, Exit.ORPHAN}
)  # nobody is suspect
