"""`make soak MINUTES=480 JOBS=20000`: a long run, a fault every minute, and what every process holds.

Two workers render as many jobs as MINUTES allow, JOBS at most. Worker `one` is never killed or frozen, so
that its memory can be followed from start to end; `two` and all that is between them is fair game. What a
process holds are its anonymous pages: those of files, which it shares with others, change as the others come
and go. Its growth is the slope of a line through what it held once it was warm. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import UnreachableError
from storage.records import UNFINISHED
from tests.acceptance.farm import Farm
from tests.chaos.bounded import NO_SOCKETS
from tests.chaos.plan import Fault, Plan
from tests.chaos.posts import Posts
from tests.chaos.run import Run, check_that_they_hit, do_later, inject, make_waves, watch
from tests.chaos.tiny import make_tiny_model
from tests.chaos.verdict import Verdict, judge, repair
from tests.chaos.world import Servers, World, open_world
from tests.servers import running_postgres, running_s3

LEASE = 8.0  # seconds, as in other runs
WAVE, LOW = 400, 120  # jobs that are submitted at once, and how few are left when the next ones are
LOOK, SAMPLE = 0.5, 5.0  # seconds
WARM = 120.0  # seconds of a process' life that count as its warm-up
LONG = 60.0  # seconds after that, below which a slope says nothing
PICTURE = 20_000  # bytes of the disk, at most
STUCK = 600.0  # seconds without a job that ends
FAULTS = {
    "sqlite": (
        Fault.KILL_WORKER, Fault.REDIS_EMPTY, Fault.HALF_FILES, Fault.FREEZE_WORKER, Fault.DISK_FULL,
        Fault.KILL_SUPERVISOR, Fault.REDIS_CLIENTS, Fault.KILL_STARTING, Fault.KILL_SUBMIT, Fault.CLOCK_JUMP,
    ),
    "postgres": (
        Fault.KILL_WORKER, Fault.REDIS_EMPTY, Fault.POSTGRES_TERMINATE, Fault.FREEZE_WORKER,
        Fault.COMMIT_REPLY, Fault.KILL_SUPERVISOR, Fault.REDIS_CLIENTS, Fault.POSTGRES_RESTART,
        Fault.S3_ERRORS, Fault.KILL_SUBMIT,
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class Life:
    """What one process has held at moments in seconds: MB of its own, its share in MB, open files."""

    role: str
    pid: int
    moments: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """Say how it grew; the slope is None where it did not live for long enough."""
        warm = [n for n, moment in enumerate(self.moments) if moment - self.moments[0] >= WARM]
        slope = None
        if warm and self.moments[-1] - self.moments[warm[0]] >= LONG:
            at, held = [self.moments[n] / 3600 for n in warm], [self.held[n] for n in warm]
            slope = round(statistics.linear_regression(at, held).slope, 2)
        return {
            "process": self.role,
            "pid": self.pid,
            "minutes": round((self.moments[-1] - self.moments[0]) / 60, 1),
            "mb_when_warm": round(self.held[warm[0] if warm else 0], 1),
            "mb_at_the_end": round(self.held[-1], 1),
            "mb_at_most": round(max(self.held), 1),
            "pss_mb_at_most": round(max(self.shares), 1),
            "mb_per_hour": slope,
            "files_when_warm": self.files[warm[0] if warm else 0],
            "files_at_the_end": self.files[-1],
        }


class Watcher:
    """Looks at every process of a farm now and then."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._next = 0.0
        self.lives: dict[int, Life] = {}

    def look(self) -> None:
        """Note what every process holds, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SAMPLE
        names = {worker.pid: worker.name for worker in self._farm.workers()}
        for pid, command in self._farm.processes().items():
            with contextlib.suppress(OSError, ValueError):
                held, share, files = held_by(pid)
                life = self.lives.setdefault(pid, Life(role=role_of(pid, command, names), pid=pid))
                life.role = life.role if pid not in names else f"worker process {names[pid]}"
                life.moments.append(now)
                life.held.append(held)
                life.shares.append(share)
                life.files.append(files)


def held_by(pid: int) -> tuple[float, float, int]:
    """Return the MB of a process' own, those with its share of what others use as well, its open files."""
    facts = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    held, share = (int(facts[name].split()[0]) / 1000 for name in ("Anonymous", "Pss"))
    return held, share, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def role_of(pid: int, command: str, names: dict[int, str]) -> str:
    """Say what a process is for."""
    if pid in names:
        return f"worker process {names[pid]}"
    if "redis-server" in command:
        return "redis-server"
    words = command.split()
    if "worker.child" in command:
        return "worker process"
    return f"supervisor {words[words.index('--name') + 1]}" if "--name" in words else "command"


