"""Exit hooks: a supervisor tells URLs that a submission is done, with what `promptmill status --json` prints.

In a thread of its own, since a server that does not answer must not keep the tick waiting. Any supervisor
does it; the database sees to it that one at a time does, and that it is done at least once.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

import structlog

from storage.errors import BadInputError, UnreachableError
from storage.hooks import Hook, check_hook_url
from storage.jobstore import JobStore
from storage.status_object import status_object
from storage.version import promptmill_version

log = structlog.get_logger()

LOOK_EVERY = 2.0  # seconds
ANSWER_TIMEOUT = 10.0  # seconds from the look-up of its name to its answer; less than a hook is held for


class Teller:
    """A thread that looks for hooks that are due until it is stopped.

    Args:
        jobs: the job store.
        lease: seconds without a beat until a worker counts as dead, for what the status says of it.
    """

    def __init__(self, jobs: JobStore, *, lease: float) -> None:
        self._jobs, self._lease = jobs, lease
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, after the hook that is being told."""
        self._stopped.set()
        self._thread.join(timeout=ANSWER_TIMEOUT)

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_EVERY):
            try:
                while not self._stopped.is_set() and self.tell_one():
                    pass
            except UnreachableError as error:
                log.debug("hooks must wait", action="hook", reason=str(error))  # the tick says it aloud
            except Exception:  # the next one may go well
                log.exception("hooks failed, trying again", action="hook")

    def tell_one(self) -> bool:
        """Tell one that is due; False where there is none."""
        hook = self._jobs.take_hook()
        if hook is None:
            return False
        error: str | None = None
        try:
            post(hook.url, status_object(self._jobs.status(hook.submission, lease=self._lease)))
        except (BadInputError, HookError) as failed:
            error = str(failed)
        except UnreachableError:
            raise  # the database: nobody can be told what it does not say
        except Exception as failed:  # one hook that nobody foresaw must not keep all others waiting
            log.exception("hook failed unexpectedly", action="hook", submission=hook.submission)
            error = f"telling it failed ({type(failed).__name__})"
        ended = self._jobs.end_hook(hook, error=error)
        _log(hook, error, ended=ended)
        return True


def _log(hook: Hook, error: str | None, *, ended: bool) -> None:
    about = {"action": "hook", "submission": hook.submission, "host": hook.host, "attempt": hook.attempts}
    if error is None:
        log.info("told that a submission is done", **about)
    else:
        log.warning("hook given up" if ended else "hook failed, trying again", reason=error, **about)


class HookError(Exception):
    """A URL could not be told; says why."""


def post(url: str, content: dict[str, Any]) -> None:
    """Send JSON to a URL; redirections are not followed, and what it answers is not read.

    Raises:
        BadInputError: for what is no URL to be told.
        HookError: when it does not answer with 2xx, or not in time.
    """
    request = urllib.request.Request(  # noqa: S310 - its scheme is checked
        check_hook_url(url),
        data=json.dumps(content, ensure_ascii=False).encode(),
        headers={"Content-Type": "application/json", "User-Agent": f"promptmill/{promptmill_version()}"},
        method="POST",
    )
    call = _Call(request)
    call.start()
    call.join(ANSWER_TIMEOUT)
    if call.is_alive():
        call.shut()
        raise HookError(f"it has not answered within {ANSWER_TIMEOUT:g} s")
    try:
        if call.fault is not None:
            raise call.fault
    except urllib.error.HTTPError as error:
        error.close()
        raise HookError(f"it answers {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise HookError(f"it cannot be reached ({str(reason) or type(error).__name__})") from error


class _Call(threading.Thread):
    """One request, in a thread that may be left behind: a timeout of sockets begins anew with every byte.

    Attributes:
        fault: what it failed with; None where the answer is 2xx.
    """

    def __init__(self, request: urllib.request.Request) -> None:
        super().__init__(name="hook", daemon=True)
        self._request = request
        self._connections: list[http.client.HTTPConnection] = []
        self.fault: Exception | None = None

    def run(self) -> None:
        """Send it, and hear the first line and the headers of the answer."""
        opener = urllib.request.build_opener(_Straight, _Plain(self._connections), _Secure(self._connections))
        try:
            opener.open(self._request, timeout=ANSWER_TIMEOUT).close()
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            self.fault = error

    def shut(self) -> None:
        """Let the thread end, by shutting what it reads from."""
        for connection in self._connections:
            with suppress(OSError, AttributeError):  # not connected yet, or closed by now
                connection.sock.shutdown(socket.SHUT_RDWR)


class _Plain(urllib.request.HTTPHandler):
    """Keeps its connections where somebody else can shut them."""

    def __init__(self, made: list[http.client.HTTPConnection]) -> None:
        super().__init__()
        self._made = made

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request to http://."""
        return self.do_open(self._connect, req)

    def _connect(self, host: str, /, **how: Any) -> http.client.HTTPConnection:
        self._made.append(http.client.HTTPConnection(host, **how))
        return self._made[-1]


class _Secure(urllib.request.HTTPSHandler):
    """Likewise, for https://."""

    def __init__(self, made: list[http.client.HTTPConnection]) -> None:
        super().__init__()
        self._made = made

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request to https://."""
        return self.do_open(self._connect, req)

    def _connect(self, host: str, /, **how: Any) -> http.client.HTTPConnection:
        self._made.append(http.client.HTTPSConnection(host, **how))
        return self._made[-1]


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows nothing: where a URL leads was said by whoever submitted, not by whoever answers."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Take a redirection for the answer that it is."""
