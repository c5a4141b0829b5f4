"""`make chaos RUNS=50 JOBS=200`: many runs, a table, and one JSON object at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
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

LEASE = 5.0  # seconds


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
    """Make a farm, let a plan happen to it, and judge what is left."""
    began = time.monotonic()
    with open_world(plan, servers, lease=lease) as world:
        run = Run(
            plan=plan, world=world, waves=make_waves(plan, jobs), posts=Posts(world), dice=random.Random(plan.seed)
        )  # fmt: skip
        try:
            go(run)
            codes = run.posts.stop()
            verdict = judge(run, references)
            verdict.wrong += [f"{name} ended with {code}" for name, code in codes.items() if code]
            repair(run, verdict)
            if world.farm.processes():
                verdict.wrong.append(f"processes are left: {world.farm.processes()}")
            if keep is not None and not verdict.good:
                shutil.copytree(
                    world.farm.home.parent,
                    keep / f"seed-{plan.seed}",
                    ignore=shutil.ignore_patterns("*.sock", ".s.*", "pg"),
                )
        except BaseException:
            if keep is not None:
                shutil.copytree(
                    world.farm.home.parent,
                    keep / f"seed-{plan.seed}",
                    ignore=shutil.ignore_patterns("*.sock", ".s.*", "pg"),
                )
            raise
    return Outcome(run=run, verdict=verdict, seconds=time.monotonic() - began)


def tell(outcome: Outcome) -> str:
    """Write a run as a row of the table."""
    run, verdict = outcome.run, outcome.verdict
    recovered = run.recovered
    median = f"{statistics.median(recovered):.1f}/{max(recovered):.1f}" if recovered else "-"
    kind = f"{run.plan.database}+{run.plan.pictures}"
    return (
        f"{run.plan.seed:>5}  {kind:<15} {len(run.injected):>6} {len(run.left_out):>4} "
        f"{verdict.attempts / verdict.jobs:>8.2f}  {median:>11} {len(verdict.lost):>5} {len(verdict.duplicated):>5} "
        f"{len(verdict.wrong):>5} {verdict.leftovers:>5} {outcome.seconds:>6.0f}"
    )


HEAD = (
    f"{'SEED':>5}  {'FARM':<15} {'FAULTS':>6} {'LEFT':>4} {'ATTEMPTS':>8}  {'RECOVERY s':>11} {'LOST':>5} {'TWICE':>5} "
    f"{'WRONG':>5} {'FILES':>5} {'s':>6}"
)


def main(words: list[str]) -> int:
    """Run the harness as it was asked to; exit code 1 when something was lost, twice or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count on")
    parser.add_argument("--database", choices=("sqlite", "postgres"))
    parser.add_argument("--faults", type=int, default=8)
    parser.add_argument("--markers", type=int, default=2)
    parser.add_argument("--lease", type=float, default=LEASE)
    parser.add_argument("--keep", type=Path, help="where to keep the home of a run that went wrong")
    asked = parser.parse_args(words)
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
        print(HEAD, flush=True)  # noqa: T201 - a table is what it is for
        for seed in range(asked.seed, asked.seed + asked.runs):
            plan = make_plan(seed, database=asked.database, faults=asked.faults, markers=asked.markers)
            for planned in plan.faults:
                sys.stderr.write(f"seed {seed}: at {planned.share:.2f} {planned.fault}\n")
            sys.stderr.write(f"seed {seed}: jobs that misbehave: {', '.join(plan.markers)}\n")
            outcome = run_once(
                plan, servers, jobs=asked.jobs, lease=asked.lease, references=references, keep=asked.keep
            )
            verdict = outcome.verdict
            print(tell(outcome), flush=True)  # noqa: T201 - likewise
            for what, sentences in (
                ("lost", verdict.lost),
                ("duplicated", verdict.duplicated),
                ("wrong", verdict.wrong),
            ):
                for sentence in sentences:
                    sys.stderr.write(f"seed {seed}: {what}: {sentence}\n")
                totals[what] += len(sentences)
            totals["runs"] += 1
            totals["jobs"] += verdict.jobs
            recovered += outcome.run.recovered
    if recovered:
        sys.stderr.write(
            f"recovery: median {statistics.median(recovered):.1f} s, worst {max(recovered):.1f} s\n"
        )
    print(json.dumps(totals), flush=True)  # noqa: T201 - the last line is for programs
    return int(bool(totals["lost"] or totals["duplicated"] or totals["wrong"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
