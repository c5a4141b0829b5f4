"""What the buttons and forms do: each posts, checks its form, does one thing and goes back to a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile as Uploaded
from starlette.responses import HTMLResponse, RedirectResponse, Response

from producer import steering
from producer.readers.opening import Source, Upload
from storage.errors import BadInputError
from storage.samplers import SAMPLERS
from web.problems import RefusedError
from web.rendering import FORM_FIELD, back_to, check_form, local_path, page
from web.site import Site, SiteOf
from web.submitting import Flags, Submitted, named_upload, submit
from web.tokens import SESSION_COOKIE, SESSION_SECONDS

router = APIRouter()

MAX_FIELDS = 50
TYPED = "the form"  # where prompts that were typed came from
FormToken = Annotated[str, Form(alias=FORM_FIELD, max_length=100)]


@router.post("/submissions/{reference}/adjust")
def adjust(
    request: Request,
    site: SiteOf,
    reference: str,
    priority: Annotated[int, Form()],
    form_token: FormToken = "",
) -> Response:
    """Change a submission's priority."""
    check_form(request, form_token)
    found = site.submission(reference)
    said = steering.adjust(site.jobs, found.id, priority=priority, weight=None, max_running=None)
    return back_to(request, f"/submissions/{found.id}", said)


@router.post("/submissions/{reference}/{action}")
def act(request: Request, site: SiteOf, reference: str, action: str, form_token: FormToken = "") -> Response:
    """Cancel, pause, resume or retry a submission."""
    check_form(request, form_token)
    found = site.submission(reference)
    if action not in steering.ACTIONS:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"Nothing is called {action!r}.")
    said = steering.act(site.jobs, found.id, action, lease=site.settings.lease)
    return back_to(request, f"/submissions/{found.id}", " ".join(said))


@router.post("/submissions/{reference}/jobs/{index}/retry")
def retry_job(
    request: Request, site: SiteOf, reference: str, index: int, form_token: FormToken = ""
) -> Response:
    """Bring one failed or cancelled job back."""
    check_form(request, form_token)
    found = site.job(reference, index)
    said = steering.retry(site.jobs, found.label, lease=site.settings.lease)
    return back_to(request, f"/submissions/{found.submission}/jobs/{found.index}", " ".join(said))


@router.get("/submit")
def submit_form(request: Request, site: SiteOf) -> HTMLResponse:
    """Show the form."""
    return _form(request, site, {}, "")


@router.post("/submit")
async def submit_prompts(request: Request, site: SiteOf) -> Response:
    """Submit what the form says, or show it again with what is wrong."""
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=2**23) as form:
        check_form(request, str(form.get(FORM_FIELD, "")))
        given = {name: value for name, value in form.items() if isinstance(value, str)}
        file = form.get("file")
        sent = (
            named_upload(file.filename, file.file) if isinstance(file, Uploaded) and file.filename else None
        )
        with site.submitting.one():
            return await site.threads.submit(lambda: _submit(request, site, given, sent))


def _submit(request: Request, site: Site, given: dict[str, str], sent: Upload | None) -> Response:
    try:
        done = submit(site, _flags_of(given), _sources(given.get("prompts", ""), sent))
    except BadInputError as error:
        return _form(request, site, given, site.discretion.text(str(error)))
    return back_to(request, f"/submissions/{done.submission.id}", _told(done))


def _flags_of(given: dict[str, str]) -> Flags:
    """Read the fields; what is empty is left out."""
    known = given.keys() & Flags.model_fields.keys()
    said: dict[str, Any] = {name: given[name].strip() for name in known if given[name].strip()}
    if "sweep" in said:
        said["sweep"] = said["sweep"].split(";")
    try:
        return Flags.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise BadInputError(
            f"{first['loc'][0]} {first['input']!r} cannot be used: {first['msg']}."
        ) from error


def _sources(typed: str, sent: Upload | None) -> Sequence[Source]:
    text = Upload(name=TYPED, file=io.BytesIO(typed.encode("utf-8", "replace")))
    return ([text] if typed.strip() else []) + ([sent] if sent else [])


def _told(done: Submitted) -> str:
    said = f"Submitted {done.submission.total:,} jobs." if done.new else ""
    return "\n".join(filter(None, [said, *done.remarks]))


def _form(request: Request, site: Site, given: dict[str, str], problem: str) -> HTMLResponse:
    code = HTTPStatus.UNPROCESSABLE_ENTITY if problem else HTTPStatus.OK
    return page(
        request, "submit.html", code=code, given=given, problem=problem, models=list(site.models()),
        samplers=list(SAMPLERS),
    )  # fmt: skip


@router.get("/login")
def login_form(request: Request, next: str = "/") -> HTMLResponse:  # noqa: A002  (the address' word)
    """Ask for the token."""
    return page(request, "login.html", next=local_path(next), wrong=False)


@router.post("/login")
def login(
    request: Request,
    site: SiteOf,
    token: Annotated[str, Form(max_length=4096)],
    next: Annotated[str, Form(max_length=2048)] = "/",  # noqa: A002  (likewise)
    form_token: FormToken = "",
) -> Response:
    """Let a browser in that knows the token."""
    check_form(request, form_token)
    if site.token is None:
        return RedirectResponse("/", HTTPStatus.SEE_OTHER)
    caller = request.client.host if request.client else ""
    if wait := site.rules.guessing.left(caller):
        raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, f"Too many wrong tokens; wait {wait:.0f} s.")
    if not site.token.fits(token.strip()):
        site.rules.guessing.wait(caller)
        return page(request, "login.html", code=HTTPStatus.UNAUTHORIZED, next=local_path(next), wrong=True)
    answer = RedirectResponse(local_path(next), HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        SESSION_COOKIE, site.token.session(), max_age=SESSION_SECONDS, httponly=True, samesite="lax",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


@router.post("/logout")
def logout(request: Request, form_token: FormToken = "") -> Response:
    """Let a browser forget its session."""
    check_form(request, form_token)
    answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(SESSION_COOKIE)
    return answer
