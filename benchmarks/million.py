"""A million lines: how long `submit` takes to its last commit, what it holds, and whom it keeps waiting.

Beside each submit another process' worker writes a heartbeat twenty times a second; its longest wait is what
the farm feels. The rival is a script that pushes the same lines to a Redis list, 1,000 at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from report import PROMPTMILL, arguments, seconds, show

from storage.database import upgrade
from storage.settings import Settings
from storage.stores import open_job_store
from tests.records import worker_record
from tests.servers import running_postgres, running_redis

PUSH = """
import sys, redis
client = redis.Redis.from_url(sys.argv[2])
batch = []
for line in open(sys.argv[1], encoding="utf-8"):
    batch.append(line.strip())
    if len(batch) == 1000:
        client.rpush("jobs", *batch)
        batch = []
if batch:
    client.rpush("jobs", *batch)
"""


class Waiting:
    """Writes heartbeats until told to stop, and remembers the longest one."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_job_store(settings)
        self._incarnation = uuid.uuid4().hex
        self._store.add_worker(worker_record(self._incarnation))
        self._over = threading.Event()
        self.longest = 0.0
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(0.05):
            self.longest = max(self.longest, seconds(lambda: self._store.heartbeat(self._incarnation, {})))

    def stop(self) -> float:
        """Return the longest wait."""
        self._over.set()
        self._thread.join()
        self._store.close()
        return self.longest


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Run a command; return its seconds, the most MB that it held, and what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:2]} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, printed.strip()


def submitted(name: str, settings: Settings, environment: dict[str, str], file: Path) -> dict[str, Any]:
    """Submit the file once and look at it."""
    upgrade(settings)
    waiting = Waiting(settings)
    taken, held, submission = measured(
        [PROMPTMILL, "submit", str(file), "--model", "demo", "--again"], environment
    )
    longest = waiting.stop()
    store = open_job_store(settings)
    query = min(seconds(lambda: store.status(submission, lease=30.0)) for _ in range(5))
    store.close()
    command = min(measured([PROMPTMILL, "status", submission], environment)[0] for _ in range(5))
    return {
        "into": name,
        "s": taken,
        "MB": held,
        "longest other write s": longest,
        "status query s": query,
        "status command s": command,
    }


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    lines = 50_000 if options.quick else 1_000_000
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        file = folder / "prompts.txt"
        with file.open("w", encoding="utf-8") as prompts:
            prompts.writelines(
                f"a watercolor painting of an otter, number {number}, on a teal background\n"
                for number in range(lines)
            )
        server = stack.enter_context(running_postgres(folder / "pg", durable=True))
        rows = []
        for name, url in (("SQLite", None), ("PostgreSQL", server.make_database("million"))):
            home = folder / name
            home.mkdir()
            environment = {**clean, "PROMPTMILL_HOME": str(home)}
            if url:
                environment["PROMPTMILL_DATABASE_URL"] = url
            rows.append(submitted(name, Settings(home=home, database_url=url), environment, file))
        redis = stack.enter_context(running_redis(folder))
        taken, held, _ = measured([sys.executable, "-c", PUSH, str(file), redis.url], clean)
        rows.append({**dict.fromkeys(rows[0], ""), "into": "a Redis list (rival)", "s": taken, "MB": held})
        for row in rows:
            row["of the rival's time"] = row["s"] / taken
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
