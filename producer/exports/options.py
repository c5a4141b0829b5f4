"""What is wanted of an export: its format, which jobs, the files' names and sizes; checked first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from producer.sweeps import parse_size
from storage.errors import BadInputError
from storage.filters import ALIASES, EXTRA, OPTIONS, OWN_COLUMNS, SETTINGS, SIZE, JobFilter
from storage.records import JobStatus
from storage.samplers import resolve_sampler

IMAGEFOLDER, WEBDATASET, PARQUET, CSV, SHEET, GRID = FORMATS = (
    "imagefolder", "webdataset", "parquet", "csv", "contact-sheet", "grid",
)  # fmt: skip
SHARDED = (WEBDATASET, PARQUET)
NAMED = (IMAGEFOLDER, GRID, WEBDATASET, PARQUET)
DEFAULT_SHARD_SIZE = "1GB"
_BYTES = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20,
    "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What one export is asked for.

    Attributes:
        format: one of FORMATS.
        statuses: jobs with one of them are meant.
        meant: which of those.
        name: template of the files' names without suffix; None for the format's own.
        shard_size: bytes at which a shard ends.
        link: whether a table has links to the pictures instead of their bytes.
        sidecar: whether a JSON file lies beside each picture.
    """

    format: str = IMAGEFOLDER
    statuses: tuple[JobStatus, ...] = (JobStatus.SUCCEEDED,)
    meant: JobFilter
    name: str | None = None
    shard_size: int = 10**9
    link: bool = False
    sidecar: bool = False

    def noted(self) -> dict[str, Any]:
        """Return what decides the content of an export, as its marker keeps it."""
        sharded = {"shard_size": self.shard_size} if self.format in SHARDED else {}
        return {
            "format": IMAGEFOLDER if self.format == GRID else self.format,  # a grid only comes beside it
            "status": [str(status) for status in self.statuses],
            "match": self.meant.match,
            "where": {name: list(values) for name, values in self.meant.where.items()},
            "name": self.name,
            "link": self.link,
            **sharded,
        }


def export_options(
    *,
    layout: str,
    statuses: Sequence[str],
    match: str,
    where: Sequence[str],
    columns: Sequence[str],
    name: str | None,
    shard_size: str | None,
    link: bool,
    sidecar: bool = False,
) -> ExportOptions:
    """Check the flags of `export`.

    Args:
        layout: the format.
        statuses: as `--status` gives them; none means succeeded.
        match: part of the prompt; empty for any.
        where: texts `column=value`.
        columns: the prompt file's own columns that the submission has.
        name: template of the files' names.
        shard_size: such as `1GB`, `500MiB`.
        link: links instead of bytes.
        sidecar: a JSON file beside each picture.

    Raises:
        BadInputError: one sentence about the first flag that cannot be used.
    """
    if shard_size is not None and layout not in SHARDED:
        raise BadInputError(
            f"--shard-size is for {' and '.join(SHARDED)}; {layout} has no shards, leave it out."
        )
    if link and layout != PARQUET:
        raise BadInputError(f"--link is for parquet; leave it out with {layout}.")
    if sidecar and layout not in (IMAGEFOLDER, GRID):
        raise BadInputError(f"--sidecar is for {IMAGEFOLDER} and {GRID}; leave it out with {layout}.")
    if name is not None and layout not in NAMED:
        raise BadInputError(f"--name is for formats that hold the pictures; leave it out with {layout}.")
    chosen = tuple(JobStatus(status) for status in dict.fromkeys(statuses)) or (JobStatus.SUCCEEDED,)
    if layout != CSV and chosen != (JobStatus.SUCCEEDED,):
        other = next(status for status in chosen if status is not JobStatus.SUCCEEDED)
        raise BadInputError(f"Jobs that are {other} have no picture; --status {other} goes with csv only.")
    return ExportOptions(
        format=layout,
        statuses=chosen,
        meant=JobFilter(match=match, where=parse_where(where, columns)),
        name=name,
        shard_size=parse_bytes(shard_size or DEFAULT_SHARD_SIZE),
        link=link,
        sidecar=sidecar,
    )


def parse_where(texts: Sequence[str], columns: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Read texts `column=value`; several values of one column are alternatives.

    Raises:
        BadInputError: for a text that is none, a column that no job has, or a value that it cannot have.
    """
    where: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise BadInputError(f"--where {text!r} is no condition; write COLUMN=VALUE.")
        check_column(name, columns, flag="--where")
        where[name] = (*where.get(name, ()), _usual(name, value))
    return where


def check_column(name: str, columns: Sequence[str], *, flag: str) -> None:
    """Raise BadInputError, which lists what there is, unless jobs have a column of this name."""
    if name in OWN_COLUMNS or name in columns or name.removeprefix(EXTRA) in columns:
        return
    own = f"; of its own columns it has {', '.join(columns)}" if columns else " and has no columns of its own"
    short = ", ".join((*SETTINGS, SIZE, *OPTIONS))
    raise BadInputError(f"{flag}: the submission has no column {name!r}; every job has {short}{own}.")


def parse_bytes(text: str) -> int:
    """Read a size such as `500MB`, `1.5 GiB` or a number of bytes.

    Raises:
        BadInputError: when it is none, or nothing fits into it.
    """
    found = _SIZE.fullmatch(text.strip())
    factor = _BYTES.get(found[2].upper()) if found else None
    count = int(float(found[1]) * factor) if found and factor else 0
    if count < 1:
        raise BadInputError(f"--shard-size {text!r} is no size; write one such as 500MB or 1GB.")
    return count


def _usual(name: str, value: str) -> str:
    """Write a value as jobs have it: samplers under their own names, sizes as WIDTHxHEIGHT."""
    if name == "sampler" and value:
        sampler, schedule = resolve_sampler(value)
        if schedule:
            raise BadInputError(
                f"--where {name}={value} names a schedule, too; write --where sampler={sampler} --where "
                f"schedule={schedule}."
            )
        return sampler
    if name == SIZE and value:
        width, height = parse_size(value)
        return f"{width}x{height}"
    if ALIASES.get(name, name) in ("prompt", "negative_prompt"):
        return value.strip()
    return value
