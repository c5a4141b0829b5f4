"""What all benchmarks share: the arguments, the table, the JSON line, a home with a worker."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTMILL = str(Path(sys.executable).parent / "promptmill")


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark understands."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer runs: under a minute on two cores")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    return parser


def show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows as a table, and as one JSON object after it if wanted."""
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[number]) for line in [columns, *cells]) for number in range(len(columns))]
    for line in [columns, *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    if as_json:
        print(json.dumps({"rows": rows}))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def seconds(action: Callable[[], Any]) -> float:
    """Return how long `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    """Return the middle value; of two, what is between them."""
    return statistics.median(values)


@contextmanager
def fresh_home() -> Iterator[dict[str, str]]:
    """Yield an environment whose promptmill home is new and goes away."""
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
        yield {**clean, "PROMPTMILL_HOME": f"{folder}/home"}


def promptmill(environment: dict[str, str], *words: str, given: str | None = None) -> str:
    """Run a command to its end and return its stdout; the benchmark stops if it fails."""
    done = subprocess.run(
        [PROMPTMILL, *words], env=environment, input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"promptmill {' '.join(words)} failed: {done.stderr}")
    return done.stdout.strip()


@contextmanager
def worker(
    environment: dict[str, str], *options: str, model: str = "demo", log: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a worker for a model running meanwhile, ready from the start; `log` is a file for what it says."""
    process = subprocess.Popen(
        [PROMPTMILL, "worker", "start", "--model", model, *options],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
    )  # fmt: skip
    try:
        while not any(row["state"] == "ready" for row in workers(environment)):
            if process.poll() is not None:
                sys.exit("the worker did not start")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.terminate()
        process.wait()


def workers(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Return what `worker list --json` says."""
    rows: list[dict[str, Any]] = json.loads(promptmill(environment, "worker", "list", "--json"))["workers"]
    return rows
