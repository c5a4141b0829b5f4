"""What goes wrong in a run, and when: drawn from its seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What the harness does to a farm from outside; what markers in prompts do is in `sabotage/`."""

    KILL_WORKER = "kill -9 a worker process"
    KILL_STARTING = "kill -9 a worker process that loads its model"
    KILL_SUPERVISOR = "kill -9 a supervisor"
    FREEZE_WORKER = "freeze a worker process past its lease"
    KILL_SUBMIT = "kill -9 a submit half-way"
    KILL_EXPORT = "kill -9 an export half-way"
    KILL_CANCEL = "kill -9 a cancel half-way"
    REDIS_EMPTY = "kill -9 Redis, back empty"
    REDIS_OLD = "kill -9 Redis, back with old messages"
    REDIS_CLIENTS = "CLIENT KILL of all of Redis' connections"
    POSTGRES_RESTART = "restart PostgreSQL"
    POSTGRES_TERMINATE = "pg_terminate_backend of all connections"
    COMMIT_REPLY = "cut a connection between a finish's COMMIT and its reply"
    DISK_FULL = "fill the store's disk"
    S3_ERRORS = "S3 answers 500"
    S3_LATE_ERRORS = "S3 stores, and answers 500"
    S3_SILENCE = "S3 does not answer"
    HALF_FILES = "leave half-written files"
    CLOCK_JUMP = "a worker's clock jumps by hours"


_ALWAYS = (
    Fault.KILL_WORKER, Fault.KILL_STARTING, Fault.KILL_SUPERVISOR, Fault.FREEZE_WORKER, Fault.KILL_SUBMIT,
    Fault.KILL_EXPORT, Fault.KILL_CANCEL, Fault.REDIS_EMPTY, Fault.REDIS_CLIENTS, Fault.CLOCK_JUMP,
)  # fmt: skip
_POSTGRES = (Fault.POSTGRES_RESTART, Fault.POSTGRES_TERMINATE, Fault.COMMIT_REPLY, Fault.REDIS_OLD)
_FOLDER = (Fault.DISK_FULL, Fault.HALF_FILES)
_S3 = (Fault.S3_ERRORS, Fault.S3_LATE_ERRORS, Fault.S3_SILENCE)
MARKERS = ("poison", "raises", "die in the gap", "freeze in the gap", "die in the write")
FIRST, LAST = 0.03, 0.8  # share of jobs that are finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A fault and its moment: the share of jobs that have ended, 0 to 1."""

    share: float
    fault: Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One run.

    Attributes:
        database: `sqlite` (and the embedded Redis) or `postgres` (and a Redis of its own).
        pictures: `folder` or `s3`.
        markers: of jobs that misbehave, one job each.
    """

    seed: int
    database: str
    pictures: str
    faults: tuple[Planned, ...]
    markers: tuple[str, ...]


def make_plan(
    seed: int, *, database: str | None = None, faults: int = 8, markers: int = 2, only: str | None = None
) -> Plan:
    """Draw a run: the four kinds of farm in turn, and some of the faults that its kind can have.

    Args:
        seed: of everything.
        database: only this one.
        faults: how many from outside, each at most once.
        markers: how many kinds of jobs that misbehave.
        only: a part of the names of the faults that are meant; all are, if it is not given.
    """
    dice = random.Random(seed)
    kind = database or ("sqlite", "postgres")[seed % 2]
    pictures = ("folder", "s3")[(seed // 2 + seed) % 2]
    possible = [*_ALWAYS, *(_POSTGRES if kind == "postgres" else ()), *(_S3 if pictures == "s3" else _FOLDER)]
    possible = [fault for fault in possible if only is None or only in fault]
    chosen = dice.sample(possible, min(faults, len(possible)))
    # A submit or a cancel needs jobs that are still to come.
    chosen.sort(key=lambda fault: fault not in (Fault.KILL_SUBMIT, Fault.KILL_CANCEL))
    moments = sorted(dice.uniform(FIRST, LAST) for _ in chosen)
    planned = (Planned(share=share, fault=fault) for share, fault in zip(moments, chosen, strict=True))
    marked = tuple(dice.sample(MARKERS, min(markers, len(MARKERS))))
    return Plan(seed=seed, database=kind, pictures=pictures, faults=tuple(planned), markers=marked)
