"""Texts stand in a file where others look for them, and are found where others have put them."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace

import pytest
from PIL import Image

from storage.errors import BadInputError
from storage.picture_metadata import EXIF_IFD, USER_COMMENT, Texts, jpeg_segments, read_texts, xmp_of
from storage.picture_record import read_record

LONG = Texts(
    infotext="\U0001f98a" * 20_000 + "\nSteps: 5", record='{"prompt":"' + r"\ud83e\udd8a" * 20_000 + '"}'
)


def jpeg(segments: bytes = b"", **metadata: bytes) -> bytes:
    """Return a small JPEG, with segments behind the first one."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", **metadata)
    data = buffer.getvalue()
    first = 4 + int.from_bytes(data[4:6], "big")
    return data[:first] + segments + data[first:]


def parts_of(segments: bytes) -> list[bytes]:
    """Take segments apart."""
    parts = []
    while segments:
        marker, size = struct.unpack(">HH", segments[:4])
        assert marker == 0xFFE1
        parts.append(segments[: size + 2])
        segments = segments[size + 2 :]
    return parts


def texts_in(data: bytes) -> Texts:
    """Read the texts of a file."""
    with Image.open(io.BytesIO(data)) as picture:
        return read_texts(picture)


def test_short_texts_take_a_segment_each() -> None:
    """EXIF comes first, as its standard wants it."""
    exif, xmp = parts_of(jpeg_segments(Texts(infotext="a fox", record="{}")))
    assert exif[4:10] == b"Exif\0\0"
    assert xmp[4:].startswith(b"http://ns.adobe.com/xap/1.0/\0<?xpacket")


def test_long_texts_go_on_in_further_segments() -> None:
    """As long as texts can be; a record of which a segment is lost is not taken for whole."""
    parts = parts_of(jpeg_segments(LONG))
    assert len(parts) == 2 + 1 + 4
    assert texts_in(jpeg(b"".join(parts))) == LONG
    assert texts_in(jpeg(b"".join(reversed(parts[2:])))).record == LONG.record
    cut = texts_in(jpeg(b"".join(parts[:-1]))).record
    assert cut != LONG.record
    with pytest.raises(BadInputError):
        read_record(cut)


@pytest.mark.parametrize(
    "text", ["一只猫", "Ā\nSteps: 5", "a fox", "a fox\nSteps: 5", "가" * 500 + "\nSteps: 5"]
)
def test_a_comment_is_read_in_either_byte_order(text: str) -> None:
    """Whatever its first letter; where nothing tells, it is big-endian, as everybody writes it."""
    for order in ("utf-16-be", "utf-16-le") if text.isascii() or "Steps" in text else ("utf-16-be",):
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode(order)
        assert texts_in(jpeg(exif=exif.tobytes())).infotext == text


def test_xmp_that_another_program_rewrote_is_read() -> None:
    """As an attribute, with other quotes and escapes."""
    record = '{"a":"<&>\'"}'
    rewritten = b"""<rdf:Description promptmill:record='{&quot;a&quot;:&#34;&lt;&amp;&gt;&apos;"}' x="1"/>"""
    assert texts_in(jpeg(xmp=rewritten)).record == record
    assert texts_in(jpeg(xmp=xmp_of(record))).record == record
    assert texts_in(jpeg(xmp=b"<rdf:Description dc:title='x'/>")).record == ""


def test_a_picture_without_texts_has_none() -> None:
    """Nor has one whose XMP promises more than there is."""
    assert texts_in(jpeg()) == Texts()
    more = b'<rdf:Description xmpNote:HasExtendedXMP="' + b"A" * 32 + b'"/>'
    exif = Image.Exif()
    assert read_texts(SimpleNamespace(info={"xmp": more}, getexif=lambda: exif)) == Texts()
