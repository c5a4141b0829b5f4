"""Which queue a running Celery worker consumes: that of the model that has its turn, and none between turns.

Celery's loop owns its connection, so what is wanted is written down here and carried out there. After a lost
connection Celery consumes what it consumed last, and asking again finds nothing to do.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery, bootsteps

ASK_AGAIN = 2.0  # seconds: a request is lost with the connection


class Consumption:
    """What one Celery worker takes from Redis.

    Args:
        app: of the worker, which is not made yet.
        prefetch: messages that are held at once, of the queue that it starts with.
    """

    def __init__(self, app: Celery, *, prefetch: int) -> None:
        self._wanted: tuple[str | None, int] = (None, prefetch)
        self._consumer: Any = None
        self._done = threading.Event()
        # Celery would raise the number to that of its threads, one by one, once a lost connection is back.
        app.conf.worker_enable_prefetch_count_reduction = False
        app.steps["consumer"].add(_step(self))

    def attach(self, consumer: Any) -> None:
        """Hear from Celery which consumer it has made; it is not started yet."""
        self._consumer = consumer
        consumer.initial_prefetch_count = self._wanted[1]

    def change(self, queue: str | None, stopping: threading.Event, *, prefetch: int = 1) -> bool:
        """Consume this queue and no other, from now on; False if `stopping` came first.

        Once it returns, no message of another queue is handed to a thread any more.
        """
        self._wanted = (queue, prefetch)
        self._done.clear()
        while not stopping.is_set():
            if self._consumer is not None:
                self._consumer.call_soon(self._apply)
            if self._done.wait(ASK_AGAIN):
                return True
        return False

    def _apply(self) -> None:
        """Do what is wanted, in the thread of Celery's loop; repeating it is harmless."""
        consumer, (queue, prefetch) = self._consumer, self._wanted
        if consumer.task_consumer is None or consumer.connection is None:
            return  # between two connections
        queues = consumer.app.amqp.queues
        for other in [name for name in queues.consume_from if name != queue]:
            consumer.cancel_task_queue(other)
        if queue is not None:
            consumer.initial_prefetch_count = consumer.qos.value = prefetch
            consumer.qos.update()
            queues[queue]  # made like those that Celery starts with
            consumer.add_task_queue(queue)
        self._done.set()


def _step(consumption: Consumption) -> type[Any]:
    class Attach(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
        """Tells our side of Celery's consumer, when it is made."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, consumer: Any, **options: Any) -> None:
            super().__init__(consumer, **options)
            consumption.attach(consumer)

    return Attach
