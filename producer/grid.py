"""Lay a sweep out as labelled rows and columns: what varies becomes axes, what does not is said once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from producer.contact_sheet import (
    CELL,
    FAINT,
    GAP,
    INK,
    LINE_HEIGHT,
    MISSING,
    PAPER,
    Source,
    fitted,
    font_for,
    wrap,
)
from producer.output import cell, shorten
from storage.errors import BadInputError
from storage.loras import told_options
from storage.records import Job

PITCH = CELL + GAP  # pixels from one picture's place to the next
MAX_WIDTH = 2_000  # pixels, as far as panels stand beside each other
LABEL = 110  # pixels left of each row
MAX_CELLS = 2_500  # on one page
MAX_PAGES = 200
LABEL_LINES = 4
_FILLED_LATER = ("sampler", "steps", "guidance", "size")
_SEED = "seed"
_IMAGE = "image"

Labels = dict[str, str]  # what a job shows on each axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One thing that varies, and the labels of its values in the order in which they first occur."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Jobs by their place on up to so many axes as vary, the slowest first.

    Attributes:
        axes: the last two are rows and columns, the third last panels, those before pages.
        jobs: by the index on each axis.
        common: what all jobs share, as `name value`.
    """

    axes: tuple[Axis, ...]
    jobs: Mapping[tuple[int, ...], Job]
    common: tuple[str, ...]


def lay_out(jobs: Sequence[Job]) -> Grid:
    """Find what varies and where each job belongs.

    Settings that vary together, as those of `--zip`, are one axis. Several pictures of equal settings are
    told apart by their seeds, or by their number where each has seeds of its own.

    Raises:
        BadInputError: when there is nothing to lay out.
    """
    if not jobs:
        raise BadInputError("There is no job to lay out.")
    rows = [_labels(job) for job in jobs]
    _add_seeds(jobs, rows)
    names = sorted(rows[0], key=lambda name: _changes(rows, name))  # stable: the usual order among equals
    varying = _joined([name for name in names if len({row[name] for row in rows}) > 1], rows)
    axes = tuple(_axis(group, rows) for group in varying)
    at = [{label: number for number, label in enumerate(axis.labels)} for axis in axes]
    places = [
        tuple(numbers[_label(group, row)] for numbers, group in zip(at, varying, strict=True))
        for row in rows
    ]  # fmt: skip
    used = set(itertools.chain(*varying))
    common = tuple(f"{name} {rows[0][name]}" for name in rows[0] if name not in used and rows[0][name])
    return Grid(axes=axes, jobs=dict(zip(places, jobs, strict=True)), common=common)


def check_grid(jobs: int) -> None:
    """Refuse a submission that no grid has room for, before its jobs are read."""
    if jobs > MAX_CELLS * MAX_PAGES:
        raise BadInputError(f"A grid has room for {MAX_CELLS * MAX_PAGES:,} jobs, not {jobs:,}.")


def write_grid(grid: Grid, pictures: Mapping[int, Path], folder: Path) -> list[Path]:
    """Write `grid.png`, and `grid-2.png` and so on where it takes several pages; return their paths.

    Args:
        grid: what to draw.
        pictures: where each job's picture is, by its index.
        folder: where the pages go.
    """
    written = []
    for number, page in enumerate(draw_pages(grid, lambda job: pictures.get(job.index)), 1):
        path = folder / page_name(number)
        page.save(path)
        written.append(path)
    return written


def page_name(number: int) -> str:
    """Return the file name of a page, from 1."""
    return "grid.png" if number == 1 else f"grid-{number}.png"


