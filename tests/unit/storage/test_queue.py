"""The queue on a real Redis: messages out, ids back, garbage ignored, passwords kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Message, Queue
from kombu.common import ignore_errors

from storage.embedded_redis import EmbeddedRedis
from storage.errors import BadInputError, UnreachableError
from storage.queue import JobQueue, broker_url, connect, make_app, ping, queue_name
from storage.safe_url import safe_url
from storage.settings import Settings
from storage.strict_transport import TASK
from storage.version import MESSAGE_VERSION
from tests.servers import running_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that all tests here share; its URL."""
    settings = Settings(home=tmp_path_factory.mktemp("queue"))
    user = EmbeddedRedis(settings)
    user.acquire()
    yield broker_url(settings)
    user.release()


@pytest.fixture
def queue(server: str) -> Iterator[JobQueue]:
    """An empty queue of the model `demo`."""
    with connect(server) as client:
        client.flushall()
    made = JobQueue(server, "demo")
    yield made
    made.close()


def test_what_is_published_is_pending(queue: JobQueue) -> None:
    """Each job has one message, which carries its id and the message's version and nothing else."""
    queue.publish([3, 1, 2])
    assert queue.pending() == {1, 2, 3}
    with connect(queue.url) as client:
        messages = [json.loads(raw) for raw in client.lrange(queue_name("demo"), 0, -1)]  # type: ignore[union-attr]
    assert len(messages) == 3
    body = json.loads(base64.b64decode(messages[-1]["body"]))
    assert body[:2] == [[3], {"version": MESSAGE_VERSION}]
    assert messages[-1]["headers"]["task"] == TASK
    assert messages[-1]["content-type"] == "application/json"


def test_models_have_queues_of_their_own(queue: JobQueue, server: str) -> None:
    """A message for one model is not seen by another."""
    other = JobQueue(server, "other")
    other.publish([9])
    assert queue.pending() == set()
    assert other.pending() == {9}
    other.close()


def test_publishing_nothing_is_fine(queue: JobQueue) -> None:
    """An empty list leaves an empty queue."""
    queue.publish([])
    assert queue.pending() == set()


def test_a_flushed_server_takes_messages_as_before(queue: JobQueue) -> None:
    """Nothing that a flush removes is needed to publish."""
    queue.publish([1])
    with connect(queue.url) as client:
        client.flushall()
    queue.publish([2])
    assert queue.pending() == {2}


def test_a_lost_connection_with_a_message_in_hand_is_closed_like_any_other(tmp_path: Path) -> None:
    """As Celery does it after an outage; any other error than a lost connection would end its worker."""
    taken: list[Message] = []
    name = queue_name("demo")
    with running_redis(tmp_path) as redis:
        queue = JobQueue(redis.url, "demo")
        queue.publish([1])
        queue.close()
        connection = make_app(redis.url).connection_for_read()
        with connection.Consumer([Queue(name, routing_key=name)], on_message=taken.append):
            connection.drain_events(timeout=5)
            with pytest.raises(TimeoutError):  # it waits for the next one
                connection.drain_events(timeout=0.2)
            redis.kill()
        assert taken, "the message is not here"
        connection.collect(socket_timeout=0.1)
        ignore_errors(connection, connection.close)


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"\xff\xfe", b"not json", b"[]", b"{}", b'{"body": 1}', b'{"body": "%%%"}', b'{"body": "e30="}',
        b'{"body": "W10="}', b'{"body": "W1tdXQ=="}', b'{"body": "W1sieCJdXQ=="}', b"null", b'"body"',
    ],
)  # fmt: skip
def test_what_others_put_into_the_list_is_ignored(queue: JobQueue, garbage: bytes) -> None:
    """A foreign or broken message hides none of ours."""
    queue.publish([5])
    with connect(queue.url) as client:
        client.lpush(queue_name("demo"), garbage)
    assert queue.pending() == {5}


def test_a_server_that_is_down_is_one_sentence_without_the_password() -> None:
    """Publishing, looking and pinging all say where, and none of them says the password."""
    url = "redis://user:secret@127.0.0.1:1/0"
    queue = JobQueue(url, "demo")
    for act in (lambda: queue.publish([1]), queue.pending, lambda: ping(Settings(redis_url=url))):
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/0") as caught:
            act()
        assert "secret" not in str(caught.value)
    queue.close()


def test_a_server_that_dies_with_messages_on_their_way_is_one_sentence(tmp_path: Path) -> None:
    """The connection stood, and what was to be sent was only collected so far."""
    with running_redis(tmp_path, password="secret") as server:  # noqa: S106 - a test's
        queue = JobQueue(server.url, "demo")

        def jobs() -> Iterator[int]:
            yield 1
            server.kill()
            yield 2

        with pytest.raises(UnreachableError, match=r"does not take messages: .*refused") as caught:
            queue.publish(jobs())
        assert "secret" not in str(caught.value)
        server.start()
        queue.publish([3])
        assert queue.pending() == {3}
        queue.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p@ss@host:6379/0", "redis://host:6379/0"),
        ("rediss://user:secret@host/1", "rediss://host/1"),
        ("redis://host/0", "redis://host/0"),
        ("redis+socket:///home/a@b/redis.sock", "redis+socket:///home/a@b/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """The server stays recognisable, the password does not."""
    assert safe_url(url) == shown


def test_a_url_that_is_none_is_bad_input() -> None:
    """The sentence names the setting and what to write."""
    with pytest.raises(BadInputError, match="PROMPTMILL_REDIS_URL"):
        connect("nonsense")
