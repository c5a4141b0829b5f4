"""What a supervisor and its worker process say to each other.

Down the child's standard input: `drain`, `stop` or `metrics`, one a line; its end means that the supervisor
is gone. Up the child's standard output: one JSON object a line, `{"event": …}`: `listening`, `ready`,
`retiring`, `metrics` or `failed`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

from storage.worker_options import WorkerOptions, read_options

DRAIN, STOP, METRICS = "drain", "stop", "metrics"
# Read when torch is loaded; what the user has set stands.
ENVIRONMENT = {
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",  # mps falls back to the CPU for what it lacks
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same sums in the same order on every run
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning costs 20 times the speed beside other work (decision 0003)
}
_reporting = threading.Lock()  # lines of several threads must not be mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildOrder:
    """What a supervisor tells a new worker process on its command line.

    Attributes:
        options: what the user asked for.
        device: auto, cpu, mps or cuda.
        incarnation: the id of this life, drawn by the supervisor so that it can release its jobs.
        name: the worker's name, `MODEL-N@HOST`.
    """

    options: WorkerOptions
    device: str
    incarnation: str
    name: str

    def command(self) -> list[str]:
        """Return the command line that starts this worker process."""
        # -P: a folder `worker` where the user stands must not be taken for ours.
        return [sys.executable, "-P", "-m", "worker.child", json.dumps(dataclasses.asdict(self))]


def parse_order(text: str) -> ChildOrder:
    """Read back what `ChildOrder.command` wrote."""
    values: dict[str, Any] = json.loads(text)
    return ChildOrder(**{**values, "options": read_options(values["options"])})


def report(event: str, **facts: Any) -> None:
    """Write one event line to whoever started this process; nothing happens if nobody reads any more."""
    line = json.dumps({"event": event, **facts}) + "\n"
    try:
        with _reporting:
            sys.stdout.write(line)
            sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass


def read_event(line: str) -> dict[str, Any] | None:
    """Read what `report` has written; None for whatever else a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
