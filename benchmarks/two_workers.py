"""Two workers pinned to one core each, one such worker, and the bare engine: the same jobs.

The bare engine renders in one thread with nothing around it: no command line, no queue, no database, no
files. Pinned, a worker shares the core with all of that; "cores free" is the same thread with the other core
for the rest, as beside a GPU. Two bare engines on a core each say what the machine itself gives for the
second core. Needs `taskset` and two cores with nothing else running.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from report import PROMPTMILL, arguments, fresh_home, median, promptmill, show, workers

STEPS, LANES = 20, 8
NAMES = (
    "the bare engine, one core",
    "two bare engines, one core each",
    "the bare engine, one thread, cores free",
    "one worker, one thread, cores free",
    "one worker, one core",
    "two workers",
)
BARE = """
import sys, time, torch
torch.set_num_threads(1)
from engines import demo_model
from engine_mixed import by_engine
from storage.parameters import JobParameters
from worker.engine.engine import Engine
lanes, count, steps = (int(word) for word in sys.argv[1:])
engine = Engine(demo_model(), lanes=lanes)
jobs = [
    JobParameters(
        prompt=f"a watercolor painting of an otter, number {i}", seed=i, sampler="lms", schedule="karras",
        num_inference_steps=steps, guidance_scale=5.0, width=64, height=64,
    )
    for i in range(count)
]
by_engine(engine, jobs[:lanes])
print(count / by_engine(engine, jobs).seconds)
"""


def bare(environment: dict[str, str], count: int, cores: Sequence[int | None]) -> float:
    """Return the pictures a second of bare engines that render `count` pictures each at the same time."""
    given = [sys.executable, "-c", BARE, str(LANES), str(count), str(STEPS)]
    engines = [
        subprocess.Popen([*taskset(core), *given], env=environment, stdout=subprocess.PIPE, text=True)
        for core in cores
    ]
    outputs = [engine.communicate()[0] for engine in engines]
    if any(engine.returncode for engine in engines):
        sys.exit("a bare engine failed")
    return sum(float(output.split()[-1]) for output in outputs)


@contextmanager
def pinned(environment: dict[str, str], core: int | None) -> Iterator[None]:
    """Keep a worker on one core, or on any, ready from the start."""
    before = len([row for row in workers(environment) if row["state"] == "ready"])
    process = subprocess.Popen(
        [*taskset(core), PROMPTMILL, "worker", "start", "--model", "demo", "--lanes", str(LANES),
         "--name", "free" if core is None else f"core{core}"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while len([row for row in workers(environment) if row["state"] == "ready"]) == before:
            if process.poll() is not None:
                sys.exit("the worker did not start")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def taskset(core: int | None) -> list[str]:
    """Return what keeps a command on one core; nothing for None."""
    return [] if core is None else ["taskset", "-c", str(core)]


def rendered(environment: dict[str, str], count: int) -> float:
    """Return the pictures a second from the start of `submit` to the end of `wait`."""
    prompts = "".join(f"A watercolor painting of an otter, number {job}\n" for job in range(count))
    shared = ("--model", "demo", "--size", "64x64", "--schedule", "karras", "--sampler", "lms")
    own = ("--guidance", "5", "--steps", str(STEPS))
    began = time.perf_counter()
    submission = promptmill(environment, "submit", "-", *shared, *own, given=prompts)
    promptmill(environment, "wait", submission)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    count, rounds = (24, 1) if options.quick else (120, 2)
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    with fresh_home() as environment:
        environment["OMP_NUM_THREADS"] = "1"
        for _ in range(rounds):
            for name, cores in zip(NAMES[:3], ((0,), (0, 1), (None,)), strict=True):
                speeds[name].append(bare(environment, count, cores))
            with pinned(environment, None):
                rendered(environment, LANES)
                speeds[NAMES[3]].append(rendered(environment, count))
            with ExitStack() as stack:
                stack.enter_context(pinned(environment, 0))
                rendered(environment, LANES)
                speeds[NAMES[4]].append(rendered(environment, count))
                stack.enter_context(pinned(environment, 1))
                rendered(environment, 2 * LANES)
                speeds[NAMES[5]].append(rendered(environment, 2 * count))
    one = median(speeds[NAMES[4]])
    rows: list[dict[str, Any]] = [
        {"what": what, "images/s": median(values), "of one worker": median(values) / one}
        for what, values in speeds.items()
    ]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
