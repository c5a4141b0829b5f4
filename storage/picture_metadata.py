"""Where a picture file keeps its texts: the one place that knows, for who writes and who reads them.

| | infotext | record (`storage.picture_record`) |
| --- | --- | --- |
| PNG | text chunk `parameters` | text chunk `promptmill` |
| JPEG, WebP | EXIF's UserComment, as A1111 writes it | XMP, a property of our own |

XMP is where other programs expect, and leave alone, what they do not know: viewers show EXIF's descriptions
and comments as captions, and A1111 takes a comment for an infotext. In a JPEG it also has segments of its
own, so that a long record never pushes the infotext out. A segment holds 64 KB; what is longer goes on in
further ones: EXIF as Pillow and ExifTool join it, XMP as its specification says (part 3, 1.1.3.1).
"""

from __future__ import annotations

import hashlib
import html
import re
import struct
from dataclasses import dataclass
from typing import Any

from storage.picture_record import RECORD

INFOTEXT = "parameters"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
_EXIF = b"Exif\0\0"
_UNICODE = b"UNICODE\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_SEGMENT = 65_533  # bytes that a JPEG segment holds
_OUR_NAMESPACE = "urn:promptmill:record:1/"
# An element as we write it, or an attribute, which it may be after another program has rewritten the XMP.
_PROPERTY = re.compile(
    rf"\b{RECORD}:record\s*=\s*(?:\"([^\"]*)\"|'([^']*)')|<{RECORD}:record\b[^>]*>([^<]*)</{RECORD}:record>"
)
_MORE = re.compile(rb"HasExtendedXMP(?:\s*=\s*[\"']|>)\s*([0-9A-Fa-f]{32})")
_SURE = "Steps:"  # in every infotext


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What a picture file carries; "" where it has none."""

    infotext: str = ""
    record: str = ""


def read_texts(picture: Any) -> Texts:
    """Return the texts of a picture that Pillow has opened; its pixels are not read.

    Raises:
        OSError, ValueError, SyntaxError, struct.error: as Pillow does, for a damaged file.
    """
    return Texts(infotext=_infotext(picture), record=_record(picture))


def exif_of(infotext: str) -> bytes:
    """Return the EXIF block (TIFF, big-endian) whose UserComment is an infotext, as piexif writes it."""
    comment = _UNICODE + infotext.encode("utf-16-be")
    head = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, EXIF_IFD, 4, 1, len(head) + 18, 0)  # LONG: where the next one is
    version = struct.pack(">HHI4s", 0x9000, 7, 4, b"0232")
    at = len(head) + len(first) + 2 + 2 * 12 + 4
    second = struct.pack(">H", 2) + version + struct.pack(">HHIII", USER_COMMENT, 7, len(comment), at, 0)
    return head + first + second + comment  # 7: UNDEFINED


def xmp_of(record: str) -> bytes:
    """Return the XMP packet whose property is a record."""
    return _packet(
        f'<rdf:Description rdf:about="" xmlns:{RECORD}="{_OUR_NAMESPACE}">'
        f"<{RECORD}:record>{html.escape(record, quote=False)}</{RECORD}:record></rdf:Description>"
    )


def jpeg_segments(texts: Texts) -> bytes:
    """Return the APP1 segments of a JPEG with these texts, to stand before all others."""
    exif, xmp = exif_of(texts.infotext), xmp_of(texts.record)
    room = _SEGMENT - len(_EXIF)
    parts = [_EXIF + exif[at : at + room] for at in range(0, len(exif), room)]
    if len(_XMP) + len(xmp) <= _SEGMENT:
        parts.append(_XMP + xmp)
    else:
        digest = hashlib.md5(xmp, usedforsecurity=False).hexdigest().upper().encode()
        parts.append(_XMP + _packet(_pointer(digest.decode())))
        room = _SEGMENT - len(_EXTENSION) - len(digest) - 8
        parts += [
            _EXTENSION + digest + struct.pack(">II", len(xmp), at) + xmp[at : at + room]
            for at in range(0, len(xmp), room)
        ]
    return b"".join(struct.pack(">HH", 0xFFE1, len(part) + 2) + part for part in parts)


def _packet(description: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'{description}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _pointer(digest: str) -> str:
    return (
        '<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
        f'xmpNote:HasExtendedXMP="{digest}"/>'
    )


def _infotext(picture: Any) -> str:
    text = picture.info.get(INFOTEXT)
    if isinstance(text, str) and text.strip():
        return text
    comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    return _comment(comment) if isinstance(comment, bytes) else str(comment)


def _comment(comment: bytes) -> str:
    """Read a UserComment: eight bytes say how the rest is written."""
    code, rest = comment[:8], comment[8:]
    if code.startswith(_UNICODE.rstrip(b"\0")):
        # In the byte order of the file by the standard, big-endian by everybody's use.
        big, little = (rest.decode(order, errors="replace") for order in ("utf-16-be", "utf-16-le"))
        small = rest[1::2].count(0) > len(little) // 2  # most letters are ASCII, if it is little-endian
        return (little if _SURE not in big and (_SURE in little or small) else big).strip("\0")
    return (rest if code.strip(b"\0") in (b"ASCII", b"") else comment).decode("utf-8", errors="replace")


def _record(picture: Any) -> str:
    text = picture.info.get(RECORD)
    if isinstance(text, str) and text.strip():
        return text
    xmp = picture.info.get("xmp", b"")
    packet = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    if more := _MORE.search(packet):
        packet += _extended(picture, more[1])
    found = _PROPERTY.search(packet.decode(errors="replace"))
    return html.unescape("".join(text or "" for text in found.groups())) if found else ""


def _extended(picture: Any, digest: bytes) -> bytes:
    """Join the segments of a JPEG in which its XMP goes on."""
    head = _EXTENSION + digest
    parts = [part[len(head) :] for _, part in getattr(picture, "applist", []) if part.startswith(head)]
    return b"".join(part[8:] for part in sorted(parts, key=lambda part: part[4:8]))
