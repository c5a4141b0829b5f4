"""Each fault of a plan, done to a run: a function returns why it cannot be done, None once it is done."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from storage.records import UNFINISHED, JobStatus, Worker
from tests.chaos.plan import Fault
from tests.chaos.posts import held_by, is_there

if TYPE_CHECKING:
    from tests.chaos.run import Run

Done = str | None

AT_WORKERS = (JobStatus.QUEUED, JobStatus.RUNNING)


class NotNow(Exception):  # noqa: N818 - it is no error
    """The moment is not right, e.g. nobody is there to be killed: try again at the next look."""


def _victim(run: Run) -> Worker:
    """Choose a worker that holds jobs, while another one is ready to take them over."""
    ready = run.posts.ready()
    if len(ready) < len(run.posts.processes):
        raise NotNow
    for worker in run.dice.sample(ready, len(ready)):
        if worker.name in run.spared:
            continue
        held = held_by(run.world, worker.incarnation, run.submissions)
        if held and not any(job.suspect for job in held):
            return worker
    raise NotNow


def _kill_worker(run: Run) -> Done:
    worker = _victim(run)
    run.strike(worker.incarnation, "kill", lambda: os.kill(worker.pid, signal.SIGKILL))
    return None


def _kill_starting(run: Run) -> Done:
    worker = _victim(run)
    run.strike(worker.incarnation, "kill", lambda: os.kill(worker.pid, signal.SIGKILL))
    run.later.append((time.monotonic() + 0.5, lambda: _kill_next(run, worker.name)))
    return None


def _kill_next(run: Run, name: str) -> None:
    """Kill the process that follows a killed one as soon as it says that it starts."""
    starting = [worker for worker in run.posts.starting() if worker.name == name]
    if starting:
        os.kill(starting[0].pid, signal.SIGKILL)
    elif not any(worker.name == name for worker in run.posts.ready()):
        run.later.append((time.monotonic() + 0.1, lambda: _kill_next(run, name)))


def _kill_supervisor(run: Run) -> Done:
    worker = _victim(run)
    run.strike(worker.incarnation, "kill", run.posts.processes[worker.name].kill)
    return None


def _freeze_worker(run: Run) -> Done:
    worker = _victim(run)
    run.strike(worker.incarnation, "freeze", lambda: os.kill(worker.pid, signal.SIGSTOP))
    return None


# In the transaction of some chunk of jobs, before it is opened, or before the first.
SUBMIT_DEATHS = ("_insert_rows", "open_submission", "add_submission")
CANCEL_DEATH = "sweep_cancelled"


def _kill_submit(run: Run) -> Done:
    wave = run.next_wave()
    if wave is None:
        return "all waves are submitted"
    place = run.dice.choice(SUBMIT_DEATHS)
    death = f"{place}:{run.dice.randint(1, 8) if place == '_insert_rows' else 1}"
    killed = run.submit(wave, PROMPTMILL_CHAOS_DIE=death)
    assert killed.returncode == -signal.SIGKILL, (killed.returncode, killed.stderr)
    run.send(wave)
    said = killed.stdout.strip()
    assert said in ("", wave.submission), "the id that a killed submit had printed is not the one"
    return None


def _kill_export(run: Run) -> Done:
    wave = next((wave for wave in run.waves if wave.submission), None)
    if wave is None or run.world.farm.count(wave.submission, JobStatus.SUCCEEDED) < 5:
        raise NotNow
    folder = run.world.farm.home.parent / "export"
    process = run.world.farm.start("export", wave.submission, "--to", str(folder))
    while process.poll() is None and len(list(folder.glob("*.png"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.wait()
    run.exports[wave.submission] = str(folder)
    return None


def _kill_cancel(run: Run) -> Done:
    for wave in run.waves:
        if not wave.submission or wave.cancelled or run.world.farm.count(wave.submission, *UNFINISHED) < 5:
            continue
        killed = run.world.farm.run("cancel", wave.submission, PROMPTMILL_CHAOS_DIE=f"{CANCEL_DEATH}:1")
        if killed.returncode == 0:
            raise NotNow  # it had just ended
        assert killed.returncode == -signal.SIGKILL, (killed.returncode, killed.stderr)
        wave.cancelled = True
        if run.dice.random() < 0.5:
            run.later.append((time.monotonic() + 3, partial(_bring_back, run, wave.submission)))
        return None
    raise NotNow


def _bring_back(run: Run, submission: str) -> None:
    result = run.world.farm.run("retry", submission)
    if result.returncode:
        run.later.append((time.monotonic() + 1, lambda: _bring_back(run, submission)))
        return
    next(wave for wave in run.waves if wave.submission == submission).cancelled = False


def _redis_empty(run: Run) -> Done:
    run.outages.append(time.monotonic())
    if run.world.redis is not None:
        run.world.redis.kill()
        time.sleep(run.dice.uniform(0, 3))
        run.world.redis.start()
        return None
    os.kill(run.world.farm.redis_pid(), signal.SIGKILL)
    return None


def _redis_old(run: Run) -> Done:
    """Keep what is in Redis now, and give it back that when the jobs have gone on."""
    redis, folder = run.world.redis, run.world.redis_folder
    if redis is None or folder is None:
        return "the embedded Redis keeps nothing"
    redis.client().save()

    def back() -> None:
        run.outages.append(time.monotonic())
        redis.kill()
        redis.start()
        (folder / "dump.rdb").unlink()

    run.later.append((time.monotonic() + 3, back))
    return None


def _redis_clients(run: Run) -> Done:
    run.outages.append(time.monotonic())
    if run.world.redis is not None:
        client = run.world.redis.client()
    else:
        from storage.queue import broker_url, connect  # noqa: PLC0415  (only here)

        client = connect(broker_url(run.world.farm.settings))
    with client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    return None


def _postgres_restart(run: Run) -> Done:
    run.world.postgres.restart()
    return None


def _postgres_terminate(run: Run) -> Done:
    run.world.postgres.execute(
        sql.SQL(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = {}"
        ).format(sql.Literal(run.world.database))
    )
    return None


def _commit_reply(run: Run) -> Done:
    assert run.world.postgres_proxy is not None
    for _ in range(3):
        run.world.postgres_proxy.arm()
    return None


def _disk_full(run: Run) -> Done:
    seconds = run.dice.uniform(2, 8)
    if run.world.disk is not None:
        filler = run.world.disk / "filler"
        _fill(filler)
        run.later.append((time.monotonic() + seconds, filler.unlink))
        return None
    # Where nothing can be mounted: no file of a worker may grow, as if its quota was used up.
    victims = [worker.pid for worker in run.posts.ready()]
    for pid in victims:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def lift() -> None:
        for pid in filter(is_there, victims):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    run.later.append((time.monotonic() + seconds, lift))
    return None


def _fill(filler: Path) -> None:
    # Unbuffered: what was not written would be tried again, and raise, when the file is closed.
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)


def _s3(mode: str, least: float, most: float) -> Callable[[Run], Done]:
    def fail(run: Run) -> Done:
        proxy = run.world.s3_proxy
        assert proxy is not None
        proxy.mode = mode
        seconds = run.dice.uniform(least, most)
        run.later.append((time.monotonic() + seconds, lambda: setattr(proxy, "mode", "well")))
        return None

    return fail


def _half_files(run: Run) -> Done:
    """Leave what a kill in the middle of a write leaves, for a job that is at a worker."""
    for submission in run.submissions:
        for job in run.world.farm.store().jobs(submission, statuses=AT_WORKERS, limit=3):
            folder = Path(run.world.farm.environment["PROMPTMILL_STORE_URL"].removeprefix("file://"))
            place = folder / submission / f"{job.index // 1000:04d}"
            place.mkdir(parents=True, exist_ok=True)
            try:
                (place / f".{job.index:06d}.png.99999-0badcafe.part").write_bytes(b"\x89PNG half a pic")
            except OSError as error:  # the disk is full, which is another fault's work
                raise NotNow from error
            return None
    raise NotNow


def _clock_jump(run: Run) -> Done:
    hours = run.dice.choice((-7, 5, 26))
    return None if run.posts.set_clock(hours) else "there is no libfaketime: apt-get install faketime"


FAULTS: dict[Fault, Callable[[Run], Done]] = {
    Fault.KILL_WORKER: _kill_worker,
    Fault.KILL_STARTING: _kill_starting,
    Fault.KILL_SUPERVISOR: _kill_supervisor,
    Fault.FREEZE_WORKER: _freeze_worker,
    Fault.KILL_SUBMIT: _kill_submit,
    Fault.KILL_EXPORT: _kill_export,
    Fault.KILL_CANCEL: _kill_cancel,
    Fault.REDIS_EMPTY: _redis_empty,
    Fault.REDIS_OLD: _redis_old,
    Fault.REDIS_CLIENTS: _redis_clients,
    Fault.POSTGRES_RESTART: _postgres_restart,
    Fault.POSTGRES_TERMINATE: _postgres_terminate,
    Fault.COMMIT_REPLY: _commit_reply,
    Fault.DISK_FULL: _disk_full,
    Fault.S3_ERRORS: _s3("errors", 2, 6),
    Fault.S3_LATE_ERRORS: _s3("late errors", 2, 6),
    Fault.S3_SILENCE: _s3("silence", 3, 8),
    Fault.HALF_FILES: _half_files,
    Fault.CLOCK_JUMP: _clock_jump,
}
