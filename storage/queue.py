"""Station 3 and 4: the queue. A message says `look at job N`; the row alone is the truth.

JSON only, one queue a model. Celery's own facts that this file relies on are in docs/decisions/0001.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import redis
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import BatchPublishError, OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from storage import strict_transport
from storage.embedded_redis import socket_path
from storage.errors import BadInputError, UnreachableError
from storage.hints import hint
from storage.safe_url import safe_url
from storage.settings import Settings
from storage.strict_transport import QUEUE_PREFIX, TASK, job_of
from storage.version import MESSAGE_VERSION

_HINTS = ((re.compile("password|auth", re.IGNORECASE), "check the password in PROMPTMILL_REDIS_URL"),)
VISIBILITY_TIMEOUT = 3600  # seconds until Redis redelivers; the claim makes a redelivery harmless


def queue_name(model: str) -> str:
    """Return the name of the model's queue."""
    return QUEUE_PREFIX + model


def broker_url(settings: Settings) -> str:
    """Return the URL of the queue's server for kombu: the one that is set, else the embedded one's socket."""
    return settings.redis_url or f"redis+socket://{quote(str(socket_path(settings)))}"


def make_app(url: str) -> Celery:
    """Make the Celery app; both ends of the queue use this one configuration."""
    strict_transport.use()
    app = Celery("promptmill", broker=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        # A task that died with its worker is found by the heartbeat's reaper, and rejected messages come back
        # from the rows: redelivery by Celery would only be slower.
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # the default gives up after 100
        broker_connection_timeout=2.0,
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT},
        task_create_missing_queues=True,
    )
    return app


def connect(url: str, *, timeout: float = 2.0) -> redis.Redis:
    """Open a plain Redis connection to the broker."""
    plain = url.replace("redis+socket://", "unix://", 1)
    try:
        return redis.Redis.from_url(
            plain, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise BadInputError(
            f"PROMPTMILL_REDIS_URL cannot be used: {error}; write redis://HOST:PORT/0."
        ) from error


def ping(settings: Settings) -> None:
    """Ask the queue's server for a sign of life; UnreachableError with the reason if none comes."""
    url = broker_url(settings)
    try:
        with connect(url) as client:
            client.ping()
    except redis.RedisError as error:
        raise _unreachable(url, "answer", error) from error


def _unreachable(url: str, what: str, error: BaseException) -> UnreachableError:
    said = " ".join(str(error).split()).rstrip(".")
    mend = hint(_HINTS, said) or "start it, or check PROMPTMILL_REDIS_URL"
    return UnreachableError(f"Redis at {safe_url(url)} does not {what}: {said}; {mend}.")


class JobQueue:
    """The sending end of one model's queue."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self._app = make_app(url)
        self._redis = connect(url)
        # The default exchange: nothing to declare that a flushed Redis could forget.
        self._queue = Queue(queue_name(model), routing_key=queue_name(model))  # type: ignore[no-untyped-call]

    def publish(self, jobs: Iterable[int]) -> None:
        """Send one message a job, pipelined (5,900/s against 2,300/s one by one).

        Raises:
            UnreachableError: some may have been sent and others not; rows without a message are found again.
        """
        try:
            with (
                self._app.connection_for_write() as connection,
                connection.Producer() as producer,
                producer.batch(),
            ):
                for job in jobs:
                    self._app.send_task(
                        TASK,
                        args=[job],
                        kwargs={"version": MESSAGE_VERSION},
                        queue=self._queue,
                        producer=producer,
                        retry=False,
                    )
        except BatchPublishError as error:  # the connection broke with messages on their way
            raise _unreachable(self.url, "take messages", error.__cause__ or error) from error
        except (redis.RedisError, OperationalError, OSError) as error:
            raise _unreachable(self.url, "take messages", error) from error

    def pending(self) -> set[int]:
        """Return the ids of the jobs whose message waits in Redis, not yet taken by a worker."""
        try:
            raw: Any = self._redis.lrange(queue_name(self.model), 0, -1)
        except redis.RedisError as error:
            raise _unreachable(self.url, "answer", error) from error
        return {job for job in map(_job_of, raw) if job is not None}

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._app.close()


def _job_of(message: bytes) -> int | None:
    """Read the job's id out of a message as kombu stores it; None for one that is not ours."""
    try:
        return job_of(json.loads(message))
    except (ValueError, RecursionError):
        return None
