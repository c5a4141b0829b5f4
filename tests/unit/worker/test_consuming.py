"""What Celery's loop is asked to consume, with a stand-in for its consumer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from worker import consuming
from worker.consuming import Consumption


class FakeConsumer:
    """Celery's consumer: it has a connection, or not, and does at once what it is asked to do soon."""

    def __init__(self, app: Celery) -> None:
        app.amqp.queues.select(["render.a"])
        self.app = app
        self.connection: object | None = object()
        self.task_consumer: object | None = object()
        self.initial_prefetch_count = 0
        self.qos = SimpleNamespace(value=0, update=lambda: self.done.append(f"prefetch {self.qos.value}"))
        self.done: list[str] = []
        self.asked = 0

    def call_soon(self, action: Callable[[], None]) -> None:
        """Do it; a lost connection is back at the third request."""
        self.asked += 1
        if self.asked == 3:
            self.connection = object()
        action()

    def add_task_queue(self, queue: str) -> None:
        """Consume, as Celery does."""
        self.done.append(f"add {queue}")
        self.app.amqp.queues.select_add(self.app.amqp.queues[queue])

    def cancel_task_queue(self, queue: str) -> None:
        """Consume no longer."""
        self.done.append(f"cancel {queue}")
        self.app.amqp.queues.deselect(queue)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    """A consumer of model a's queue."""
    monkeypatch.setattr(consuming, "ASK_AGAIN", 0.01)
    return FakeConsumer(Celery("test", set_as_current=False))


@pytest.fixture
def consumption(consumer: FakeConsumer) -> Consumption:
    """What it consumes, once Celery has made it."""
    consumption = Consumption(consumer.app, prefetch=6)
    consumption.attach(consumer)
    return consumption


def test_one_queue_is_consumed_at_a_time(consumption: Consumption, consumer: FakeConsumer) -> None:
    """Between two turns none is; a queue comes with its own number of messages."""
    assert consumer.initial_prefetch_count == 6
    assert consumption.change(None, threading.Event())
    assert list(consumer.app.amqp.queues.consume_from) == []
    assert consumption.change("render.b", threading.Event(), prefetch=9)
    assert list(consumer.app.amqp.queues.consume_from) == ["render.b"]
    assert consumer.done == ["cancel render.a", "prefetch 9", "add render.b"]
    assert consumer.initial_prefetch_count == 9


def test_a_lost_connection_is_waited_for(consumption: Consumption, consumer: FakeConsumer) -> None:
    """What was asked meanwhile is asked again, and nothing is said to be done before it is."""
    consumer.connection = None
    assert consumption.change("render.b", threading.Event())
    assert consumer.asked == 3
    assert list(consumer.app.amqp.queues.consume_from) == ["render.b"]


def test_a_process_that_ends_waits_for_nothing(consumption: Consumption, consumer: Any) -> None:
    """Nobody is asked any more."""
    stopping = threading.Event()
    stopping.set()
    assert not consumption.change(None, stopping)
    assert consumer.asked == 0
