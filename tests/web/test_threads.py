"""How many requests work at a time, and what waits for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from storage.records import Submission
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.stores import open_image_store, open_job_store
from tests.web.conftest import BASE, rules
from web import submitting
from web.app import create_app
from web.threads import CONNECTIONS, READING, SUBMITTING


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


def test_no_page_waits_behind_lists(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that take long wait in a line of their own."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    submit_order = submitting.submit_order

    def slowly(*given: Any, **more: Any) -> Any:
        begun.release()
        go_on.wait()
        return submit_order(*given, **more)

    monkeypatch.setattr(submitting, "submit_order", slowly)

    def submit(number: int) -> int:
        asked = {"prompts": [f"otter {number}"], "model": "demo"}
        return client.post("/api/v1/submissions", json=asked).status_code

    with ThreadPoolExecutor(READING + SUBMITTING) as callers:
        lists = [callers.submit(submit, number) for number in range(READING + SUBMITTING)]
        for _ in range(SUBMITTING):
            begun.acquire()
        assert client.get("/").status_code == 200
        assert not begun.acquire(blocking=False), "more lists are worked on than may be"
        go_on.set()
        assert [one.result() for one in lists] == [201] * len(lists)
