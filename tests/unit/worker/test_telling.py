"""Telling URLs that a submission is done, with a real server on the other end."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storage.errors import BadInputError
from storage.hooks import HELD_FOR, check_hook_url
from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.settings import Settings
from storage.stores import open_job_store
from worker import telling
from worker.telling import HookError, Teller, post

PATIENCE = 20.0


class Ear(BaseHTTPRequestHandler):
    """Answers with the next of its codes, and keeps what it is told."""

    codes: ClassVar[list[int]] = []
    heard: ClassVar[list[tuple[str, str, Any]]] = []

    def do_POST(self) -> None:
        """Listen."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, self.headers["Content-Type"], json.loads(body)))
        code = self.codes.pop(0) if self.codes else 204
        self.send_response(code)
        if code in (301, 307):
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """Where a server listens that keeps what it is told."""
    Ear.codes, Ear.heard = [], []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Ear) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/told?token=secret"
        server.shutdown()
        thread.join()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobStore]:
    """A job store with nothing in it."""
    store = open_job_store(Settings(home=tmp_path / "home"))
    yield store
    store.close()


def done(jobs: JobStore, url: str) -> str:
    """Submit a list, cancel it, and return its id."""
    submission, _ = jobs.add_submission(model="demo", source="test", name="otters")
    jobs.add_hook(submission.id, url)
    jobs.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=1)])
    jobs.open_submission(submission.id)
    jobs.cancel(submission.id)
    jobs.sweep_cancelled(submission.id)
    return submission.id


def test_a_url_is_told_what_status_prints(jobs: JobStore, url: str) -> None:
    """Once, as JSON."""
    submission = done(jobs, url)
    teller = Teller(jobs, lease=30.0)
    assert [teller.tell_one(), teller.tell_one()] == [True, False]
    ((path, kind, told),) = Ear.heard
    assert (path, kind) == ("/told?token=secret", "application/json")
    assert told["version"] == 1
    assert told["submission"]["id"] == submission
    assert told["submission"]["state"] == "cancelled"
    assert told["submission"]["counts"]["cancelled"] == 1
    assert [hook.error for hook in jobs.hooks(submission)] == [None]


@pytest.mark.parametrize(("code", "reason"), [(500, "it answers 500"), (307, "it answers 307")])
def test_whatever_is_not_2xx_is_tried_again(jobs: JobStore, url: str, code: int, reason: str) -> None:
    """A redirection too: it is not followed."""
    Ear.codes = [code]
    submission = done(jobs, url)
    assert Teller(jobs, lease=30.0).tell_one()
    (hook,) = jobs.hooks(submission)
    assert (hook.error, hook.ended_at) == (reason, None)
    assert [path for path, *_ in Ear.heard] == ["/told?token=secret"]


def test_nobody_at_the_other_end_is_a_reason(jobs: JobStore) -> None:
    """And no traceback."""
    submission = done(jobs, "http://127.0.0.1:1/")
    assert Teller(jobs, lease=30.0).tell_one()
    (hook,) = jobs.hooks(submission)
    assert hook.error is not None
    assert "cannot be reached" in hook.error


def test_a_thread_tells_until_it_is_stopped(
    jobs: JobStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a supervisor has one; a fault of one hook does not end it."""
    monkeypatch.setattr(telling, "LOOK_EVERY", 0.01)
    take, faults = jobs.take_hook, [ValueError("unheard of")]
    monkeypatch.setattr(jobs, "take_hook", lambda: _raise(faults.pop()) if faults else take())
    submission = done(jobs, url)
    teller = Teller(jobs, lease=30.0)
    teller.start()
    for _ in range(int(PATIENCE * 50)):
        if jobs.hooks(submission)[0].ended_at is not None:
            break
        threading.Event().wait(0.02)
    teller.stop()
    assert len(Ear.heard) == 1
    assert jobs.hooks(submission)[0].error is None


def test_a_fault_that_nobody_foresaw_is_a_try(
    jobs: JobStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again later, and keeps no other hook waiting."""
    submission = done(jobs, url)
    monkeypatch.setattr(telling, "post", lambda *_: _raise(ValueError("unheard of")))
    assert Teller(jobs, lease=30.0).tell_one()
    (hook,) = jobs.hooks(submission)
    assert (hook.attempts, hook.error) == (1, "telling it failed (ValueError)")


def test_a_server_that_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the answer never does: its connection is shut."""
    monkeypatch.setattr(telling, "ANSWER_TIMEOUT", 0.3)
    shut = threading.Event()

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            try:
                while not shut.wait(0.01):
                    self.request.sendall(b"X")
            except OSError:
                shut.set()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with pytest.raises(HookError, match="has not answered within"):
            post(f"http://127.0.0.1:{server.server_address[1]}/", {})
        assert shut.wait(PATIENCE)
        server.shutdown()
        thread.join()


def test_a_try_ends_before_somebody_else_takes_the_hook() -> None:
    """Else two would tell it."""
    assert telling.ANSWER_TIMEOUT < HELD_FOR / 2


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    "unfit",
    [
        "file:///etc/passwd",
        "ftp://example.org/",
        "https://",
        "http:///path",
        "http://example.org:port/",
        "http://example.org/ GET",
        "http://example.org/\nX: y",
        "https://me:swordfish@example.org/",
        "http://example.org/" + "x" * 2000,
        "rm -rf /",
    ],
)
def test_a_row_can_name_nothing_but_a_web_address(jobs: JobStore, unfit: str) -> None:
    """Whoever writes rows gets no program run and no file read; the refusal does not repeat a password."""
    with pytest.raises(BadInputError) as refused:
        check_hook_url(unfit)
    assert "swordfish" not in str(refused.value)
    with pytest.raises(BadInputError):
        post(unfit, {})
    submission = done(jobs, unfit)
    assert Teller(jobs, lease=30.0).tell_one()
    assert jobs.hooks(submission)[0].error == str(refused.value)


def test_logs_and_errors_leave_the_secret_of_a_url_out(
    jobs: JobStore, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path or a query often is the key to a chat room."""
    Ear.codes = [403]
    submission = done(jobs, url)
    Teller(jobs, lease=30.0).tell_one()
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err
    (hook,) = jobs.hooks(submission)
    assert "secret" not in hook.host + str(hook.error)


def test_a_server_that_answers_nonsense_is_a_reason() -> None:
    """Whatever it sends."""

    class Nonsense(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"\x00\x01 nonsense\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Nonsense) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with pytest.raises(HookError, match="cannot be reached"):
            post(f"http://127.0.0.1:{server.server_address[1]}/", {})
        server.shutdown()
        thread.join()
