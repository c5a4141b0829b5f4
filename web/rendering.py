"""Pages from templates: everything is escaped, and no page carries a script or a style of its own."""

from __future__ import annotations

import base64
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, RedirectResponse

from producer.output import cell, count_of, duration, minute, shorten, size_of, timestamp
from storage.records import JobStatus
from storage.version import promptmill_version
from web.assets import address
from web.problems import RefusedError
from web.site import Site

FORM_COOKIE = "promptmill_form"
SAID_COOKIE = "promptmill_said"
SAID_SECONDS = 60
MAX_SAID = 2_400  # bytes; a cookie holds 4,096, and base64 takes a third more
FORM_FIELD = "form_token"

_ENVIRONMENT = Environment(
    loader=PackageLoader("web"),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "cell": cell, "duration": duration, "shorten": shorten, "size": size_of, "count": count_of,
    "moment": lambda moment: minute(timestamp(moment) or ""), "timestamp": timestamp,
}  # fmt: skip
_ENVIRONMENT.globals |= {"address": address, "statuses": list(JobStatus), "version": promptmill_version()}


def render(name: str, **values: Any) -> str:
    """Fill in a template, or a part of a page."""
    return _ENVIRONMENT.get_template(name).render(**values)


def page(request: Request, name: str, *, code: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    """Return a whole page, with the token that its forms need and what the last action has said."""
    site: Site = request.app.state.site
    ours = request.cookies.get(FORM_COOKIE) or secrets.token_hex(16)
    said = _said(site, request.cookies.get(SAID_COOKIE, ""))
    content = render(
        name,
        request=request,
        said=said,
        form_field=FORM_FIELD,
        form_token=site.form_key.sign(ours, FORM_FIELD),
        has_token=site.token is not None,
        **values,
    )
    answer = HTMLResponse(content, code)
    if FORM_COOKIE not in request.cookies:
        answer.set_cookie(FORM_COOKIE, ours, httponly=True, samesite="lax", secure=_is_tls(request))
    if SAID_COOKIE in request.cookies:
        answer.delete_cookie(SAID_COOKIE)
    return answer


def check_form(request: Request, token: str) -> None:
    """Refuse a form that did not come from one of our pages.

    Raises:
        RefusedError: always then.
    """
    site: Site = request.app.state.site
    ours = request.cookies.get(FORM_COOKIE, "")
    if not ours or not site.form_key.fits(ours, FORM_FIELD, token):
        raise RefusedError(HTTPStatus.FORBIDDEN, "This form is too old or not ours; load its page again.")


def back_to(request: Request, path: str, said: str) -> RedirectResponse:
    """Go on to a page of ours, which says what was done."""
    site: Site = request.app.state.site
    answer = RedirectResponse(path, HTTPStatus.SEE_OTHER)
    text = base64.urlsafe_b64encode(said.encode("utf-8", "replace")[:MAX_SAID]).decode()
    answer.set_cookie(
        SAID_COOKIE, f"{text}.{site.form_key.sign(text, SAID_COOKIE)}", max_age=SAID_SECONDS, httponly=True,
        samesite="lax", secure=_is_tls(request),
    )  # fmt: skip
    return answer


def error_page(request: Request, status: int, detail: str) -> HTMLResponse:
    """Return a page that says what went wrong."""
    return page(request, "problem.html", code=status, phrase=HTTPStatus(status).phrase, detail=detail)


def wants_page(request: Request) -> bool:
    """Whether a browser shows the answer to somebody."""
    return "text/html" in request.headers.get("accept", "")


def local_path(text: str) -> str:
    """Return a path of this site to go on to; the start page for anything else."""
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if plain else "/"


def _said(site: Site, cookie: str) -> str:
    text, _, signature = cookie.partition(".")
    if not text or not site.form_key.fits(text, SAID_COOKIE, signature):
        return ""
    return base64.urlsafe_b64decode(text).decode("utf-8", "ignore")  # we wrote it, and cut it off


def _is_tls(request: Request) -> bool:
    return request.url.scheme == "https"
