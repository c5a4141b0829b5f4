"""What lies in Redis is believed only where it is our message; nothing else is executed or ends a worker."""

from __future__ import annotations

import base64
import json
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.contrib.testing.worker import start_worker
from structlog.testing import capture_logs

from storage.embedded_redis import EmbeddedRedis
from storage.queue import JobQueue, broker_url, connect, make_app, queue_name
from storage.settings import Settings
from storage.strict_transport import MAX_JOB
from worker import tasks
from worker.process import WorkerProcess

PATIENCE = 30.0  # seconds: only how long a broken test may hang
MODEL = "demo"


class Rendered:
    """Which jobs the task was called for."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self._changed = threading.Condition()

    def add(self, _process: object, job: int) -> None:
        """Take the place of `render_job`."""
        with self._changed:
            self.jobs.append(job)
            self._changed.notify_all()

    def wait_for(self, job: int) -> bool:
        """Wait until a job was rendered."""
        with self._changed:
            return self._changed.wait_for(lambda: job in self.jobs, timeout=PATIENCE)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis."""
    settings = Settings(home=tmp_path_factory.mktemp("messages"))
    user = EmbeddedRedis(settings)
    user.acquire()
    yield broker_url(settings)
    user.release()


@pytest.fixture(scope="module")
def rendered(url: str) -> Iterator[Rendered]:
    """A real Celery worker on it, whose task only notes the job."""
    seen = Rendered()
    app = make_app(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "render_job", seen.add)
        tasks.add_render_task(app, cast("WorkerProcess", SimpleNamespace()))
        with start_worker(
            app, pool="threads", concurrency=2, perform_ping_check=False, queues=[queue_name(MODEL)],
            loglevel="CRITICAL",
        ):  # fmt: skip
            yield seen
    app.close()


class Evil:
    """What a pickle can do: whoever reads it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Be executed by whoever reads it."""
        return os.system, (f"touch {self.path}",)


def changed(message: dict[str, Any], *, body: Any = None, **fields: Any) -> bytes:
    """Return a message of ours with another body or other fields."""
    encoded = {} if body is None else {"body": base64.b64encode(json.dumps(body).encode()).decode()}
    return json.dumps({**message, **encoded, **fields}).encode()


def forge(name: str, message: dict[str, Any], trap: Path) -> bytes:
    """Make a forged or malformed entry out of a message of ours."""
    plain = [[7], {"version": 1}, {}]
    headers = message["headers"]
    pickled = base64.b64encode(pickle.dumps(Evil(trap))).decode()
    call = {"task": "os.system", "args": [f"touch {trap}"], "kwargs": {}, "options": {}}
    forged: dict[str, bytes] = {
        "a pickle": changed(message, **{"content-type": "application/x-python-serialize", "body": pickled}),
        "a pickle that says it is JSON": changed(message, body=pickled),
        "another task": changed(message, headers={**headers, "task": "celery.backend_cleanup"}),
        "a task of somebody's module": changed(message, headers={**headers, "task": "os.system"}),
        "a callback": changed(message, body=[[7], {"version": 1}, {"callbacks": [call]}]),
        "a moment in a hundred years": changed(message, headers={**headers, "eta": "2126-01-01T00:00:00"}),
        "a word for a job": changed(message, body=[["7; DROP TABLE jobs"], {"version": 1}, {}]),
        "a truth for a job": changed(message, body=[[True], {"version": 1}, {}]),
        "a job that no database has": changed(message, body=[[2**63], {"version": 1}, {}]),
        "more arguments": changed(message, body=[[7, "/etc/passwd"], {"version": 1}, {}]),
        "a model of its own": changed(message, body=[[7], {"version": 1, "model": "/etc"}, {}]),
        "a body that is no list": changed(message, body=17),
        "a body that is no base64": changed(message, body="%%%"),
        "a body without end": changed(message, body="A" * 4_000_000),
        "no headers": changed(message, body=plain, headers=None),
        "a number": b"17",
        "nothing": b"",
        "no text": b"\xff\x00\x80garbage",
        "nesting without end": b"[" * 200_000 + b"]" * 200_000,
    }
    return forged[name]


FORGED = (
    "a pickle", "a pickle that says it is JSON", "another task", "a task of somebody's module", "a callback",
    "a moment in a hundred years", "a word for a job", "a truth for a job", "a job that no database has",
    "more arguments", "a model of its own", "a body that is no list", "a body that is no base64",
    "a body without end", "no headers", "a number", "nothing", "no text", "nesting without end",
)  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_malformed_message_is_logged_and_dropped(
    name: str, url: str, rendered: Rendered, tmp_path: Path
) -> None:
    """Nothing of it is executed, and the next message is read as if it had never been there."""
    queue = JobQueue(url, MODEL)
    other = JobQueue(url, "other")
    other.publish([7])
    trap = tmp_path / "executed"
    next_job = 1_000 + FORGED.index(name)
    with connect(url) as client, capture_logs() as logs:
        message = json.loads(cast("bytes", client.lpop(queue_name("other"))))
        client.lpush(queue_name(MODEL), forge(name, message, trap))
        queue.publish([next_job])
        assert rendered.wait_for(next_job), "the worker does not go on"
    queue.close()
    other.close()
    assert min(rendered.jobs) >= 1_000, "a forged message was believed"
    assert max(rendered.jobs) < MAX_JOB
    assert not trap.exists(), "what was in a message was executed"
    assert [entry["action"] for entry in logs if entry["log_level"] == "error"] == ["reject"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("properties", "delivery_tag", None),
        ("properties", "delivery_info", 17),
        ("properties", "body_encoding", "rot13"),
        ("properties", "reply_to", ["x"]),
        ("headers", "id", {"a": 1}),
        ("headers", "retries", "many"),
        ("headers", "timelimit", "short"),
        ("headers", "compression", "bzip2"),
        ("headers", "lang", 17),
        ("headers", "stamped_headers", 17),
    ],
)
def test_what_surrounds_a_job_is_not_believed(
    part: str, name: str, value: Any, url: str, rendered: Rendered
) -> None:
    """Any other field may hold anything: the job is rendered, and the worker goes on."""
    queue = JobQueue(url, MODEL)
    other = JobQueue(url, "other")
    job = 2_000 + len(rendered.jobs)
    other.publish([job])
    with connect(url) as client:
        message = json.loads(cast("bytes", client.lpop(queue_name("other"))))
        client.lpush(queue_name(MODEL), json.dumps({**message, part: {**message[part], name: value}}))
        queue.publish([job + 1_000])
        assert rendered.wait_for(job), "the job is not rendered"
        assert rendered.wait_for(job + 1_000), "the worker does not go on"
    queue.close()
    other.close()


def test_an_untouched_message_is_believed(url: str, rendered: Rendered) -> None:
    """The forger's own starting point is a good message: what is refused above is refused for the change."""
    queue = JobQueue(url, MODEL)
    queue.publish([1_000])
    assert rendered.wait_for(1_000)
    queue.close()
