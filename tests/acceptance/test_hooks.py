"""A URL is told by a real worker's supervisor, and only by one that may."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.acceptance.farm import Farm, wait_until


@pytest.fixture
def told() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a server, and what it is told; the first time it answers 503."""
    heard: list[Any] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(503 if len(heard) == 1 else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/done", heard
        server.shutdown()
        thread.join()


def test_a_url_is_told_by_a_supervisor_that_may(farm: Farm, told: tuple[str, list[Any]]) -> None:
    """Not by one with --no-hooks; another one does later, again after a 503, as `status` shows it."""
    url, heard = told
    silent = farm.start_worker("--no-hooks")
    submission = farm.submit(2, "--steps", "4", "--on-done", url)
    farm.wait_for(submission, 2)
    assert farm.stop(silent) == 0
    assert [hook.attempts for hook in farm.store().hooks(submission)] == [0]
    worker = farm.start_worker()
    wait_until(lambda: farm.store().hooks(submission)[0].ended_at, what="the URL was told")
    assert len(heard) == 2
    status = farm.status(submission)
    for said in (*heard, status):
        del said["submission"]["images_per_second"]  # of the last minute, whoever asks
    assert heard[0] == heard[1] == status
    assert status["submission"]["counts"]["succeeded"] == 2
    assert f"{url.removesuffix('/done')} was told at" in farm.run("status", submission).stdout
    assert farm.stop(worker) == 0
    assert farm.processes() == {}
