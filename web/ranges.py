"""Send stored bytes as HTTP has it: entity tags, and one range of them where it is asked for (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# What a picture's address shows never changes, but only who may see it keeps it.
FOR_EVER = "private, max-age=31536000, immutable"
CHECKED = "private, no-cache"


def is_known(request: Request, tag: str) -> bool:
    """Whether the caller has what this entity tag stands for already."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return f'"{tag}"' in known or known == ["*"]


def not_modified(tag: str, *, cache: str = CHECKED) -> Response:
    """Say that the caller has it."""
    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"etag": f'"{tag}"', "cache-control": cache})


def send_bytes(
    request: Request,
    data: bytes,
    *,
    tag: str,
    media_type: str,
    cache: str = CHECKED,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Send bytes, or the range of them that the request asks for."""
    common = {"etag": f'"{tag}"', "cache-control": cache, "accept-ranges": "bytes", **(headers or {})}
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip())
    fresh = request.headers.get("if-range", f'"{tag}"') == f'"{tag}"'
    if asked is None or not fresh or not _is_span(*asked.groups()):
        return Response(data, headers=common, media_type=media_type)
    first, last = _span(asked, len(data))
    if first > last:
        refused = {**common, "content-range": f"bytes */{len(data)}"}
        return Response(status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=refused)
    part = {**common, "content-range": f"bytes {first}-{last}/{len(data)}"}
    return Response(data[first : last + 1], HTTPStatus.PARTIAL_CONTENT, part, media_type)


def _is_span(start: str, end: str) -> bool:
    """Whether a range is one: the first byte before the last; what is none is left unread."""
    return bool(start or end) and not (start and end and int(start) > int(end))


def _span(asked: re.Match[str], length: int) -> tuple[int, int]:
    """Return the first and last byte; the first is behind the last where there are none."""
    start, end = asked.groups()
    if not start:  # the last so many
        return (max(0, length - int(end)), length - 1) if int(end) else (length, length - 1)
    return int(start), min(int(end), length - 1) if end else length - 1
