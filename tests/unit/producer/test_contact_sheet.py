"""Contact sheets: captions that fit, pages that end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageFont

from producer import contact_sheet
from producer.contact_sheet import CELL, wrap, write_contact_sheets

FONT = ImageFont.load_default(contact_sheet.FONT_SIZE)


def pictures(
    folder: Path, count: int, *, size: tuple[int, int] = (64, 64), prompt: str = "an otter"
) -> list[Any]:
    """Make small pictures with what a sheet needs to know of their jobs."""
    path = folder / "one.png"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    job = SimpleNamespace(index=0, parameters=SimpleNamespace(prompt=prompt, seed=1))
    return [SimpleNamespace(path=path, job=job) for _ in range(count)]


@pytest.mark.parametrize("text", ["an otter", "word " * 100, "x" * 500, "狐狸" * 60, ""])
def test_caption_lines_fit_their_cell(text: str) -> None:
    """Any text is broken into at most three lines of the cell's width."""
    lines = wrap(" ".join(text.split()), FONT)
    assert len(lines) <= contact_sheet.CAPTION_LINES
    assert all(FONT.getlength(line) <= CELL for line in lines)
    assert not text or lines[0].startswith(text[0])
    assert len(text) < 100 or lines[-1].endswith("…")


def test_pages_are_cut_and_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds so many pictures, and there are so many pages."""
    monkeypatch.setattr(contact_sheet, "PER_PAGE", 2)
    monkeypatch.setattr(contact_sheet, "MAX_PAGES", 2)
    sheets = write_contact_sheets(pictures(tmp_path, 9), tmp_path)
    assert [path.name for path in sheets] == ["contact-sheet.png", "contact-sheet-2.png"]


def test_no_picture_makes_no_sheet(tmp_path: Path) -> None:
    """Nothing to show, nothing written."""
    assert write_contact_sheets([], tmp_path) == []


@pytest.mark.parametrize("size", [(64, 64), (512, 256), (8, 600)])
def test_pictures_of_any_size_are_fitted(tmp_path: Path, size: tuple[int, int]) -> None:
    """Small ones grow by a whole factor, large ones shrink."""
    (sheet,) = write_contact_sheets(pictures(tmp_path, 1, size=size), tmp_path)
    with Image.open(sheet) as opened:
        middle = opened.convert("RGB").getpixel(
            (contact_sheet.GAP + CELL // 2, contact_sheet.GAP + CELL // 2)
        )
    assert middle == (200, 30, 30)


def test_broken_picture_leaves_an_empty_place(tmp_path: Path) -> None:
    """A file that is no picture does not end the sheet."""
    broken = pictures(tmp_path, 1)
    broken[0].path.write_text("not a picture")
    assert len(write_contact_sheets(broken, tmp_path)) == 1
