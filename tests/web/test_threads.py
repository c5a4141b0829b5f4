"""How many requests work at a time, and what waits for what."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from storage.records import Submission
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.stores import open_image_store, open_job_store
from tests.web.conftest import BASE, form_token, rules
from web import submitting
from web.app import create_app
from web.site import MAX_SUBMITTING
from web.threads import CONNECTIONS, READING, SUBMITTING

PAGE = {"accept": "text/html"}
PATIENCE = 60.0  # seconds: only how long a broken test may hang


@pytest.fixture
def many(settings: Settings) -> Iterator[SqlJobStore]:
    """A job store with more connections than anybody should take."""
    opened = open_job_store(settings, connections=50)
    assert isinstance(opened, SqlJobStore)
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings, many: SqlJobStore) -> Iterator[TestClient]:
    """A client of a site over it."""
    app = create_app(settings, many, open_image_store(settings), rules=rules())
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as opened:
        yield opened


def test_no_more_work_at_a_time_than_there_are_connections(
    client: TestClient, many: SqlJobStore, otters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask: the others wait for their turn, and nobody for a connection that does not come."""
    taken = most = 0
    lock = threading.Lock()

    def take(*_: Any) -> None:
        nonlocal taken, most
        with lock:
            taken += 1
            most = max(most, taken)

    def give(*_: Any) -> None:
        nonlocal taken
        with lock:
            taken -= 1

    find = SqlJobStore.find_submission

    def slowly(store: SqlJobStore, reference: str) -> Submission:
        with store.database.read():
            time.sleep(0.02)
        return find(store, reference)

    monkeypatch.setattr(SqlJobStore, "find_submission", slowly)
    event.listen(many.database.db_engine, "checkout", take)
    event.listen(many.database.db_engine, "checkin", give)
    with ThreadPoolExecutor(30) as callers:
        answers = list(callers.map(lambda _: client.get(f"/submissions/{otters}").status_code, range(30)))
    assert answers == [200] * 30
    assert READING <= CONNECTIONS
    assert 1 < most <= READING


@contextmanager
def slow_lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """Let lists be checked, and written once the event is set; the semaphore counts those that are so far."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    submit_order = submitting.submit_order

    def slowly(*given: Any, **more: Any) -> Any:
        begun.release()
        assert go_on.wait(PATIENCE)
        return submit_order(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(submitting, "submit_order", slowly)
        yield begun, go_on


@contextmanager
def callers_of(count: int, go_on: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Let so many call at a time; a test that fails meanwhile does not wait for them."""
    with ThreadPoolExecutor(count) as callers:
        try:
            yield callers
        finally:
            go_on.set()


def submit(client: TestClient, number: int) -> Any:
    """Submit a list of one prompt; return the answer."""
    return client.post("/api/v1/submissions", json={"prompts": [f"otter {number}"], "model": "demo"})


def test_no_page_waits_behind_lists(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that take long wait in a line of their own."""
    count = READING + SUBMITTING
    with slow_lists(monkeypatch) as (begun, go_on), callers_of(count, go_on) as callers:
        lists = [callers.submit(submit, client, number) for number in range(count)]
        for _ in range(SUBMITTING):
            assert begun.acquire(timeout=PATIENCE)
        assert client.get("/").status_code == 200
        assert not begun.acquire(blocking=False), "more lists are worked on than may be"
        go_on.set()
        assert [one.result(PATIENCE).status_code for one in lists] == [201] * len(lists)


def test_the_line_of_lists_has_an_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits holds his list in memory or on a disk; when it is full, others are told to come again."""
    more = 3
    token = form_token(client)
    with slow_lists(monkeypatch) as (_, go_on), callers_of(MAX_SUBMITTING + more, go_on) as callers:
        lists = [callers.submit(submit, client, number) for number in range(MAX_SUBMITTING + more)]
        first = list(itertools.islice(as_completed(lists, PATIENCE), more))
        doors = [
            client.post("/api/v1/submissions/file", files={"file": ("list.txt", b"a fox")}),
            client.post("/submit", data={"form_token": token, "prompts": "a fox"}, headers=PAGE),
        ]
        assert client.get("/").status_code == 200
        go_on.set()
        answers = [one.result(PATIENCE) for one in lists]
    refused = [one.result() for one in first] + doors
    assert [answer.status_code for answer in refused] == [503] * (more + 2)
    assert {answer.headers["retry-after"] for answer in refused} == {"60"}
    assert all("Too many are submitting lists" in answer.text for answer in refused)
    assert [answer.status_code for answer in answers].count(201) == MAX_SUBMITTING
    assert submit(client, 99).status_code == 201
