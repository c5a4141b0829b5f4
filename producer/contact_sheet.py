"""Contact sheets: a grid of small pictures with their prompts, to look over a submission at a glance."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from producer.pictures import Picture
from storage.records import Job

CELL = 192  # pixels, width and height of a picture's place
GAP = 12
FONT_SIZE = 13
LINE_HEIGHT = 17
CAPTION_LINES = 3
PER_PAGE = 200
MAX_PAGES = 5
MAX_COLUMNS = 10
INK, FAINT, PAPER, MISSING = (30, 30, 30), (130, 130, 130), (255, 255, 255), (225, 225, 225)
_LAST_OF_DEFAULT_FONT = 0x24F  # Pillow's own font draws Latin; the rest needs a font of the system
_WIDER_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Source = Path | bytes  # of a picture: its file, or what is in it


def write_contact_sheets(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Write `contact-sheet.png` and, past 200 pictures, further pages; at most five.

    Args:
        pictures: in the order of the prompts; read as far as there is room, memory stays flat.
        folder: where the sheets go.

    Returns:
        The sheets' paths; none where there is no picture.
    """
    rest = iter(pictures)
    sheets: list[Path] = []
    for page in range(1, MAX_PAGES + 1):
        cells = list(islice(rest, PER_PAGE))
        if not cells:
            break
        path = folder / sheet_name(page)
        draw_sheet([(picture.job, picture.path) for picture in cells]).save(path)
        sheets.append(path)
    return sheets


def sheet_name(page: int) -> str:
    """Return the file name of a page, from 1."""
    return "contact-sheet.png" if page == 1 else f"contact-sheet-{page}.png"


def draw_sheet(pictures: Sequence[tuple[Job, Source]]) -> Image.Image:
    """Draw one page of jobs with their pictures."""
    columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    across, down = CELL + GAP, CELL + (CAPTION_LINES + 1) * LINE_HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + columns * across, GAP + rows * down), PAPER)
    draw = ImageDraw.Draw(sheet)
    for at, (job, picture) in enumerate(pictures):
        left, top = GAP + at % columns * across, GAP + at // columns * down
        small = fitted(picture)
        sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
        _write_caption(draw, job, left, top + CELL + 4)
    return sheet


def _write_caption(draw: ImageDraw.ImageDraw, job: Job, left: int, top: int) -> None:
    prompt = " ".join(job.parameters.prompt.split())
    font = font_for(prompt)
    for number, line in enumerate(wrap(prompt, font)):
        draw.text((left, top + number * LINE_HEIGHT), line, fill=INK, font=font)
    below = f"{job.index:06d}   seed {job.parameters.seed}"
    draw.text((left, top + CAPTION_LINES * LINE_HEIGHT), below, fill=FAINT, font=font_for(""))


def wrap(text: str, font: Font, *, width: int = CELL, lines: int = CAPTION_LINES) -> list[str]:
    """Break a text into lines of at most `width` pixels; the last one ends in … where it was cut."""
    wrapped = list(islice(_broken(text, font, width), lines + 1))
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return wrapped


def _broken(text: str, font: Font, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        line = word
        while (
            font.getlength(line) > width and len(line) > 1
        ):  # a word wider than the cell, or no blanks at all
            fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            yield line[:fits]
            line = line[fits:]
    if line:
        yield line


def fitted(source: Source) -> Image.Image:
    """Return a picture scaled into a cell: small ones by a whole factor, so that their pixels stay true."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return Image.new("RGB", (CELL, CELL), MISSING)
    factor = CELL // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return picture


def font_for(text: str) -> Font:
    """Return a font that can draw a text: Pillow's own, or one of the system for other scripts."""
    if any(ord(character) > _LAST_OF_DEFAULT_FONT for character in text):
        for name in _WIDER_FONTS:
            try:
                return ImageFont.truetype(name, FONT_SIZE)
            except OSError:
                continue
    return ImageFont.load_default(FONT_SIZE)
