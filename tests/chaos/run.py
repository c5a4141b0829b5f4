"""One run: waves of jobs, faults at their moments, and at the end the verdict."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from storage.errors import UnreachableError
from storage.records import UNFINISHED, Job, JobStatus, SubmissionState
from tests.chaos.faults import FAULTS, NotNow
from tests.chaos.plan import Fault, Plan
from tests.chaos.posts import Posts, held_by
from tests.chaos.world import World

WAVE = 40  # jobs that are submitted at once
LOW = 12  # unfinished jobs, below which the next wave comes
LOOK = 0.1  # seconds
OUTAGE = 12.0  # seconds from an outage of Redis until its messages are there again
STUCK = 300.0  # seconds without a job that ends, after which the rest counts as lost; machines can be slow
SETTINGS = [("euler", 6), ("euler_a", 10), ("euler", 14)]


@dataclass(kw_only=True)
class Wave:
    """Some jobs that are submitted together.

    Attributes:
        rows: as in a prompt file; `prompt`, `seed`, `steps`, `sampler`.
        submission: its id once it is known to be complete.
        cancelled: whether a cancel was begun.
    """

    rows: list[dict[str, Any]]
    submission: str = ""
    cancelled: bool = False

    @property
    def text(self) -> str:
        """The prompt file."""
        return "".join(json.dumps(row) + "\n" for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A worker that was taken away, and the jobs that it held."""

    at: float
    held: frozenset[str]
    what: str


