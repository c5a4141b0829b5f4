"""A farm of real processes below one temporary home, as a user would start them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from storage.imagestore import FsspecImageStore
from storage.jobstore import JobStore
from storage.records import Job, JobStatus, Worker
from storage.settings import SETTINGS, Settings
from storage.stores import open_image_store, open_job_store

PROMPTMILL = str(Path(sys.executable).parent / "promptmill")
PATIENCE = 600.0  # seconds: only how long a broken test may hang, never an assertion; machines can be slow


def wait_until(condition: Callable[[], Any], *, what: str) -> Any:
    """Wait until `condition()` is truthy and return that; fail the test if it never is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE:.0f} s in vain until {what}")


def _listen() -> None:
    """Let a process hear Ctrl-C although the tests were started in the background, as by nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Farm:
    """One home, and the processes that were started in it."""

    def __init__(self, home: Path, **servers: str) -> None:
        """Begin with nothing running.

        Args:
            home: does not exist yet.
            servers: more of the environment of every process: other servers than the embedded ones.
        """
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")},
            "PROMPTMILL_HOME": str(home),
            "NO_COLOR": "1",
            # Tests run beside other work: OpenMP's threads wait for each other on busy cores, one does not.
            "OMP_NUM_THREADS": "1",
            **servers,
        }
        own = {name.removeprefix("PROMPTMILL_").lower(): value for name, value in servers.items()}
        self.settings = Settings(home=home, **{n: v for n, v in own.items() if n in SETTINGS})
        self._store: JobStore | None = None
        self._started: list[subprocess.Popen[str]] = []

    def run(
        self, *arguments: str, given: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a promptmill command to its end."""
        return self.run_program(PROMPTMILL, *arguments, given=given, **environment)

    def run_program(
        self, *command: str, given: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run any command to its end."""
        return subprocess.run(
            command,
            env={**self.environment, **environment},
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def submit(self, count: int, *options: str, model: str = "demo") -> str:
        """Submit `count` small jobs and return the submission's id."""
        prompts = "".join(f"A watercolor painting of an otter, number {number}\n" for number in range(count))
        result = self.run(
            *("submit", "-", "--model", model, "--size", "64x64", "--schedule", "karras"),
            *options,
            given=prompts,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a promptmill command in the background, its output in files in the home's parent."""
        return self.start_program(PROMPTMILL, *arguments, **environment)

    def start_program(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start any command like that."""
        number = len(self._started)
        log = self.home.parent / f"process-{number}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
                preexec_fn=_listen,  # noqa: PLW1509 - it takes no lock
            )
        self._started.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        """Return what a started process has written so far."""
        return (self.home.parent / f"process-{self._started.index(process)}.log").read_text()

    def start_worker(self, *options: str, model: str = "demo", **environment: str) -> subprocess.Popen[str]:
        """Start `promptmill worker start` for a model and wait until it is ready."""
        before = {worker.incarnation for worker in self.workers()}
        process = self.start("worker", "start", "--model", model, *options, **environment)
        self.wait_until_ready(process, before)
        return process

    def wait_until_ready(self, process: subprocess.Popen[str], before: Container[str] = ()) -> None:
        """Wait until there is a ready worker that is none of `before`; fail when the process ends first."""
        wait_until(
            lambda: self._ended(process) or any(
                worker.state == "ready" and worker.incarnation not in before for worker in self.workers()
            ),
            what="a worker is ready",
        )  # fmt: skip

    def _ended(self, process: subprocess.Popen[str]) -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}: {self.output(process)}")
        return False

    def stop(self, process: subprocess.Popen[str]) -> int:
        """Ask a process to stop with SIGTERM and wait for it."""
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=PATIENCE)

    def store(self) -> JobStore:
        """Open the home's database, once."""
        if self._store is None:
            self._store = open_job_store(self.settings)
        return self._store

    def workers(self) -> list[Worker]:
        """Return the live incarnations."""
        if not self.settings.database_url and not self.settings.database_path.exists():
            return []
        return self.store().workers(alive_only=True)

    def count(self, submission: str, *statuses: JobStatus) -> int:
        """How many jobs have one of these statuses."""
        counts = self.store().counts(submission)
        return sum(counts[status] for status in statuses)

    def furthest(self, submission: str) -> float:
        """How far the furthest of the running jobs is, 0 to 1."""
        running = self.store().jobs(submission, statuses=(JobStatus.RUNNING,))
        return max((self.store().find_job(job.label).progress or 0.0 for job in running), default=0.0)

    def jobs(self, submission: str) -> list[Job]:
        """Return all jobs with their images."""
        return list(self.store().jobs(submission))

    def wait_for(self, submission: str, count: int, *statuses: JobStatus) -> None:
        """Wait until at least `count` jobs have one of these statuses (succeeded by default)."""
        wanted = statuses or (JobStatus.SUCCEEDED,)
        what = f"{count} jobs are {', '.join(wanted)}"
        wait_until(lambda: self.count(submission, *wanted) >= count, what=what)

    def kill_worker_process(self) -> str:
        """Kill the one ready worker process with -9 and return its incarnation."""
        ready = wait_until(
            lambda: [worker for worker in self.workers() if worker.state == "ready"],
            what="a worker to kill is ready",
        )
        os.kill(ready[0].pid, signal.SIGKILL)
        return str(ready[0].incarnation)

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes that work in this home, by pid."""
        found = {}
        mark = f"PROMPTMILL_HOME={self.home}".encode()
        socket = str(self.home).encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) == os.getpid():
                continue
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended, or is none of ours
            if command and (mark in environment or socket in command):
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def redis_pid(self) -> int:
        """Return the pid of the home's redis-server."""
        return next(pid for pid, command in self.processes().items() if "redis-server" in command)

    def audit(self, submission: str, count: int, *, leftovers: AbstractSet[str] = frozenset()) -> list[Job]:
        """Check that all jobs succeeded, each with one picture that is the one its row says; return them.

        Args:
            submission: its id.
            count: of its jobs.
            leftovers: keys of files that may be there without a row.
        """
        jobs = self.jobs(submission)
        assert [job.index for job in jobs] == list(range(count))
        assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
        images = open_image_store(self.settings)
        keys = set()
        for job in jobs:
            assert job.image is not None
            assert hashlib.sha256(images.read(job.image.key)).hexdigest() == job.image.file_sha256
            expected = f"{job.index:06d}" + (f"-{job.attempt}" if job.attempt > 1 else "")
            assert Path(job.image.key).stem == expected, "the picture is not of the job's last attempt"
            keys.add(job.image.key)
        assert isinstance(images, FsspecImageStore)
        root = images.path(submission)
        stored = {path.removeprefix(root.removesuffix(submission)) for path in images._files.find(root)}
        assert stored >= keys
        assert stored - keys <= leftovers, "a file without a row was left behind"
        return jobs

    def status(self, reference: str = "@last") -> dict[str, Any]:
        """Return `status --json`."""
        result = self.run("status", reference, "--json")
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def close(self) -> None:
        """Kill whatever a failed test left running."""
        if self._store is not None:
            self._store.close()
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=PATIENCE)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile
