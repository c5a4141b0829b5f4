"""`make chaos RUNS=50 JOBS=200`: many runs, a table that grows, and one JSON object at the end."""

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
from multiprocessing.connection import wait
from pathlib import Path

from tests.chaos.bounded import NO_SOCKETS, BoundedRun, Told
from tests.chaos.plan import Plan, make_plan
from tests.chaos.posts import Posts
from tests.chaos.run import Run, go, make_waves
from tests.chaos.tiny import make_tiny_model
from tests.chaos.verdict import Verdict, judge, repair
from tests.chaos.world import Servers, open_world
from tests.servers import running_postgres, running_s3

LEASE = 8.0  # seconds; on a busy machine hearts miss beats, and who is only slow must not be expired
LIMIT = 1200.0  # seconds of a run; on two slow cores one of 200 jobs takes two minutes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run, told."""

    run: Run
    verdict: Verdict
    seconds: float


def run_once(
    plan: Plan,
    servers: Servers,
    *,
    jobs: int,
    lease: float,
    references: dict[str, str],
    keep: Path | None = None,
    folder: Path | None = None,
    mounts: bool = True,
) -> Outcome:
    """Make a farm, let a plan happen to it, and judge what is left.

    Args:
        plan: what happens.
        servers: what runs share.
        jobs: how many.
        lease: seconds.
        references: hashes of pictures of earlier runs, by prompt; new ones are added.
        keep: where to copy the farm's folder if something goes wrong.
        folder: where the farm's folder is made.
        mounts: whether a disk that can be filled may be mounted.
    """
    began = time.monotonic()
    with open_world(plan, servers, lease=lease, folder=folder, mounts=mounts) as world:
        verdict = Verdict(jobs=jobs)
        try:
            waves, dice = make_waves(plan, jobs), random.Random(plan.seed)
            run = Run(plan=plan, world=world, waves=waves, posts=Posts(world), dice=dice)
            go(run)
            codes = run.posts.stop()
            verdict = judge(run, references)
            verdict.wrong += [f"stuck {run.stuck}"] if run.stuck else []
            verdict.wrong += [f"worker {name} ended with {code}" for name, code in codes.items() if code]
            repair(run, verdict)
            if world.farm.processes():
                verdict.wrong.append(f"processes are left: {world.farm.processes()}")
        except BaseException as error:  # also an interrupt: the farm is kept, with what ended it
            verdict.wrong.append(repr(error))
            raise
        finally:
            if keep is not None and not verdict.good:
                shutil.copytree(world.farm.home.parent, keep / f"seed-{plan.seed}", ignore=NO_SOCKETS)
    return Outcome(run=run, verdict=verdict, seconds=time.monotonic() - began)


def told(outcome: Outcome, references: dict[str, str]) -> Told:
    """Say what a run has come to, and which pictures it made."""
    verdict = outcome.verdict
    return Told(
        plan=outcome.run.plan, jobs=verdict.jobs, seconds=outcome.seconds, injected=len(outcome.run.injected),
        left_out=len(outcome.run.left_out), attempts=verdict.attempts, leftovers=verdict.leftovers,
        recovered=outcome.run.recovered, outlived=outcome.run.outlived, lost=verdict.lost,
        duplicated=verdict.duplicated, wrong=verdict.wrong, references=references,
    )  # fmt: skip


COLUMNS = {
    "SEED": 5, "FARM": 16, "FAULTS": 6, "LEFT": 4, "ATTEMPTS": 8, "RECOVERY": 9, "FREEZE": 9, "LOST": 4,
    "TWICE": 5, "WRONG": 5, "FILES": 5, "s": 5,
}  # fmt: skip


def line(*cells: object) -> str:
    """Write a line of the table; times are `median/worst` in seconds, FILES are those without a row."""
    return "  ".join(str(cell).rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))


def spread(times: list[float]) -> str:
    """Write median and worst of some seconds."""
    return f"{statistics.median(times):.1f}/{max(times):.1f}" if times else "-"


def row(one: Told) -> str:
    """Write a run as a line of the table."""
    return line(
        one.plan.seed,
        f"{one.plan.database}+{one.plan.pictures}",
        one.injected,
        one.left_out,
        f"{one.attempts / one.jobs:.2f}",
        spread(one.recovered),
        spread(one.outlived),
        *(len(one.lost), len(one.duplicated), len(one.wrong), one.leftovers),
        round(one.seconds),
    )


