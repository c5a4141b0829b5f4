"""`make chaos RUNS=50 JOBS=200`: many runs, a table, and one JSON object at the end."""

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
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.plan import Plan, make_plan
from tests.chaos.posts import Posts
from tests.chaos.run import Run, go, make_waves
from tests.chaos.tiny import make_tiny_model
from tests.chaos.verdict import Verdict, judge, repair
from tests.chaos.world import Servers, open_world
from tests.servers import running_postgres, running_s3

LEASE = 8.0  # seconds; on a busy machine hearts miss beats, and who is only slow must not be expired


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
) -> Outcome:
    """Make a farm, let a plan happen to it, and judge what is left.

    Args:
        plan: what happens.
        servers: what runs share.
        jobs: how many.
        lease: seconds.
        references: hashes of pictures of earlier runs, by prompt.
        keep: where to copy the farm's folder if something goes wrong.
    """
    began = time.monotonic()
    with open_world(plan, servers, lease=lease) as world:
        verdict = Verdict(jobs=jobs)
        try:
            waves, dice = make_waves(plan, jobs), random.Random(plan.seed)
            run = Run(plan=plan, world=world, waves=waves, posts=Posts(world), dice=dice)
            go(run)
            codes = run.posts.stop()
            verdict = judge(run, references)
            verdict.wrong += [f"worker {name} ended with {code}" for name, code in codes.items() if code]
            repair(run, verdict)
            if world.farm.processes():
                verdict.wrong.append(f"processes are left: {world.farm.processes()}")
        except BaseException as error:  # also an interrupt: the farm is kept, with what ended it
            verdict.wrong.append(repr(error))
            raise
        finally:
            if keep is not None and not verdict.good:
                sockets = shutil.ignore_patterns("*.sock", "pg")
                shutil.copytree(world.farm.home.parent, keep / f"seed-{plan.seed}", ignore=sockets)
    return Outcome(run=run, verdict=verdict, seconds=time.monotonic() - began)


COLUMNS = {
    "SEED": 5, "FARM": 16, "FAULTS": 6, "LEFT": 4, "ATTEMPTS": 8, "RECOVERY": 9, "LOST": 4, "TWICE": 5,
    "WRONG": 5, "FILES": 5, "s": 5,
}  # fmt: skip


def line(*cells: object) -> str:
    """Write a line of the table; recovery is `median/worst` in seconds, FILES are those without a row."""
    return "  ".join(str(cell).rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))


def tell(outcome: Outcome) -> str:
    """Write a run as a line of the table."""
    run, verdict = outcome.run, outcome.verdict
    times = run.recovered
    return line(
        run.plan.seed,
        f"{run.plan.database}+{run.plan.pictures}",
        len(run.injected),
        len(run.left_out),
        f"{verdict.attempts / verdict.jobs:.2f}",
        f"{statistics.median(times):.1f}/{max(times):.1f}" if times else "-",
        *(len(verdict.lost), len(verdict.duplicated), len(verdict.wrong), verdict.leftovers),
        round(outcome.seconds),
    )


def announce(plan: Plan) -> None:
    """Say what is going to happen."""
    for planned in plan.faults:
        sys.stderr.write(f"seed {plan.seed}: at {planned.share:.2f} {planned.fault}\n")
    sys.stderr.write(f"seed {plan.seed}: jobs that misbehave: {', '.join(plan.markers)}\n")


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count on")
    parser.add_argument("--database", choices=("sqlite", "postgres"))
    parser.add_argument("--faults", type=int, default=8, help="of a run, from outside")
    parser.add_argument("--markers", type=int, default=2, help="kinds of jobs that misbehave, of a run")
    parser.add_argument("--lease", type=float, default=LEASE)
    parser.add_argument("--keep", type=Path, help="where to keep the home of a run that went wrong")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the harness as it was asked to; exit code 1 when something was lost, twice or wrong."""
    asked = parse(words)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it was started in the background
        signal.signal(number, signal.default_int_handler)
    totals = {"runs": 0, "jobs": 0, "lost": 0, "duplicated": 0, "wrong": 0}
    references: dict[str, str] = {}
    recovered: list[float] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        servers = Servers(
            postgres=stack.enter_context(running_postgres(folder / "pg")),
            s3=stack.enter_context(running_s3()),
            model=make_tiny_model(folder / "tiny"),
        )
        sys.stdout.write(line(*COLUMNS) + "\n")
        for seed in range(asked.seed, asked.seed + asked.runs):
            plan = make_plan(seed, database=asked.database, faults=asked.faults, markers=asked.markers)
            announce(plan)
            outcome = run_once(
                plan, servers, jobs=asked.jobs, lease=asked.lease, references=references, keep=asked.keep
            )
            sys.stdout.write(tell(outcome) + "\n")
            sys.stdout.flush()
            totals["runs"] += 1
            totals["jobs"] += outcome.verdict.jobs
            for what in ("lost", "duplicated", "wrong"):
                sentences = getattr(outcome.verdict, what)
                totals[what] += len(sentences)
                sys.stderr.writelines(f"seed {seed}: {what}: {sentence}\n" for sentence in sentences)
            recovered += outcome.run.recovered
    if recovered:
        median, worst = statistics.median(recovered), max(recovered)
        sys.stderr.write(f"recovery: median {median:.1f} s, worst {worst:.1f} s\n")
    sys.stdout.write(json.dumps(totals) + "\n")
    return int(bool(totals["lost"] or totals["duplicated"] or totals["wrong"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
