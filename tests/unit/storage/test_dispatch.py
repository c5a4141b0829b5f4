"""The dispatcher's tick, with a clock, a store and a queue under control."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import pytest

from storage.dispatch import REPUBLISH_AFTER, Dispatcher
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.served import ServedModel
from tests.records import worker_record


@dataclass
class FakeStore:
    """Jobs by number: waiting ones are taken in order."""

    waiting: list[int] = field(default_factory=lambda: list(range(100)))
    queue: list[int] = field(default_factory=list)
    alive: list[Any] = field(default_factory=lambda: [worker()])
    rendered: int = 0

    def workers(self, *, alive_only: bool) -> list[Any]:
        """Return who lives."""
        assert alive_only
        return self.alive

    def rendered_since(self, _model: str, _since: datetime) -> int:
        """Return how many pictures came in ten seconds."""
        return self.rendered

    def take_for_dispatch(self, _model: str, *, window: int) -> list[int]:
        """Fill the window."""
        taken = self.waiting[: max(0, window - len(self.queue))]
        del self.waiting[: len(taken)]
        self.queue += taken
        return taken

    def queued(self, _model: str) -> list[int]:
        """Return what is queued."""
        return list(self.queue)


@dataclass
class FakeQueue:
    """Messages, and whether the server is there."""

    messages: list[int] = field(default_factory=list)
    down: bool = False

    def publish(self, jobs: list[int]) -> None:
        """Keep the messages, or fail."""
        if self.down:
            raise UnreachableError("Redis is down.")
        self.messages += jobs

    def pending(self) -> set[int]:
        """Return whose message waits."""
        if self.down:
            raise UnreachableError("Redis is down.")
        return set(self.messages)


def worker(model: str = "demo", lanes: int = 4, concurrency: int = 6) -> Any:
    """Return what the dispatcher wants to know of a worker."""
    return worker_record(model=model, lanes=lanes, concurrency=concurrency)


@pytest.fixture
def store() -> FakeStore:
    """A hundred waiting jobs and one worker."""
    return FakeStore()


@pytest.fixture
def queue() -> FakeQueue:
    """An empty queue."""
    return FakeQueue()


@pytest.fixture
def dispatcher(store: FakeStore, queue: FakeQueue, clock: Any) -> Dispatcher:
    """A dispatcher of the model `demo`."""
    return Dispatcher(cast("JobStore", store), queue, "demo", clock=clock)


def test_the_window_is_half_of_what_the_workers_hold(
    dispatcher: Dispatcher, store: FakeStore, queue: FakeQueue
) -> None:
    """Of those that serve the model; and each job gets one message."""
    store.alive = [worker(), worker(concurrency=9), worker(model="other", concurrency=64)]
    assert dispatcher.tick()
    assert queue.messages == store.queue == list(range(8))
    assert not dispatcher.tick()
    assert len(queue.messages) == 8


def test_a_worker_of_several_models_counts_for_each(
    dispatcher: Dispatcher, store: FakeStore, queue: FakeQueue
) -> None:
    """Also for one whose turn it is not, by what it can hold of it; not for one that it cannot load."""
    models = (ServedModel(name="other", concurrency=64), ServedModel(name="demo", concurrency=9))
    several = worker_record(model="other", concurrency=64, models=models)
    broken = (ServedModel(name="demo", concurrency=30, problem="No such file."),)
    store.alive = [several, worker_record("w2", models=broken)]
    dispatcher.tick()
    assert queue.messages == list(range(5))


def test_a_fast_worker_gets_a_longer_window(dispatcher: Dispatcher, store: FakeStore) -> None:
    """Tiny pictures: as much is queued as is rendered in two ticks."""
    store.rendered = 500
    dispatcher.tick()
    assert len(store.queue) == 50


def test_without_a_worker_nothing_is_dispatched(
    dispatcher: Dispatcher, store: FakeStore, queue: FakeQueue
) -> None:
    """Jobs wait in the database while nobody could render them."""
    store.alive = [worker(model="other")]
    assert not dispatcher.tick()
    assert queue.messages == store.queue == []


def test_a_lost_message_is_published_again_after_ten_seconds(
    dispatcher: Dispatcher, queue: FakeQueue, clock: Any
) -> None:
    """After a flush nothing happens at once, since workers may hold the messages; then all come again."""
    dispatcher.tick()
    queue.messages.clear()
    dispatcher.tick()
    clock.advance(REPUBLISH_AFTER - 0.1)
    dispatcher.tick()
    assert queue.messages == []
    clock.advance(0.2)
    dispatcher.tick()
    assert queue.messages == list(range(3))
    queue.messages.clear()
    clock.advance(REPUBLISH_AFTER - 0.1)
    dispatcher.tick()
    assert queue.messages == []  # the ten seconds begin anew


def test_a_message_that_was_claimed_is_not_missed(
    dispatcher: Dispatcher, store: FakeStore, queue: FakeQueue, clock: Any
) -> None:
    """A job that is no longer queued needs no message, however long ago it was taken."""
    store.waiting = []
    store.queue = [7]
    dispatcher.tick()
    store.queue.clear()
    clock.advance(60)
    dispatcher.tick()
    store.queue = [7]  # queued once more, much later
    dispatcher.tick()
    assert queue.messages == []


def test_a_failed_publish_is_mended(
    dispatcher: Dispatcher, store: FakeStore, queue: FakeQueue, clock: Any
) -> None:
    """Rows that were queued while Redis was down get their messages once it is back."""
    queue.down = True
    for _ in range(3):
        with pytest.raises(UnreachableError):
            dispatcher.tick()
        clock.advance(60)
    assert len(store.queue) == 3
    queue.down = False
    dispatcher.tick()
    clock.advance(REPUBLISH_AFTER)
    dispatcher.tick()
    assert sorted(queue.messages) == store.queue


def test_a_failed_second_publish_is_tried_again_at_once(
    dispatcher: Dispatcher, queue: FakeQueue, clock: Any
) -> None:
    """What could not be published again stays overdue."""
    dispatcher.tick()
    queue.messages.clear()
    dispatcher.tick()
    clock.advance(REPUBLISH_AFTER)
    publish = queue.publish

    def fail(_jobs: list[int]) -> None:
        raise UnreachableError("Redis is full.")

    queue.publish = fail  # type: ignore[method-assign]
    with pytest.raises(UnreachableError):
        dispatcher.tick()
    queue.publish = publish  # type: ignore[method-assign]
    dispatcher.tick()
    assert sorted(queue.messages) == list(range(3))