def announce(plan: Plan) -> None:
    """Say what is going to happen."""
    for planned in plan.faults:
        sys.stderr.write(f"seed {plan.seed}: at {planned.share:.2f} {planned.fault}\n")
    sys.stderr.write(f"seed {plan.seed}: jobs that misbehave: {', '.join(plan.markers)}\n")


@dataclass(kw_only=True)
class Tally:
    """What all runs have come to so far."""

    runs: int = 0
    jobs: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    recovered: list[float] = field(default_factory=list)
    outlived: list[float] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)

    def add(self, one: Told) -> None:
        """Count a run, hold its pictures against those of the others, and show it."""
        for prompt, digest in one.references.items():
            if self.references.setdefault(prompt, digest) != digest:
                one.wrong.append(f"{prompt}: other bytes than in another run")
        self.runs, self.jobs = self.runs + 1, self.jobs + one.jobs
        self.recovered += one.recovered
        self.outlived += one.outlived
        for what in ("lost", "duplicated", "wrong"):
            sentences = getattr(one, what)
            setattr(self, what, getattr(self, what) + len(sentences))
            sys.stderr.writelines(f"seed {one.plan.seed}: {what}: {sentence}\n" for sentence in sentences)
        sys.stdout.write(row(one) + "\n")
        sys.stdout.flush()

    def close(self) -> int:
        """Say what it has all come to; return the exit code."""
        facts = {what: getattr(self, what) for what in ("runs", "jobs", "lost", "duplicated", "wrong")}
        for what, times in (("recovered", self.recovered), ("outlived", self.outlived)):
            if times:
                facts |= {
                    f"{what}_median": round(statistics.median(times), 1),
                    f"{what}_worst": round(max(times), 1),
                }
        sys.stdout.write(json.dumps(facts) + "\n")
        return int(bool(self.lost or self.duplicated or self.wrong))


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--first", "--seed", type=int, default=0, help="seed; those of the others count on")
    parser.add_argument("--database", choices=("sqlite", "postgres"))
    parser.add_argument("--faults", type=int, default=8, help="of a run, from outside")
    parser.add_argument("--only", metavar="TEXT", help="only faults in whose name this occurs")
    parser.add_argument("--markers", type=int, default=2, help="kinds of jobs that misbehave, of a run")
    parser.add_argument("--lease", type=float, default=LEASE)
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="of a run")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs side by side")
    parser.add_argument("--no-mount", action="store_true", help="a full disk is a limit of file sizes")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where to keep homes of runs that went wrong"
    )
    return parser.parse_args(words)


@contextlib.contextmanager
def started_servers(count: int) -> Iterator[list[Servers]]:
    """Start the servers of so many runs side by side: a PostgreSQL that restarts is no other run's fault."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        model = make_tiny_model(folder / "tiny")
        yield [
            Servers(
                postgres=stack.enter_context(running_postgres(folder / f"pg{number}")),
                s3=stack.enter_context(running_s3()),
                model=model,
            )
            for number in range(count)
        ]


def begin(seed: int, servers: Servers, asked: argparse.Namespace) -> BoundedRun:
    """Start the run of a seed."""
    plan = make_plan(
        seed, database=asked.database, faults=asked.faults, markers=asked.markers, only=asked.only
    )
    announce(plan)

    def run(folder: Path) -> Told:
        references: dict[str, str] = {}
        outcome = run_once(
            plan, servers, jobs=asked.jobs, lease=asked.lease, references=references, keep=asked.keep,
            folder=folder, mounts=not asked.no_mount,
        )  # fmt: skip
        return told(outcome, references)

    return BoundedRun(plan, asked.jobs, run, limit=asked.limit, keep=asked.keep)


def main(words: list[str]) -> int:
    """Run the harness as it was asked to; exit code 1 when something was lost, twice or wrong."""
    asked = parse(words)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it was started in the background
        signal.signal(number, signal.default_int_handler)
    tally = Tally()
    seeds = iter(range(asked.first, asked.first + asked.runs))
    with started_servers(min(asked.at_once, asked.runs)) as servers:
        going: dict[int, BoundedRun] = {}
        sys.stdout.write(line(*COLUMNS) + "\n")
        sys.stdout.flush()
        try:
            while True:
                for place in range(len(servers)):
                    if place not in going and (seed := next(seeds, None)) is not None:
                        going[place] = begin(seed, servers[place], asked)
                if not going:
                    break
                wait([one.answer for one in going.values()], timeout=min(one.left for one in going.values()))
                for place in [place for place, one in going.items() if one.answer.poll() or not one.left]:
                    tally.add(going.pop(place).result())
        finally:
            for one in going.values():
                one.end()
            code = tally.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