def draw_pages(grid: Grid, picture: Callable[[Job], Source | None]) -> Iterator[Image.Image]:
    """Draw one page for each combination of the axes before the last three.

    Args:
        grid: what to draw.
        picture: returns a job's picture; None leaves its place grey.
    """
    *outer, panels, rows, columns = _axes_of_a_page(grid)
    pages = itertools.product(*(range(len(axis.labels)) for axis in outer))
    depth = len(grid.axes)
    for page in pages:
        said = [f"{axis.name} {axis.labels[at]}" for axis, at in zip(outer, page, strict=True)]

        def find(*place: int, page: tuple[int, ...] = page) -> Job | None:
            return grid.jobs.get((*page, *place)[len(page) + 3 - depth :])

        yield _Page(panels, rows, columns, [*said, *grid.common]).draw(find, picture)


def check_pages(grid: Grid) -> None:
    """Raise BadInputError when a page would have too many places, or there would be too many pages."""
    *outer, panels, rows, columns = _axes_of_a_page(grid)
    cells = len(panels.labels) * len(rows.labels) * len(columns.labels)
    pages = math.prod(len(axis.labels) for axis in outer)
    if cells > MAX_CELLS or pages > MAX_PAGES:
        raise BadInputError(
            f"This makes {pages:,} pages of {cells:,} places; a grid has at most {MAX_PAGES} of "
            f"{MAX_CELLS:,}. Export it as imagefolder, or sweep over less."
        )


def _axes_of_a_page(grid: Grid) -> list[Axis]:
    return [*([_NOTHING] * (3 - len(grid.axes))), *grid.axes]


_NOTHING = Axis(name="", labels=("",))