@dataclass(kw_only=True)
class Run:
    """What is known of a run while it goes on.

    Attributes:
        excused: labels of jobs that a fault hit while they rendered alone, as suspects: nobody can tell that
            they are innocent, so they may be charged.
        recovered: seconds from each kill to the next picture of the jobs that it hit.
        outlived: likewise, from each freeze: a sleeper has its jobs until its lease is over.
        later: what is to be done at a moment of `time.monotonic`.
        exports: folders by submission.
        resumed: how often a submission had paused by itself, and had to be resumed.
        outages: moments at which Redis was gone, or all workers were.
        spared: names of workers that nobody kills or freezes from outside.
        began: when, on `time.monotonic`.
        stuck: what was to be seen when nothing had moved for long, if that happened.
    """

    plan: Plan
    world: World
    waves: list[Wave]
    posts: Posts
    dice: random.Random
    excused: set[str] = field(default_factory=set)
    blows: list[Blow] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    outlived: list[float] = field(default_factory=list)
    later: list[tuple[float, Callable[[], Any]]] = field(default_factory=list)
    injected: list[Fault] = field(default_factory=list)
    left_out: dict[Fault, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    resumed: int = 0
    outages: list[float] = field(default_factory=list)
    spared: frozenset[str] = frozenset()
    began: float = field(default_factory=time.monotonic)
    stuck: str = ""

    @property
    def submissions(self) -> list[str]:
        """Ids of the waves that are there."""
        return [wave.submission for wave in self.waves if wave.submission]

    def counts(self) -> dict[JobStatus, int]:
        """Count all jobs that are there by status."""
        totals = dict.fromkeys(JobStatus, 0)
        for submission in self.submissions:
            for status, count in self.world.farm.store().counts(submission).items():
                totals[status] += count
        return totals

    def next_wave(self) -> Wave | None:
        """Return the next wave that is not submitted yet."""
        return next((wave for wave in self.waves if not wave.submission), None)

    def submit(self, wave: Wave, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit a wave under a key of its own."""
        key = f"wave-{self.waves.index(wave)}"
        return self.world.farm.run(
            "submit", "-", "--input-format", "jsonl", "--model", "tiny", "--key", key, *options,
            given=wave.text, **environment,
        )  # fmt: skip

    def send(self, wave: Wave) -> None:
        """Submit a wave as a user does who meets faults: again, under the same key, until it is accepted."""
        while True:
            result = self.submit(wave)
            if result.returncode == 0:
                wave.submission = result.stdout.strip()
                return
            assert result.returncode == 3, result.stderr  # only the surroundings may be to blame
            time.sleep(1)

    def strike(self, incarnation: str, what: str, blow: Callable[[], None]) -> None:
        """Hit a worker process, and note which jobs it held."""
        blow()
        held = held_by(self.world, incarnation, self.submissions)
        self.note_blow(held, what)

    def note_blow(self, held: list[Job], what: str) -> None:
        """Watch for the next picture of these jobs."""
        self.excused |= {job.label for job in held if job.suspect}
        if held:
            labels = frozenset(job.label for job in held)
            self.blows.append(Blow(at=time.monotonic(), held=labels, what=what))

    def say(self, text: str) -> None:
        """Tell whoever watches."""
        sys.stderr.write(f"seed {self.plan.seed}, {time.monotonic() - self.began:4.0f} s: {text}\n")


def make_waves(plan: Plan, jobs: int, *, size: int = WAVE) -> list[Wave]:
    """Write the prompts: always the same ones, so that runs can be compared; markers where the seed says."""
    rows: list[dict[str, Any]] = []
    for number in range(jobs):
        sampler, steps = SETTINGS[number % len(SETTINGS)]
        prompt = f"a chaotic otter, number {number}"
        rows.append({"prompt": prompt, "seed": number, "steps": steps, "sampler": sampler, "number": number})
    dice = random.Random(plan.seed)
    for marker, row in zip(plan.markers, dice.sample(rows, len(plan.markers)), strict=True):
        row["prompt"] += f" [{marker}]"
        if marker == "poison":
            row["steps"] = 50
    return [Wave(rows=rows[at : at + size]) for at in range(0, jobs, size)]


def go(run: Run) -> None:
    """Let it happen until every job has ended, or nothing moves any more."""
    run.posts.keep_waking()
    pending = list(run.plan.faults)
    total = sum(len(wave.rows) for wave in run.waves)
    progress, since = -1, time.monotonic()
    while True:
        time.sleep(LOOK)
        try:
            run.posts.look()
            do_later(run)
            watch(run)
            counts = run.counts()
            unfinished = sum(counts[status] for status in UNFINISHED)
            ended = sum(counts.values()) - unfinished
            due = bool(pending) and ended >= pending[0].share * total
            if due and inject(run, pending[0].fault):
                pending.pop(0)
                continue
            wave = run.next_wave()
            at_post = len(run.posts.ready()) == len(run.posts.processes)
            if wave and unfinished < LOW and (at_post or (ended and not due)):
                run.send(wave)
                since = time.monotonic()
            if wave is None and not unfinished and not run.later:
                run.left_out |= {planned.fault: "its moment never came" for planned in pending}
                check_that_they_hit(run)
                return
        except UnreachableError:
            continue  # the harness meets the same outages
        if ended != progress:
            progress, since = ended, time.monotonic()
        if time.monotonic() - since > STUCK:
            run.stuck = picture_of(run)
            run.say(f"stuck: {run.stuck}")
            return


def picture_of(run: Run) -> str:
    """Write down what whoever is called at night would look at first."""
    farm = run.world.farm
    unfinished = [
        f"{job.label} {job.status}, attempt {job.attempt}, suspect {job.suspect}, not before {job.not_before}"
        for submission in run.submissions
        for job in farm.store().jobs(submission, statuses=UNFINISHED, limit=3)
    ]
    workers = [
        f"{worker.name} {worker.state}, pid {worker.pid}, beat {worker.beat} at {worker.beat_at}, "
        f"drains {worker.drain_timeout}, {worker.note or 'no note'}"
        for worker in farm.workers()
    ]
    logs = [log.read_text(errors="replace")[-1500:] for log in sorted(farm.home.parent.glob("process-*.log"))]
    return "\n".join([f"at {datetime.now(UTC)}", *unfinished, *workers, *logs])


def check_that_they_hit(run: Run) -> None:
    """Count out what had nothing left to hit."""
    postgres, s3 = run.world.postgres_proxy, run.world.s3_proxy
    hits = {Fault.COMMIT_REPLY: postgres.lost if postgres else 0}
    hits |= dict.fromkeys((Fault.S3_ERRORS, Fault.S3_LATE_ERRORS, Fault.S3_SILENCE), s3.failed if s3 else 0)
    for fault in [fault for fault in run.injected if hits.get(fault, 1) == 0]:
        run.injected.remove(fault)
        run.left_out[fault] = "it hit nothing"


def inject(run: Run, fault: Fault) -> bool:
    """Try a fault that is due; say whether it is dealt with."""
    try:
        reason = FAULTS[fault](run)
    except NotNow:
        return False
    if reason:
        run.left_out[fault] = reason
        run.say(f"left out: {fault} ({reason})")
    else:
        run.injected.append(fault)
        run.say(f"{fault}")
    return True


def do_later(run: Run) -> None:
    """Do what is due by now, such as to end a fault."""
    now = time.monotonic()
    due = [action for moment, action in run.later if moment <= now]
    run.later = [(moment, action) for moment, action in run.later if moment > now]
    for action in due:
        action()


def watch(run: Run) -> None:
    """See whose jobs have a picture again, and be the human whom a paused submission waits for."""
    store = run.world.farm.store()
    for submission in map(store.find_submission, run.submissions):
        if submission.state is SubmissionState.PAUSED:
            run.resumed += 1
            run.say(f"{submission.id} paused: {submission.note}")
            run.world.farm.run("resume", submission.id)
    if run.blows and not run.posts.ready():
        run.outages.append(time.monotonic())  # nobody was left who could take the jobs over
    for blow in list(run.blows):
        jobs = [store.find_job(label) for label in blow.held]
        if any(job.status is JobStatus.SUCCEEDED for job in jobs):
            seconds = time.monotonic() - blow.at
            run.say(f"recovered from {blow.what} in {seconds:.1f} s")
            if not any(moment > blow.at - OUTAGE for moment in run.outages):
                (run.outlived if blow.what == "freeze" else run.recovered).append(seconds)
            run.blows.remove(blow)
        elif all(job.status not in UNFINISHED for job in jobs):
            run.blows.remove(blow)  # cancelled, or guilty
