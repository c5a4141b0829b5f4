"""How alike two pictures are said to be, and what differs between two numerics records."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producer.comparing import Likeness, Outcome, changes, compare
from storage.errors import BadInputError


def png(*pixels: tuple[int, int, int], level: int = 6, **text: str) -> bytes:
    """Return a PNG of one row."""
    picture = Image.new("RGB", (len(pixels), 1))
    picture.putdata(list(pixels))
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunks, compress_level=level)
    return buffer.getvalue()


def test_equal_bytes_are_byte_identical() -> None:
    """They are not even decoded."""
    assert compare(b"anything", b"anything") == Likeness(outcome=Outcome.BYTES)


def test_equal_pixels_in_other_bytes_are_pixel_identical() -> None:
    """Texts that differ between the two files are named."""
    row = [(1, 2, 3), (200, 100, 0)]
    found = compare(png(*row, parameters="an otter", other="x"), png(*row, parameters="a fox", other="x"))
    assert (found.outcome, found.max_difference, found.texts) == (Outcome.PIXELS, 0, ("parameters",))
    assert compare(png(*row, level=0), png(*row, level=9)).texts == ()


def test_a_difference_is_measured() -> None:
    """By the largest of any channel, and as PSNR over all of them: 10 log10(255² / mean squared error)."""
    found = compare(png((10, 20, 30), (0, 0, 0)), png((10, 23, 30), (0, 0, 1)))
    assert (found.outcome, found.max_difference) == (Outcome.DIFFERENT, 3)
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / ((9 + 1) / 6)))


def test_another_size_is_said() -> None:
    """There is nothing to measure then."""
    found = compare(png((1, 1, 1)), png((1, 1, 1), (1, 1, 1)))
    assert (found.outcome, found.psnr_db, found.detail) == (Outcome.DIFFERENT, None, "2x1 instead of 1x1")


@pytest.mark.parametrize("data", [b"", b"no picture", png((1, 2, 3))[:40]])
def test_what_cannot_be_decoded_is_one_sentence(data: bytes) -> None:
    """Half a picture, or none."""
    with pytest.raises(BadInputError, match=r"\.$"):
        compare(data, png((1, 2, 3)))


def test_changes_name_each_value_of_a_record() -> None:
    """Nested ones with their path, and also what is in only one of the two."""
    before = {"lanes": 8, "dtype": "float32", "versions": {"torch": "2.1", "scipy": "1"}}
    after = {"lanes": 4, "dtype": "float32", "versions": {"torch": "2.2", "scipy": "1"}, "new": True}
    assert [str(change) for change in changes(before, after)] == [
        "lanes: 8 → 4",
        "versions.torch: 2.1 → 2.2",
        "new: nothing → True",
    ]
    assert changes(before, before) == []
