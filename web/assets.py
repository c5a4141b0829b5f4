"""Style, script and htmx: read once at the start, so that no path of a request is ever opened."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from web.problems import NotThereError
from web.ranges import FOR_EVER, is_known, not_modified, send_bytes

router = APIRouter()
_TYPES = {
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_CONTENT = {name: files("web").joinpath("static", name).read_bytes() for name in _TYPES}
_TAGS = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in _CONTENT.items()}


def address(name: str) -> str:
    """Return where a file is served: under another address once it is another file."""
    return f"/static/{name}?v={_TAGS[name]}"


@router.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """Send one of the files."""
    if name not in _CONTENT:
        raise NotThereError("There is no such file.")
    if is_known(request, _TAGS[name]):
        return not_modified(_TAGS[name], cache=FOR_EVER)
    return send_bytes(request, _CONTENT[name], tag=_TAGS[name], media_type=_TYPES[name], cache=FOR_EVER)


@router.get("/favicon.ico")
def icon(request: Request) -> Response:
    """Send the icon where browsers look for it unasked."""
    return static(request, "icon.svg")
