"""Sweeps laid out: what varies is an axis, what varies together is one, and each job has its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from producer import grid as grid_module
from producer.contact_sheet import CELL, PAPER
from producer.grid import check_pages, draw_pages, lay_out, write_grid
from producer.jobs import JobOptions, build_jobs
from producer.lines import Line
from producer.sweeps import combine, parse_axis
from storage.errors import BadInputError
from storage.records import JobStatus

RED = (200, 30, 30)


def jobs(*sweeps: str, prompts: int = 1, zipped: bool = False, **flags: Any) -> list[Any]:
    """Return what a grid needs to know of the jobs of a sweep."""
    options = JobOptions(sweep=combine([parse_axis(text) for text in sweeps], zipped=zipped), **flags)
    lines = [Line(file="f", line=n, prompt=f"an otter {n}") for n in range(prompts)]
    defaults = {
        "sampler": "lms", "schedule": "default", "num_inference_steps": 30, "guidance_scale": 7.5,
        "width": 64, "height": 64,
    }  # fmt: skip
    return [
        SimpleNamespace(index=index, parameters=parameters, status=JobStatus.WAITING)
        for index, parameters in enumerate(build_jobs(lines, options, defaults))
    ]


def axes(made: list[Any]) -> list[tuple[str, int]]:
    """Return name and length of each axis."""
    return [(axis.name, len(axis.labels)) for axis in lay_out(made).axes]


def test_a_sweeps_axes_are_in_the_order_of_its_loops() -> None:
    """The slowest first; what does not vary is said once."""
    made = jobs("sampler=lms,euler,ddim", "guidance=2,5,9", "steps=8,30", seeds=(7,))
    laid = lay_out(made)
    assert axes(made) == [("sampler", 3), ("guidance", 3), ("steps", 2)]
    assert [laid.jobs[place].index for place in sorted(laid.jobs)] == list(range(18))
    assert laid.common == ("prompt an otter 0", "size 64x64", "seed 7")


def test_what_varies_together_is_one_axis() -> None:
    """As --zip does, and a sampler that brings its schedule."""
    made = jobs("steps=10,20", "guidance=3,5", zipped=True, seeds=(7,))
    (axis,) = lay_out(made).axes
    assert axis.labels == ("10, guidance 3", "20, guidance 5")
    made = jobs("sampler=LMS Karras,euler", seeds=(7,))
    assert lay_out(made).axes[0].labels == ("lms karras", "euler")


def test_pictures_of_equal_settings_are_told_apart_by_seed_or_number() -> None:
    """By seed where all prompts have the same ones; drawn ones differ everywhere."""
    assert axes(jobs("steps=8,30", seeds=(7, 9))) == [("steps", 2), ("seed", 2)]
    assert axes(jobs(prompts=3, images=2)) == [("prompt", 3), ("image", 2)]


def test_an_option_that_only_some_have_is_an_axis() -> None:
    """The default leaves no trace in a job."""
    made = jobs("eta=0.5,1", sampler="ddim", seeds=(7,))
    made[0].parameters = build_without_eta(made[0].parameters)
    assert axes(made) == [("eta", 2)]


def build_without_eta(parameters: Any) -> Any:
    """Return the parameters without options."""
    return SimpleNamespace(
        **{name: getattr(parameters, name) for name in parameters.__slots__ if name != "options"}, options={}
    )


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A small red picture."""
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 64), RED).save(path)
    return path


def test_each_job_is_drawn_in_its_place(red: Path) -> None:
    """One red picture among places that have none yet."""
    made = jobs("sampler=lms,euler,ddim", "guidance=2,5,9", "steps=8,30", seeds=(7,))
    (empty,) = draw_pages(lay_out(made), lambda _job: None)
    seen = set()
    for chosen in made:
        (page,) = draw_pages(lay_out(made), lambda job, chosen=chosen: red if job is chosen else None)
        rows, columns = np.nonzero((np.asarray(page) == RED).all(axis=2))
        top, left = int(rows.min()), int(columns.min())
        assert (rows.max() - top + 1, columns.max() - left + 1, len(rows)) == (CELL, CELL, CELL * CELL)
        assert empty.getpixel((left, top)) != PAPER
        seen.add((left, top))
    assert len(seen) == len(made)


def test_four_axes_take_pages_and_fewer_take_one(tmp_path: Path, red: Path) -> None:
    """A page for each value of the outermost."""
    made = jobs("sampler=lms,euler", "guidance=2,5", "steps=8,30", prompts=3, seeds=(7,))
    pages = write_grid(lay_out(made), {job.index: red for job in made}, tmp_path)
    assert [page.name for page in pages] == ["grid.png", "grid-2.png", "grid-3.png"]
    for few in (jobs(), jobs("steps=8,30"), jobs("steps=8,30", "guidance=2,5")):
        assert len(list(draw_pages(lay_out(few), lambda _job: None))) == 1


def test_what_cannot_be_laid_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to show, and too much of it."""
    with pytest.raises(BadInputError, match="no job to lay out"):
        lay_out([])
    monkeypatch.setattr(grid_module, "MAX_CELLS", 5)
    with pytest.raises(BadInputError, match="1 pages of 6 places"):
        check_pages(lay_out(jobs("steps=1..6", seeds=(1,))))


def test_labels_in_any_script_are_drawn(red: Path) -> None:
    """Nothing falls over, however long."""
    made = jobs("negative=模糊|" + "blurry " * 100, seeds=(7,))
    pages: Iterator[Any] = draw_pages(lay_out(made), lambda _job: red)
    assert next(pages).width > 0
