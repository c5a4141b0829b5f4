"""Errors as RFC 9457 problem details: what the API answers, and what the guard refuses with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from storage.errors import BadInputError, PromptmillError, StoreFullError, UnreachableError, WaitTimeoutError

MEDIA_TYPE = "application/problem+json"


class RefusedError(PromptmillError):
    """A request that is refused for what it is, with the HTTP status that says so.

    Attributes:
        status: the HTTP status.
        headers: of the answer.
    """

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})


class NotThereError(BadInputError):
    """What a path names does not exist."""


_UNEXPECTED = HTTPStatus.INTERNAL_SERVER_ERROR
_STATUS: tuple[tuple[type[PromptmillError], int], ...] = (
    (NotThereError, HTTPStatus.NOT_FOUND),
    (BadInputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (StoreFullError, HTTPStatus.INSUFFICIENT_STORAGE),
    (UnreachableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (WaitTimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
)


def status_of(error: PromptmillError) -> int:
    """Return the HTTP status that stands for an error of ours."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), _UNEXPECTED)


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return a problem document: `type` is about:blank, so `title` is the status' own phrase."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
    }
    return Response(
        json.dumps(content | more, ensure_ascii=False).encode("utf-8", "replace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def problem_of(error: PromptmillError, detail: str) -> Response:
    """Return the problem document of an error of ours, in the words that others may read."""
    headers = error.headers if isinstance(error, RefusedError) else {}
    return problem(status_of(error), detail, headers=headers)
