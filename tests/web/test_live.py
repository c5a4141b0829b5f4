"""Live progress: everybody hears of what he watches, and the database is asked once for all."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from starlette.types import Message

from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.records import JobStatus, Status, Submission
from storage.sqljobstore import SqlJobStore
from web.live import AT_ONCE, Live
from web.site import MAX_WATCHERS

PATIENCE = 60.0  # seconds: only how long a broken test may hang


class Database:
    """How far submissions are, as the test says; counts how often that was asked."""

    def __init__(self, status: Status, *names: str) -> None:
        self.looks = 0
        self.fails: Exception | None = None
        self.found = {name: replace(status, submission=replace(status.submission, id=name)) for name in names}

    def __call__(self, names: Sequence[str]) -> list[Status]:
        """Answer as `JobStore.statuses` does."""
        self.looks += 1
        if self.fails:
            raise self.fails
        return [self.found[name] for name in names if name in self.found]

    def end(self, name: str) -> None:
        """Let a submission be done."""
        status = self.found[name]
        self.found[name] = replace(status, counts=status.counts | {JobStatus.WAITING: 0})

    def finish(self, name: str) -> None:
        """Let one more job of a submission succeed."""
        status = self.found[name]
        done = status.counts[JobStatus.SUCCEEDED] + 1
        self.found[name] = replace(status, counts=status.counts | {JobStatus.SUCCEEDED: done})


@pytest.fixture
def database(store: JobStore, otters: str) -> Database:
    """Two submissions that are not done."""
    status = store.status(otters, lease=30.0)
    return Database(replace(status, counts=status.counts | {JobStatus.WAITING: 5}), "a", "b")


def test_many_watchers_cost_as_many_looks_as_one(database: Database) -> None:
    """Fifty of them hear of a change by the same look."""

    async def watch_all() -> None:
        live = Live(database, interval=0.2)
        watchers = [live.watch(["a", "b"]) for _ in range(50)]
        first = await asyncio.gather(*(anext(watcher) for watcher in watchers))
        assert {status.submission.id for status in first if status} == {"a"}
        assert database.looks == 1
        await asyncio.gather(*(anext(watcher) for watcher in watchers))
        database.finish("b")
        before = database.looks
        changed = await asyncio.gather(*(anext(watcher) for watcher in watchers))
        assert {status.submission.id for status in changed if status} == {"b"}
        assert database.looks - before <= 2
        for watcher in watchers:
            await watcher.aclose()
        await live.close()

    asyncio.run(watch_all())


def test_nobody_looks_when_nobody_watches(database: Database) -> None:
    """The last watcher who goes ends it, and the next one who comes begins it again."""

    async def come_and_go() -> None:
        live = Live(database, interval=0.001)
        for _ in range(2):
            watcher = live.watch(["a"])
            assert await anext(watcher)
            await watcher.aclose()
            await asyncio.sleep(0.05)
            before = database.looks
            await asyncio.sleep(0.05)
            assert database.looks == before
        await live.close()

    asyncio.run(come_and_go())


@pytest.mark.parametrize("error", [UnreachableError("The database is down; start it."), ValueError("a slip")])
def test_a_look_that_fails_is_tried_again(database: Database, error: Exception) -> None:
    """Whatever it meets: watchers keep their connection and hear of what has changed since."""

    async def watch() -> None:
        live = Live(database, interval=0.001)
        watcher = live.watch(["a"])
        await anext(watcher)
        database.fails = error
        waiting = asyncio.ensure_future(anext(watcher))
        await asyncio.sleep(0.02)
        database.finish("a")
        database.fails = None
        assert await waiting == database.found["a"]
        await watcher.aclose()
        await live.close()

    asyncio.run(watch())


def test_a_watcher_hears_that_the_connection_lives(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing changes, or a proxy would cut it."""
    monkeypatch.setattr("web.live.SILENCE", 0.02)

    async def watch() -> None:
        live = Live(database, interval=0.001)
        watcher = live.watch(["a"])
        assert await anext(watcher)
        assert await anext(watcher) is None
        await watcher.aclose()
        await live.close()

    asyncio.run(watch())


def test_what_is_done_is_looked_at_no_more(database: Database) -> None:
    """And when all is done, watching ends by itself."""

    async def watch() -> None:
        asked: list[list[str]] = []

        def look(names: Sequence[str]) -> list[Status]:
            asked.append(sorted(names))
            return database(names)

        live = Live(look, interval=0.001)
        database.end("a")
        watcher = live.watch(["a", "b"])
        assert {
            status.submission.id for status in [await anext(watcher), await anext(watcher)] if status
        } == {
            "a",
            "b",
        }
        waiting = asyncio.ensure_future(anext(watcher))
        await asyncio.sleep(0.02)
        database.end("b")
        assert await waiting == database.found["b"]
        with pytest.raises(StopAsyncIteration):
            await anext(watcher)
        await live.close()
        assert asked[0] == ["a", "b"]
        assert asked[-1] == ["b"]

    asyncio.run(watch())


