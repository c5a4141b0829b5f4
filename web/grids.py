"""A sweep as a table of pictures: the same axes that `export --format grid` draws."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from producer.grid import Axis, Grid, lay_out
from storage.records import Job, Submission
from web.site import Site

MAX_LAID_OUT = 600  # jobs
MAX_CELLS = 5_000  # of a list that is no sweep there would be a cell for each of all combinations
NOTHING = Axis(name="", labels=("",))


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One table: for each row its label and a job, or None, for each column."""

    title: str
    rows: list[tuple[str, list[Job | None]]]


def grid_of(site: Site, submission: Submission) -> dict[str, Any]:
    """Lay out a submission's first jobs; return what the template `grid.html` shows."""
    found = list(site.jobs_of(submission, limit=MAX_LAID_OUT))
    if not found:
        return {"common": [], "panels": [], "columns": [], "left_out": False, "laid_out": 0, "cells": 0}
    grid = lay_out(found)
    cells = math.prod(len(axis.labels) for axis in grid.axes)
    if cells > MAX_CELLS:
        return {"common": [], "panels": [], "columns": [], "left_out": False, "laid_out": 0, "cells": cells}
    *panels, rows, columns = [NOTHING, NOTHING, *grid.axes][-max(2, len(grid.axes)) :]
    return {
        "common": grid.common,
        "columns": _labels(columns),
        "panels": [
            Panel(title=_title(panels, at), rows=_rows(grid, at, rows, columns))
            for at in itertools.product(*(range(len(axis.labels)) for axis in panels))
        ],
        "left_out": submission.total > len(found),
        "laid_out": len(found),
        "cells": cells,
    }


def _labels(axis: Axis) -> list[str]:
    return [f"{axis.name} {label}".strip() for label in axis.labels]


def _title(panels: list[Axis], at: tuple[int, ...]) -> str:
    return ", ".join(f"{axis.name} {axis.labels[number]}" for axis, number in zip(panels, at, strict=True))


def _rows(grid: Grid, at: tuple[int, ...], rows: Axis, columns: Axis) -> list[tuple[str, list[Job | None]]]:
    def job(row: int, column: int) -> Job | None:
        inner = [number for axis, number in ((rows, row), (columns, column)) if axis is not NOTHING]
        return grid.jobs.get((*at, *inner))

    return [
        (label, [job(row, column) for column in range(len(columns.labels))])
        for row, label in enumerate(_labels(rows))
    ]
