"""After a run: what is lost, what is there twice, what is wrong."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as Picture

from producer.audit import Finding, Kind, audit
from storage.records import UNFINISHED, Job, JobStatus
from storage.stores import open_image_store
from tests.chaos.world import SECRET

if TYPE_CHECKING:
    from tests.chaos.run import Run, Wave

GUILTY = {"[poison]": "WorkerCrash", "[raises]": "RuntimeError"}
_FINISHED = re.compile(
    r"\] (rendered|lost to another attempt) .*?action=\w+ .*?attempt=(\d+).*? job=(\S+) key=(\S+)"
)


@dataclass(kw_only=True)
class Verdict:
    """What a run has come to.

    Attributes:
        lost: jobs that have neither a picture nor a reason.
        duplicated: jobs that were finished by two attempts, or have two pictures.
        wrong: sentences about all else that should not be.
        leftovers: files without a row, before `doctor --audit --repair` removed them.
        findings: of the auditor.
    """

    jobs: int
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    attempts: int = 0
    leftovers: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is lost, twice or wrong."""
        return not (self.lost or self.duplicated or self.wrong)


def judge(run: Run, references: dict[str, str]) -> Verdict:
    """Look at everything that a run has left; its workers have ended.

    Args:
        run: the run.
        references: hash of the picture of each prompt in earlier runs; new ones are added.
    """
    farm = run.world.farm
    verdict = Verdict(jobs=sum(len(wave.rows) for wave in run.waves))
    images = open_image_store(farm.settings)
    verdict.findings = list(audit(farm.store(), images))
    _sort(verdict)
    for wave in run.waves:
        jobs = farm.jobs(wave.submission) if wave.submission else []
        there = {job.index: job for job in jobs}
        for index, row in enumerate(wave.rows):
            job = there.get(index)
            if job is None:
                verdict.lost.append(f"{row['prompt']}: no row")
                continue
            verdict.attempts += job.attempt
            _judge_job(run, wave, row, job, verdict)
            if job.image is not None and job.status is JobStatus.SUCCEEDED:
                data = images.find(job.image.key)
                if data is not None:
                    _judge_picture(job, data, references, verdict)
    _read_logs(run, verdict)
    _judge_exports(run, verdict)
    _look_for_secrets(run, verdict)
    return verdict


def _sort(verdict: Verdict) -> None:
    for finding in verdict.findings:
        said = f"{finding.where}: {finding.kind}, {finding.detail}"
        if finding.kind is Kind.NO_ROW:
            verdict.leftovers += 1
        elif finding.kind in (Kind.TOO_MANY, Kind.OTHER_ATTEMPT):
            verdict.duplicated.append(said)
        elif finding.kind in (Kind.MISSING, Kind.NO_PICTURE):
            verdict.lost.append(said)
        elif finding.kind is not Kind.UNFINISHED:  # each of those jobs is counted as lost below
            verdict.wrong.append(said)


def _judge_job(run: Run, wave: Wave, row: dict[str, object], job: Job, verdict: Verdict) -> None:
    """Hold a job's end against the one that it had to come to."""
    prompt = str(row["prompt"])
    guilt = next((error for marker, error in GUILTY.items() if marker in prompt), None)
    if (job.parameters.prompt, job.parameters.seed) != (prompt, row["seed"]):
        verdict.wrong.append(f"{job.label}: it is another job than the one that was submitted")
    if job.status in UNFINISHED:
        verdict.lost.append(f"{job.label}: still {job.status}, attempt {job.attempt}")
    elif job.status is JobStatus.CANCELLED and not wave.cancelled:
        verdict.wrong.append(f"{job.label}: cancelled, and nobody asked for it")
    elif job.status is JobStatus.FAILED and job.error_type != guilt:
        verdict.wrong.append(f"{job.label}: failed with {job.error_type}: {job.error_message}")
    elif job.status is JobStatus.SUCCEEDED and guilt:
        verdict.wrong.append(f"{job.label}: succeeded, which it cannot")
    if job.failures and not guilt and job.label not in run.excused:
        verdict.wrong.append(f"{job.label}: innocent, and charged {job.failures} times")


def _judge_picture(job: Job, data: bytes, references: dict[str, str], verdict: Verdict) -> None:
    """Check that a picture is this very job's, with the bytes that it has in every run."""
    prompt = job.parameters.prompt
    with Picture.open(io.BytesIO(data)) as picture:
        said = str(picture.info.get("parameters", ""))
    if not said.startswith(prompt) or f"Seed: {job.parameters.seed}," not in said:
        verdict.wrong.append(f"{job.label}: its file holds another job's picture")
    digest = hashlib.sha256(data).hexdigest()
    if references.setdefault(prompt, digest) != digest:
        verdict.wrong.append(f"{job.label}: other bytes than in another run")


def _read_logs(run: Run, verdict: Verdict) -> None:
    """See in the workers' logs whether two attempts finished a job, or wrote the same file."""
    finished: dict[str, set[str]] = defaultdict(set)
    writers: dict[str, set[str]] = defaultdict(set)
    for log in run.world.farm.home.parent.glob("process-*.log"):
        text = log.read_text(errors="replace")
        for what, attempt, job, key in _FINISHED.findall(text):
            writers[key].add(attempt)
            if what == "rendered":
                finished[job].add(attempt)
        if "Traceback" in text:
            at = text.index("Traceback")
            verdict.wrong.append(f"a traceback in {log.name}: {text[max(0, at - 300) : at + 3000]}")
    verdict.duplicated += [
        f"{job}: finished by attempts {sorted(by)}" for job, by in finished.items() if len(by) > 1
    ]
    verdict.wrong += [
        f"{key}: written by attempts {sorted(by)}" for key, by in writers.items() if len(by) > 1
    ]


def _judge_exports(run: Run, verdict: Verdict) -> None:
    """Complete the exports that were killed, and hold their files against the rows."""
    for submission, folder in run.exports.items():
        again = run.world.farm.run("export", submission, "--to", folder)
        if again.returncode:
            verdict.wrong.append(f"an export that was killed cannot be completed: {again.stderr.strip()}")
            continue
        rows = [job.image.file_sha256 for job in run.world.farm.jobs(submission) if job.image]
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*.png"))]
        if rows != files:
            verdict.wrong.append(
                f"the export of {submission} has {len(files)} files, not the {len(rows)} of its rows"
            )


def _look_for_secrets(run: Run, verdict: Verdict) -> None:
    """Search everything that was written for the password of Redis and the token of the hub."""
    # In another process: to read the database's file in this one would end the locks of our own connections.
    command = [
        "grep",
        "--recursive",
        "--files-with-matches",
        "--devices=skip",
        SECRET,
        run.world.farm.home.parent,
    ]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode in (0, 1), found.stderr
    verdict.wrong += [f"a secret was written into {Path(path).name}" for path in found.stdout.splitlines()]


def repair(run: Run, verdict: Verdict) -> None:
    """Remove what is left without a row as a user does, and check that nothing but that has changed."""
    done = run.world.farm.run("doctor", "--audit", "--repair", "--yes", "--json")
    expected = int(any(finding.is_wrong for finding in verdict.findings))
    if done.returncode != expected:
        verdict.wrong.append(f"doctor --audit --repair ended with {done.returncode}: {done.stderr.strip()}")
    left = audit(run.world.farm.store(), open_image_store(run.world.farm.settings))
    if any(one.kind is Kind.NO_ROW for one in left):
        verdict.wrong.append("files without a row are left after doctor --audit --repair")
