"""`POST /v1/images/generations`: what OpenAI's clients send and expect."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from openai import OpenAI, OpenAIError
from starlette.testclient import TestClient

from storage.jobstore import JobStore
from storage.settings import Settings
from tests.unit.producer.conftest import StandInWorker
from tests.web.conftest import BASE
from web.site import MAX_GENERATING, MAX_WATCHERS

PATH = "/v1/images/generations"
PATIENCE = 60.0  # seconds: only how long a broken test may hang


@pytest.fixture
def rendering(worker: StandInWorker) -> Iterator[StandInWorker]:
    """A worker that renders whatever is submitted meanwhile."""
    ended = threading.Event()
    worker.numerics["model_revision"] = "abc"
    worker.start()

    def render() -> None:
        while not ended.wait(0.02):
            worker.render()

    thread = threading.Thread(target=render)
    thread.start()
    yield worker
    ended.set()
    thread.join()


def ask(client: TestClient, **asked: Any) -> Any:
    """Ask for pictures; return the answer's JSON."""
    answer = client.post(PATH, json={"model": "demo", "prompt": "an otter", "seed": 7} | asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.usefixtures("rendering")
def test_pictures_come_in_the_order_of_their_seeds(client: TestClient, store: JobStore) -> None:
    """As base64, byte for byte what is stored."""
    told = ask(client, n=2, size="64x64", response_format="b64_json", user="me", quality="hd")
    jobs = list(store.jobs(told["submission"]))
    assert [job.parameters.seed for job in jobs] == [7, 8]
    assert [(job.parameters.width, job.parameters.height) for job in jobs] == [(64, 64)] * 2
    sizes = [len(base64.b64decode(each["b64_json"])) for each in told["data"]]
    assert sizes == [job.image.bytes for job in jobs if job.image]
    assert isinstance(told["created"], int)


@pytest.mark.usefixtures("rendering")
def test_the_same_request_is_answered_from_what_is_there(client: TestClient) -> None:
    """Where it says its seed."""
    assert ask(client)["submission"] == ask(client)["submission"]


@pytest.mark.usefixtures("rendering")
def test_a_picture_can_be_fetched_by_its_address(client: TestClient) -> None:
    """Instead of being in the answer."""
    (one,) = ask(client, response_format="url")["data"]
    assert "b64_json" not in one
    assert client.get(one["url"]).content[:4] == b"\x89PNG"


@pytest.mark.usefixtures("rendering")
def test_openais_own_client_gets_the_stored_bytes(
    client: TestClient, store: JobStore, settings: Settings
) -> None:
    """It is pointed at this address, and nothing else is changed."""
    openai = OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=client)
    answer = openai.images.generate(
        model="demo", prompt="an otter", n=2, size="auto", extra_body={"seed": 42, "steps": 12}
    )
    images = [job.image for job in store.jobs(store.find_submission("@last").id)]
    stored = [(settings.images_path / image.key).read_bytes() for image in images if image]
    assert [base64.b64decode(one.b64_json or "") for one in answer.data or []] == stored
    assert len(stored) == 2


@pytest.mark.usefixtures("rendering")
def test_openais_own_client_shows_our_sentence(client: TestClient) -> None:
    """And does not try again by itself."""
    openai = OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=client)
    with pytest.raises(OpenAIError, match="There is no model 'dall-e-3'"):
        openai.images.generate(model="dall-e-3", prompt="an otter")


def test_who_waits_too_long_is_told_where_the_pictures_will_be(client: TestClient, store: JobStore) -> None:
    """The submission goes on, and no client repeats the request by itself."""
    answer = client.post(PATH, json={"prompt": "an otter", "model": "demo", "wait": 0.05})
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    assert store.find_submission("@last").id in answer.json()["error"]["message"]
    assert store.find_submission("@last").state == "open"


def test_who_goes_is_waited_for_no_longer(app: FastAPI, store: JobStore) -> None:
    """His place is free again, and the submission goes on."""
    body = json.dumps({"prompt": "an otter", "model": "demo", "wait": 3600}).encode()
    heard = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    said: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return heard.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH,
        "raw_path": PATH.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8344),
        "headers": [(b"host", b"127.0.0.1:8344"), (b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), PATIENCE))
    assert said[0]["status"] == 504
    assert b"its caller has gone" in said[1]["body"]
    assert store.find_submission("@last").state == "open"
    assert not app.state.site.generating.are_taken


def test_those_who_wait_have_places_of_their_own(client: TestClient, app: FastAPI, otters: str) -> None:
    """When these are taken, progress can be followed all the same; and the other way round."""
    site = app.state.site
    with ExitStack() as taken:
        for _ in range(MAX_GENERATING):
            taken.enter_context(site.generating.one())
        answer = client.post(PATH, json={"prompt": "an otter", "model": "demo"})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "true")
        assert client.get(f"/api/v1/events?id={otters}").status_code == 200
    with ExitStack() as taken:
        for _ in range(MAX_WATCHERS):
            taken.enter_context(site.watchers.one())
        assert client.get(f"/api/v1/events?id={otters}").status_code == 503
        waited = client.post(PATH, json={"prompt": "an otter", "model": "demo", "wait": 0.05})
        assert waited.status_code == 504


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "dall-e-3"}, "There is no model 'dall-e-3'"),
        ({"size": "7x7"}, "not a multiple of 8"),
        ({"n": 11}, "less than or equal to 10"),
        ({"prompt": ""}, "at least 1 character"),
    ],
)
def test_errors_have_the_shape_that_clients_show(
    client: TestClient, asked: dict[str, Any], said: str
) -> None:
    """With our sentence as the message."""
    answer = client.post(PATH, json={"prompt": "an otter", "model": "demo"} | asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