@dataclass(frozen=True, slots=True)
class _Page:
    """One picture of panels below each other, each with its rows and columns."""

    panels: Axis
    rows: Axis
    columns: Axis
    said: list[str]

    def draw(self, find: Callable[..., Job | None], picture: Callable[[Job], Source | None]) -> Image.Image:
        """Draw the panels beside each other as far as there is room, then below."""
        left = GAP + (LABEL if self.rows.name else 0)
        wide = len(self.columns.labels) * PITCH + (GAP if self.panels.name else 0)
        across = max(1, min(len(self.panels.labels), (MAX_WIDTH - left) // wide))
        down = -(-len(self.panels.labels) // across)
        head = self._wrapped(", ".join(self.said), left + across * wide - 2 * GAP)
        top = GAP + len(head) * LINE_HEIGHT + GAP
        title = LINE_HEIGHT + GAP // 2 if self.panels.name else 0
        tall = title + (2 * LINE_HEIGHT if self.columns.name else 0) + len(self.rows.labels) * PITCH + GAP
        sheet = Image.new("RGB", (left + across * wide, top + down * tall), PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, line in enumerate(head):
            draw.text((GAP, GAP + number * LINE_HEIGHT), line, fill=FAINT, font=font_for(line))
        for panel, label in enumerate(self.panels.labels):
            x, y = left + panel % across * wide, top + panel // across * tall
            if self.panels.name:
                draw.text((x, y), f"{self.panels.name} {label}", fill=INK, font=font_for(label))
            y = self._draw_titles(draw, x, y + title)
            if panel % across == 0:
                self._draw_row_labels(draw, y)
            for row, column in itertools.product(
                range(len(self.rows.labels)), range(len(self.columns.labels))
            ):
                job = find(panel, row, column)
                if job is not None:
                    _draw_cell(sheet, draw, (x + column * PITCH, y + row * PITCH), job, picture(job))
        return sheet

    def _draw_titles(self, draw: ImageDraw.ImageDraw, left: int, y: int) -> int:
        if not self.columns.name:
            return y
        for column, label in enumerate(self.columns.labels):
            text = f"{self.columns.name} {label}"
            for number, line in enumerate(wrap(text, font_for(text), width=CELL, lines=2)):
                x = left + column * PITCH
                draw.text((x, y + number * LINE_HEIGHT), line, fill=INK, font=font_for(text))
        return y + 2 * LINE_HEIGHT

    def _draw_row_labels(self, draw: ImageDraw.ImageDraw, y: int) -> None:
        if not self.rows.name:
            return
        for row, label in enumerate(self.rows.labels):
            text = f"{self.rows.name} {label}"
            lines = wrap(text, font_for(text), width=LABEL - GAP, lines=LABEL_LINES)
            for number, line in enumerate(lines):
                place = (GAP, y + row * PITCH + number * LINE_HEIGHT)
                draw.text(place, line, fill=INK, font=font_for(text))

    @staticmethod
    def _wrapped(text: str, width: int) -> list[str]:
        return wrap(text, font_for(text), width=width, lines=LABEL_LINES) if text else []


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], job: Job, source: Source | None
) -> None:
    if source is None:
        draw.rectangle((*place, place[0] + CELL - 1, place[1] + CELL - 1), fill=MISSING)
        draw.text((place[0] + GAP, place[1] + GAP), job.status.value, fill=FAINT, font=font_for(""))
        return
    small = fitted(source)
    sheet.paste(small, (place[0] + (CELL - small.width) // 2, place[1] + (CELL - small.height) // 2))


def _labels(job: Job) -> Labels:
    """Write what a job was asked for, under the names of `--sweep`."""
    asked = job.parameters
    schedule = f" {asked.schedule}" if asked.schedule not in (None, "default") else ""
    labels = {
        "prompt": shorten(" ".join(asked.prompt.split()), 200),
        "negative": shorten(" ".join(asked.negative_prompt.split()), 100),
        "sampler": f"{asked.sampler or ''}{schedule}",
        "steps": cell(asked.num_inference_steps),
        "guidance": cell(asked.guidance_scale),
        "size": f"{asked.width}x{asked.height}" if asked.width and asked.height else "",
    }
    return labels | {name: cell(value) for name, value in told_options(asked.options).items()}


def _add_seeds(jobs: Sequence[Job], rows: list[Labels]) -> None:
    """Add an axis that tells jobs of equal settings apart, in place."""
    names = list(dict.fromkeys(itertools.chain(*rows)))  # with the options that only some have
    rows[:] = [{name: row.get(name, "") for name in names} for row in rows]
    for name in _FILLED_LATER:  # a worker has not chosen it yet, for those that wait
        labels = {row[name] for row in rows} - {""}
        if len(labels) == 1:
            for row in rows:
                row[name] = next(iter(labels))
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(tuple(row.values()), []).append(at)
    seeds = [[jobs[at].parameters.seed for at in group] for group in groups.values()]
    if max(map(len, seeds)) == 1 and len({one[0] for one in seeds}) > 1:
        return  # each has its own, and nothing to be told apart from
    same = all(one == seeds[0] for one in seeds) and len(set(seeds[0])) == len(seeds[0])
    for group in groups.values():
        for number, at in enumerate(group):
            rows[at] |= {_SEED: str(jobs[at].parameters.seed)} if same else {_IMAGE: str(number + 1)}


def _changes(rows: Sequence[Labels], name: str) -> int:
    """How often a label changes from job to job: the outermost loop's changes least."""
    return sum(one[name] != other[name] for one, other in itertools.pairwise(rows))


def _joined(names: Sequence[str], rows: Sequence[Labels]) -> list[tuple[str, ...]]:
    """Group the names whose labels decide each other: they vary together, so they are one axis."""
    groups: list[tuple[str, ...]] = []
    for name in names:
        for at, group in enumerate(groups):
            pairs = {(row[group[0]], row[name]) for row in rows}
            if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                groups[at] = (*group, name)
                break
        else:
            groups.append((name,))
    return groups


def _axis(group: tuple[str, ...], rows: Sequence[Labels]) -> Axis:
    # Of several names the first is the axis' and the others are said with each value.
    return Axis(name=group[0], labels=tuple(dict.fromkeys(_label(group, row) for row in rows)))


def _label(group: tuple[str, ...], row: Labels) -> str:
    first, *others = group
    return ", ".join([row[first], *(f"{name} {row[name]}" for name in others)])