def test_many_submissions_are_looked_at_in_parts(database: Database) -> None:
    """A database bounds how many one statement may name; whoever watches hears of all of them."""
    (status, *_) = database.found.values()
    names = [f"n{number}" for number in range(2 * AT_ONCE + 50)]
    database.found = {name: replace(status, submission=replace(status.submission, id=name)) for name in names}

    async def watch() -> None:
        asked: list[int] = []

        def look(some: Sequence[str]) -> list[Status]:
            asked.append(len(some))
            return database(some)

        live = Live(look, interval=0.001)
        watcher = live.watch(names)
        heard = [await anext(watcher) for _ in names]
        assert {one.submission.id for one in heard if one} == set(names)
        assert asked[:3] == [AT_ONCE, AT_ONCE, 50]
        await watcher.aclose()
        await live.close()

    asyncio.run(watch())


def test_a_place_is_taken_before_anything_is_waited_for(
    client: TestClient, app: FastAPI, otters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who come at once for the last place one gets it, and it is free again whatever he got."""
    watchers, path = app.state.site.watchers, f"/api/v1/events?id={otters}"
    looking, go_on = threading.Event(), threading.Event()
    find = SqlJobStore.find_submission

    def slowly(store: SqlJobStore, reference: str) -> Submission:
        looking.set()
        assert go_on.wait(PATIENCE)
        return find(store, reference)

    with ExitStack() as taken, ThreadPoolExecutor(1) as callers:
        for _ in range(MAX_WATCHERS - 1):
            taken.enter_context(watchers.one())
        with monkeypatch.context() as patched:
            patched.setattr(SqlJobStore, "find_submission", slowly)
            try:
                first = callers.submit(client.get, path)
                assert looking.wait(PATIENCE)
                second = client.get(path)
            finally:
                go_on.set()
        assert (second.status_code, second.headers["retry-after"]) == (503, "60")
        assert first.result(PATIENCE).status_code == 200
        assert client.get("/api/v1/events?id=nothing").status_code == 404
        assert client.get(path).status_code == 200


def test_events_that_nobody_reads_keep_no_place(app: FastAPI, otters: str) -> None:
    """Somebody may go before the answer begins."""
    watchers = app.state.site.watchers

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise OSError("the caller has gone")

    path = "/api/v1/events"
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "GET", "path": path, "raw_path": path.encode(), "query_string": f"id={otters}".encode(),
        "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8344),
        "headers": [(b"host", b"127.0.0.1:8344")],
    }  # fmt: skip
    with ExitStack() as taken:
        for _ in range(MAX_WATCHERS - 1):
            taken.enter_context(watchers.one())
        with pytest.raises(ClientDisconnect):
            asyncio.run(asyncio.wait_for(app(scope, receive, send), PATIENCE))
        assert not watchers.are_taken


def test_a_page_hears_that_all_is_done(client: TestClient, otters: str) -> None:
    """And does not come again; a page that shows only such submissions does not ask at all."""
    answer = client.get(f"/live?id={otters}&part=head")
    assert [line for line in answer.text.splitlines() if line.startswith("event:")] == [
        "event: status",
        "event: end",
    ]
    assert "data-live" not in client.get("/").text
    assert "data-live" not in client.get(f"/submissions/{otters}").text


def test_what_is_not_done_is_followed(client: TestClient, otters: str, store: JobStore) -> None:
    """By the list and by its own page."""
    store.retry(otters)
    assert f'data-live="{otters}"' in client.get("/").text
    assert f'data-live="{otters}"' in client.get(f"/submissions/{otters}").text


def test_the_api_streams_until_all_is_done(client: TestClient, otters: str) -> None:
    """One event for each change, whose data is what the submission's own address answers."""
    answer = client.get(f"/api/v1/events?id={otters}&id=otters")
    assert answer.headers["content-type"].startswith("text/event-stream")
    kind, identity, data = answer.text.strip().split("\n")
    assert (kind, identity) == ("event: status", f"id: {otters}")
    told = json.loads(data.removeprefix("data: "))
    answered = client.get(f"/api/v1/submissions/{otters}").json()["submission"]
    assert told | {"images_per_second": 0} == answered | {"images_per_second": 0}


def test_only_submissions_that_are_there_can_be_watched(client: TestClient) -> None:
    """And not none, nor more than a page has."""
    assert client.get("/api/v1/events?id=nothing").status_code == 404
    assert client.get("/live").status_code == 422
    assert client.get("/live?" + "&".join(["id=otters"] * 201)).status_code == 422
