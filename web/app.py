"""The application: routes, the guard around them, and how an error becomes an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from storage.errors import PromptmillError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.settings import Settings
from storage.version import promptmill_version
from web import actions, api, assets, events, openai_door, pages, pictures
from web.guard import HEADERS, Guard, Rules
from web.problems import RefusedError, problem, problem_of, status_of
from web.rendering import error_page, wants_page
from web.site import Site
from web.threads import limit_reading
from web.thumbnails import Thumbnails

API = "/api/v1"
OPENAI = "/v1"
MOST_NAMED = 5  # fields of a request whose faults are told

DESCRIPTION = """Submit prompt lists, follow them, fetch pictures: what the command line does, over HTTP.

Errors are problem details (RFC 9457). Lists come in pages: pass the `cursor` of one page to get the next."""


def create_app(settings: Settings, jobs: JobStore, images: ImageStore, *, rules: Rules) -> FastAPI:
    """Make the application over open stores, which stay the caller's to close.

    Args:
        settings: where things are.
        jobs: the job store.
        images: the picture store.
        rules: who may come in.
    """
    app = FastAPI(
        title="promptmill",
        version=promptmill_version(),
        description=DESCRIPTION,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.site = Site(
        settings=settings,
        jobs=jobs,
        images=images,
        thumbnails=Thumbnails(settings.thumbnails_path, images),
        rules=rules,
    )
    app.include_router(api.router, prefix=API)
    app.include_router(events.api_router, prefix=API)
    app.include_router(pictures.api_router, prefix=API)
    app.include_router(openai_door.router, prefix=OPENAI)
    for router in (pages.router, actions.router, pictures.router, events.router, assets.router):
        app.include_router(router, include_in_schema=False)
    app.add_exception_handler(PromptmillError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(Guard, rules=rules)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    limit_reading()
    yield
    await site.live.close()


def _answer(request: Request, status: int, detail: str, response: Response) -> Response:
    """Return an error in the shape that its caller reads; `response` is the problem document."""
    path = request.url.path
    answer = response
    if path.startswith(f"{OPENAI}/"):
        answer = openai_door.error(status, detail)
    elif not path.startswith("/api/") and wants_page(request):
        answer = error_page(request, status, detail)
    if wait := response.headers.get("retry-after"):
        answer.headers["retry-after"] = wait
    return answer


def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PromptmillError)  # noqa: S101  (what it is registered for)
    site: Site = request.app.state.site
    detail = str(error) if isinstance(error, RefusedError) else site.discretion.text(str(error))
    return _answer(request, status_of(error), detail, problem_of(error, detail))


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (likewise)
    detail = error.detail if error.detail.endswith((".", "!", "?")) else f"{error.detail}."
    answer = problem(error.status_code, detail, headers=error.headers)
    return _answer(request, error.status_code, detail, answer)


def _on_unexpected(_request: Request, _error: Exception) -> Response:
    """Answer where the guard does not reach any more; the server's log has the traceback."""
    return problem(500, "Something unexpected happened; the server's log says what.", headers=HEADERS)


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (likewise)
    faults = [
        {"where": ".".join(str(part) for part in fault["loc"]), "reason": str(fault["msg"])}
        for fault in error.errors()[:MOST_NAMED]
    ]
    detail = "; ".join(f"{fault['where']}: {fault['reason']}" for fault in faults) + "."
    return _answer(request, 422, detail, problem(422, detail, errors=faults))