def soak(run: Run, watcher: Watcher, asked: argparse.Namespace) -> dict[str, int]:
    """Submit, let faults happen, look; until all jobs have ended. Return how often each fault happened."""
    happened: dict[str, int] = {}
    faults = faults_of(run)
    due, fault = time.monotonic() + asked.every, next(faults)
    over, progress, since = time.monotonic() + 60 * asked.minutes, -1, time.monotonic()
    run.posts.keep_waking()
    while True:
        time.sleep(LOOK)
        try:
            run.posts.look()
            watcher.look()
            do_later(run)
            watch(run)
            counts = run.counts()
            left = sum(counts[status] for status in UNFINISHED)
            if time.monotonic() >= over:
                run.waves = [wave for wave in run.waves if wave.submission]
            wave = run.next_wave()
            if time.monotonic() >= due and wave is not None and inject(run, fault):
                happened[fault] = happened.get(fault, 0) + (run.injected[-1:] == [fault])
                due, fault = time.monotonic() + asked.every, next(faults)
                continue
            if wave and left < LOW:
                run.send(wave)
            if wave is None and not left and not run.later:
                check_that_they_hit(run)
                return happened
        except UnreachableError:
            continue  # the harness meets the same outages
        ended = sum(counts.values()) - left
        if ended != progress:
            progress, since = ended, time.monotonic()
        if time.monotonic() - since > STUCK:
            run.say(f"stuck: {counts}")
            return happened


def faults_of(run: Run) -> Iterator[Fault]:
    """Yield faults for ever, each kind as often as the others."""
    while True:
        kinds = list(FAULTS[run.plan.database])
        run.dice.shuffle(kinds)
        yield from kinds


def told(run: Run, verdict: Verdict, watcher: Watcher, happened: dict[str, int]) -> dict[str, Any]:
    """Put together the JSON object of the last line."""
    lives = sorted(watcher.lives.values(), key=lambda life: (life.role, life.moments[0]))
    steady = [one for one in (life.told() for life in lives) if one["mb_per_hour"] is not None]
    return {
        "jobs": verdict.jobs,
        "lost": len(verdict.lost),
        "duplicated": len(verdict.duplicated),
        "wrong": len(verdict.wrong),
        "minutes": round((time.monotonic() - run.began) / 60, 1),
        "attempts": verdict.attempts,
        "files_without_a_row": verdict.leftovers,
        "recovered_median_s": round(statistics.median(run.recovered), 1) if run.recovered else None,
        "recovered_worst_s": round(max(run.recovered), 1) if run.recovered else None,
        "faults": happened,
        "left_out": run.left_out,
        "database_mb": round(run.world.farm.store().compact().before / 1e6, 1),
        "rows_of_workers": len(run.world.farm.store().workers()),
        "processes": len(lives),
        "growth": steady,
    }


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=480.0, help="after which nothing more is submitted")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between two faults")
    parser.add_argument("--database", choices=tuple(FAULTS), default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where to keep the home if something is wrong"
    )
    return parser.parse_args(words)


def one_run(world: World, asked: argparse.Namespace) -> tuple[dict[str, Any], Verdict]:
    """Do it, stop everything, and judge what is left."""
    watcher = Watcher(world.farm)
    waves = make_waves(world.plan, asked.jobs, size=WAVE)
    run = Run(
        plan=world.plan, world=world, waves=waves, posts=Posts(world), dice=random.Random(asked.seed),
        spared=frozenset({"one"}),
    )  # fmt: skip
    happened = soak(run, watcher, asked)
    codes = run.posts.stop()
    verdict = judge(run, {})
    verdict.wrong += [f"worker {name} ended with {code}" for name, code in codes.items() if code]
    repair(run, verdict)
    if asked.keep is not None and not verdict.good:
        shutil.copytree(world.farm.home.parent, asked.keep / f"soak-{asked.seed}", ignore=NO_SOCKETS)
    return told(run, verdict, watcher, happened), verdict


def main(words: list[str]) -> int:
    """Run it as it was asked to; exit code 1 when something was lost, twice or wrong."""
    asked = parse(words)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it was started in the background
        signal.signal(number, signal.default_int_handler)
    pictures = "s3" if asked.database == "postgres" else "folder"
    plan = Plan(seed=asked.seed, database=asked.database, pictures=pictures, faults=(), markers=("raises",))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        servers = Servers(
            postgres=stack.enter_context(running_postgres(folder / "pg")),
            s3=stack.enter_context(running_s3()),
            model=make_tiny_model(folder / "tiny"),
        )
        disk = f"{64 + asked.jobs * PICTURE // 1_000_000}m"
        world = stack.enter_context(open_world(plan, servers, lease=LEASE, disk=disk))
        facts, verdict = one_run(world, asked)
    for what in ("lost", "duplicated", "wrong"):
        sys.stderr.writelines(f"{what}: {sentence}\n" for sentence in getattr(verdict, what))
    sys.stdout.write(json.dumps(facts) + "\n")
    return int(not verdict.good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
