"""How long it takes until a cancel has stopped everything, and until a killed part works again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from report import PROMPTMILL, arguments, fresh_home, promptmill, show, worker, workers

LONG = ("--size", "64x64", "--steps", "1000", "--sampler", "euler")
SHORT = ("--size", "64x64", "--steps", "8", "--schedule", "karras")


def main() -> None:
    """Measure a cancel, a killed worker process and a killed Redis, each under load."""
    options = arguments(main.__doc__ or "").parse_args()
    runs = 1 if options.quick else 3
    with fresh_home() as environment, worker(environment):
        cancels = [_cancel(environment) for _ in range(runs)]
        killed_worker, killed_redis = _kill_worker(environment), _kill_redis(environment)
    rows = [{"what": "cancel until no job runs", "seconds": seconds} for seconds in cancels]
    rows.append({"what": "kill -9 the worker process until the next picture", "seconds": killed_worker})
    rows.append({"what": "kill -9 Redis until the next picture", "seconds": killed_redis})
    show(rows, as_json=options.json)


def _counts(environment: dict[str, str], submission: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(promptmill(environment, "status", submission, "--json"))[
        "submission"
    ]["counts"]
    return counts


def _submit(environment: dict[str, str], jobs: int, *options: str) -> str:
    prompts = "".join(f"an otter, number {number}\n" for number in range(jobs))
    return promptmill(environment, "submit", "-", "--model", "demo", *options, given=prompts)


def _cancel(environment: dict[str, str]) -> float:
    submission = _submit(environment, 40, *LONG)
    while not _counts(environment, submission)["running"]:
        time.sleep(0.1)
    time.sleep(2)  # well inside the loop
    began = time.perf_counter()
    cancel = subprocess.Popen([PROMPTMILL, "cancel", submission], env=environment, stderr=subprocess.DEVNULL)
    while _counts(environment, submission)["cancelled"] < 40:  # noqa: PLR2004  (all of them)
        time.sleep(0.05)
    cancel.wait()
    return time.perf_counter() - began


def _next_picture(environment: dict[str, str], submission: str) -> float:
    done = _counts(environment, submission)["succeeded"]
    began = time.perf_counter()
    while _counts(environment, submission)["succeeded"] <= done:
        time.sleep(0.05)
    return time.perf_counter() - began


def _kill_worker(environment: dict[str, str]) -> float:
    submission = _submit(environment, 200, *SHORT)
    while not _counts(environment, submission)["succeeded"]:
        time.sleep(0.1)
    os.kill(next(row["pid"] for row in workers(environment) if row["state"] == "ready"), signal.SIGKILL)
    time.sleep(0.5)  # what was being saved is saved
    seconds = _next_picture(environment, submission)
    promptmill(environment, "cancel", submission)
    return seconds + 0.5


def _kill_redis(environment: dict[str, str]) -> float:
    submission = _submit(environment, 200, *SHORT)
    while not _counts(environment, submission)["succeeded"]:
        time.sleep(0.1)
    home = environment["PROMPTMILL_HOME"].encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            command = (folder / "cmdline").read_bytes()
            if b"redis-server" in command and home in command:
                os.kill(int(folder.name), signal.SIGKILL)
    while _counts(environment, submission)["running"]:  # what was claimed needs no Redis
        time.sleep(0.05)
    seconds = _next_picture(environment, submission)
    promptmill(environment, "cancel", submission)
    return seconds


main()
