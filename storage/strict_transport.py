"""The receiving end of the queue: what is no message of ours is logged and dropped before Celery sees it.

Celery and kombu trust what lies in Redis: a body that is no list, or an entry that is no JSON, ends their
whole worker, and its jobs with it. Who can write into Redis could so stop a farm with one line.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from typing import Any

import redis
import structlog
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

log = structlog.get_logger()

TASK = "promptmill.render"
QUEUE_PREFIX = "render."
MAX_JOB = 2**63 - 1  # what a database takes for an id
_ID = re.compile("[0-9a-f-]{36}")  # what Celery calls a message, as Flower shows it
MAX_BODY = 10_000  # characters; ours have two hundred


def job_of(message: Any) -> int:
    """Return the id of the job that a message of ours is about.

    Args:
        message: what lies in Redis, read as JSON.

    Raises:
        ValueError: for any other message; says what is wrong with it.
    """
    if not isinstance(message, dict):
        raise ValueError("it is no message of Celery's")  # noqa: TRY004 - one error for all faults
    headers = message.get("headers")
    if not isinstance(headers, dict) or headers.get("task") != TASK:
        raise ValueError(f"it is not for the task {TASK}")
    if headers.get("eta") or headers.get("expires"):
        raise ValueError("it asks for a time of its own")
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        raise ValueError("its body is not said to be JSON")
    return _job_of_body(message.get("body"))


def _job_of_body(body: Any) -> int:
    if not isinstance(body, str) or len(body) > MAX_BODY:
        raise ValueError("its body is no short text")
    content = json.loads(base64.b64decode(body, validate=True))
    match content:
        case [[job], {"version": _, **others}, dict() as embedded] if not others:
            if any(embedded.values()):
                raise ValueError("it wants other tasks to be called")
        case _:
            raise ValueError("its body is not [[job], {version}, {}]")
    if type(job) is not int or not 0 < job <= MAX_JOB:  # a bool is an int, too
        raise ValueError("it names no job")
    return job


def _rebuilt(job: int, message: dict[str, Any], queue: str) -> dict[str, Any]:
    """Say in our own words what a message says: Celery and kombu trust every field of it."""
    given = message["headers"].get("id")
    name = given if isinstance(given, str) and _ID.fullmatch(given) else str(uuid.uuid4())
    headers = {
        "lang": "py", "task": TASK, "id": name, "root_id": name, "parent_id": None, "group": None,
        "retries": 0, "timelimit": [None, None], "argsrepr": f"[{job}]", "kwargsrepr": "{}",
        "ignore_result": True,
    }  # fmt: skip
    properties = {
        "correlation_id": name, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()), "delivery_info": {"exchange": "", "routing_key": queue},
    }  # fmt: skip
    return {
        "body": message["body"],
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
    }


class Channel(kombu_redis.Channel):
    """Reads one entry of a list after the other."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # kombu has no types
        except (ValueError, RecursionError) as error:  # no JSON, or JSON that is nested without end
            _reject(error)
            return True  # something was read

    def _connparams(self, *arguments: Any, **options: Any) -> Any:
        """See kombu. A channel whose connection was collected has no address any more.

        Celery closes such a channel after an outage, ready for a lost connection; for the AttributeError that
        kombu raises there it would end the whole worker. What is not acknowledged comes back from the rows.
        """
        if self.connection.client is None:
            raise redis.ConnectionError("the connection is closed")
        return super()._connparams(*arguments, **options)  # type: ignore[no-untyped-call]  # kombu has no types


class Transport(kombu_redis.Transport):
    """Hands messages to Celery."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue.startswith(QUEUE_PREFIX):
            try:
                message = _rebuilt(job_of(message), message, queue)
            except (ValueError, RecursionError) as error:
                _reject(error)
                return
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]  # kombu has no types


def _reject(error: Exception) -> None:
    log.error("message rejected", action="reject", reason=str(error)[:200])


def use() -> None:
    """Let every Celery app of this process receive like this."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
