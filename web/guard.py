"""What every request passes before anything looks at it, and what every answer carries.

In this order: the Host header, the caller's rate, the token, where the request comes from, how long its body
is. Plain ASGI, so that streams stay streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.hosts import Hosts
from web.limits import RateLimit
from web.problems import problem
from web.tokens import SESSION_COOKIE, Token

MAX_BODY = 2**20  # bytes
MAX_UPLOAD = 64 * 2**20  # bytes of a prompt list
MAX_JSON = 8 * 2**20  # bytes of prompts in a JSON body, which is read at once
MOST = {"/submit": MAX_UPLOAD, "/api/v1/submissions/file": MAX_UPLOAD, "/api/v1/submissions": MAX_JSON}
OPEN = frozenset({"/login"})  # besides what lies below /static/
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
STREAMS = frozenset({"/live", "/api/v1/events"})  # no end, so nothing to say of them but that they begin
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer browsers would hide the origin of our own forms
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the guard holds requests against.

    Attributes:
        hosts: the names that this server answers to.
        token: that callers have to know; None on a machine's own loopback, where everybody may come.
        reading: requests of one address.
        writing: likewise of those that change something.
        guessing: likewise of those with a wrong token.
    """

    hosts: Hosts
    token: Token | None = None
    reading: RateLimit = field(default_factory=lambda: RateLimit(rate=100, burst=1_000))
    writing: RateLimit = field(default_factory=lambda: RateLimit(rate=5, burst=60))
    guessing: RateLimit = field(default_factory=lambda: RateLimit(rate=0.2, burst=10))


class Guard:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        sent = _with_headers(send)
        refusal = self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, sent)
            return
        most = MOST.get(request.url.path, MAX_BODY)
        body = _Body(receive, most)
        if _length(request) > most:
            await _too_long(most)(scope, receive, sent)
            return
        if request.method == "HEAD" and request.url.path not in STREAMS:
            # Every GET can be asked for without its body, and none has to say so.
            scope, sent = {**scope, "method": "GET"}, _without_body(sent)
        await self._app(scope, body, sent)

    def _refusal(self, request: Request) -> Response | None:
        rules, headers = self._rules, request.headers
        caller = request.client.host if request.client else ""
        if not rules.hosts.knows(headers.get("host", "")):
            return problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This server is not called so; start it with --allow-host NAME if it is.",
            )
        bucket = rules.reading if request.method in SAFE else rules.writing
        if wait := bucket.wait(caller):
            return _too_many(wait)
        if rules.token is not None and not _is_open(request.url.path):
            refused = self._check_token(request, rules.token, caller)
            if refused is not None:
                return refused
        return _check_origin(request)

    def _check_token(self, request: Request, token: Token, caller: str) -> Response | None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            # Before it is looked at: who has guessed too often learns nothing of another guess.
            if wait := self._rules.guessing.left(caller):
                return _too_many(wait)
            if token.fits(given.strip()):
                return None
            self._rules.guessing.wait(caller)
        elif token.knows(request.cookies.get(SESSION_COOKIE, "")):
            return None
        if request.method in SAFE and "text/html" in request.headers.get("accept", ""):
            where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(where)}", HTTPStatus.SEE_OTHER)
        return problem(
            HTTPStatus.UNAUTHORIZED,
            "This server wants a token; send it as `Authorization: Bearer TOKEN`.",
            headers={"www-authenticate": 'Bearer realm="promptmill"'},
        )


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/static/")


def _check_origin(request: Request) -> Response | None:
    """Refuse what a page of another site makes a browser ask for; programs send neither header."""
    headers = request.headers
    site = headers.get("sec-fetch-site", "none")
    navigation = headers.get("sec-fetch-mode") == "navigate" and request.method in SAFE
    foreign = site not in ("same-origin", "none") and not navigation
    origin = headers.get("origin")
    if origin is not None and request.method not in SAFE:
        foreign = foreign or origin.lower() not in _origins(headers.get("host", ""))
    if foreign:
        return problem(HTTPStatus.FORBIDDEN, "A page of another site asked for this; open promptmill itself.")
    return None


def _origins(host: str) -> tuple[str, str]:
    """Return our origin: behind a proxy that speaks TLS we cannot know the scheme."""
    return f"http://{host.lower()}", f"https://{host.lower()}"


def _length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0


class _Body:
    """Counts a body while it is read: it may say nothing of its length, or lie."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = self._left = most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            # Of this kind, so that what reads the body passes it on as it is.
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_long_sentence(self._most))
        return message


def _too_long(most: int) -> Response:
    headers = {"connection": "close"}
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_long_sentence(most), headers=headers)


def _too_long_sentence(most: int) -> str:
    return f"The body is longer than {most // 2**20} MiB; split the list, or use `promptmill submit`."


def _too_many(wait: float) -> Response:
    return problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many requests; the next one is answered in {wait:.1f} s.",
        headers={"retry-after": str(max(1, round(wait)))},
    )


def _without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sent


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "private, no-store")
        await send(message)

    return sent
