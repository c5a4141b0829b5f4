"""What looking costs rendering: many watchers and many requests while a worker renders.

The worker has one core, the server and its clients another. Images/s are counted without clients, with them,
and without them again: the machine may have got slower by itself. The aim: with 50 watchers and 50 requests/s
for a minute no error, and the worker at most 5 % slower.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from report import PROMPTMILL, arguments, fresh_home, median, promptmill, show, worker

from storage.records import JobStatus
from storage.settings import Settings
from storage.stores import open_job_store

PROMPTS = 200  # of the list that is rendered
IMAGES = 500  # of each prompt: more than can be rendered meanwhile
WARM = 5.0  # seconds before anything is counted


@dataclass(kw_only=True)
class Heard:
    """What the clients got."""

    seconds: list[float] = field(default_factory=list)
    events: int = 0
    errors: list[str] = field(default_factory=list)


def on_core(core: int) -> None:
    """Put this process, and those that it starts from now on, on one core."""
    os.sched_setaffinity(0, {core})


@contextmanager
def server(environment: dict[str, str]) -> Iterator[str]:
    """Keep a server running meanwhile; yield its address."""
    with tempfile.NamedTemporaryFile() as said:
        command = [PROMPTMILL, "web", "--port", "0"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not (found := re.search(r"http://\S+", Path(said.name).read_text())):
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            yield found[0]
        finally:
            process.terminate()
            process.wait()


async def watch(client: aiohttp.ClientSession, path: str, heard: Heard) -> None:
    """Follow progress as a page does, until cancelled."""
    async with client.get(path) as answer:
        if answer.status != 200:  # noqa: PLR2004  (a status of HTTP)
            heard.errors.append(f"{path}: {answer.status}")
        async for line in answer.content:
            heard.events += line.startswith(b"event: status")
    heard.errors.append(f"{path}: ended")


async def ask(client: aiohttp.ClientSession, path: str, heard: Heard) -> None:
    """Ask once."""
    began = time.perf_counter()
    async with client.get(path) as answer:
        await answer.read()
        if answer.status != 200:  # noqa: PLR2004  (likewise)
            heard.errors.append(f"{path}: {answer.status}")
    heard.seconds.append(time.perf_counter() - began)


async def visit(url: str, submission: str, *, watchers: int, rate: float, seconds: float) -> Heard:
    """Let so many follow a submission, and requests come at an even rate, answered or not."""
    heard = Heard()
    page = f"/submissions/{submission}"
    paths = itertools.cycle(
        ["/", page, f"{page}/jobs/0", f"{page}/jobs/1/thumbnail", f"{page}/jobs/2/picture",
         f"/api/v1{page}", f"/api/v1{page}/jobs?limit=20", "/workers"]
    )  # fmt: skip
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as client, asyncio.TaskGroup() as tasks:
        following = [
            tasks.create_task(watch(client, f"/live?part=head&id={submission}", heard))
            for _ in range(watchers)
        ]
        began = time.perf_counter()
        for number in itertools.count():
            at = began + number / rate
            if at - began >= seconds:
                break
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.create_task(ask(client, next(paths), heard))
        for one in following:
            one.cancel()
    return heard


def rendered(environment: dict[str, str], submission: str) -> int:
    """How many pictures there are."""
    store = open_job_store(Settings(home=Path(environment["PROMPTMILL_HOME"])))
    try:
        return store.counts(submission)[JobStatus.SUCCEEDED]
    finally:
        store.close()


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    seconds = 15.0 if options.quick else 60.0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004  (one for each side)
        sys.exit("this takes two cores")
    rows: list[dict[str, Any]] = []
    with fresh_home() as environment:
        environment["OMP_NUM_THREADS"] = "1"
        on_core(cores[0])
        with worker(environment, "--lanes", "2"):
            on_core(cores[1])
            prompts = "".join(f"A watercolor painting of an otter, {n}\n" for n in range(PROMPTS))
            words = (
                "submit",
                "-",
                "--model",
                "demo",
                "--size",
                "64x64",
                "--steps",
                "8",
                "--images",
                str(IMAGES),
            )
            submission = promptmill(environment, *words, given=prompts)
            while rendered(environment, submission) < 10:  # noqa: PLR2004  (some pictures to look at)
                time.sleep(0.5)
            time.sleep(WARM)

            def pace(during: Any) -> float:
                before, began = rendered(environment, submission), time.perf_counter()
                during()
                return (rendered(environment, submission) - before) / (time.perf_counter() - began)

            alone = [pace(lambda: time.sleep(seconds))]
            heard = Heard()
            with server(environment) as url:

                def visited() -> None:
                    nonlocal heard
                    heard = asyncio.run(visit(url, submission, watchers=50, rate=50.0, seconds=seconds))

                beside = pace(visited)
            alone.append(pace(lambda: time.sleep(seconds)))
    usual = sum(alone) / 2
    slowest = sorted(heard.seconds)[int(0.99 * len(heard.seconds))]
    rows += [
        {"what": "images/s without clients, before", "value": alone[0]},
        {"what": "images/s with 50 watchers and 50 requests/s", "value": beside},
        {"what": "images/s without clients, after", "value": alone[1]},
        {"what": "slower by, %", "value": 100 * (1 - beside / usual)},
        {"what": "requests answered", "value": len(heard.seconds)},
        {"what": "median, s", "value": median(heard.seconds)},
        {"what": "99 of 100 within, s", "value": slowest},
        {"what": "events heard", "value": heard.events},
        {"what": "errors", "value": len(heard.errors)},
    ]
    for error in heard.errors[:5]:
        print(error, file=sys.stderr)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
