"""`doctor --audit`: each kind of harm to rows and files is found, and a healthy home is quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from producer.audit import Finding, Kind, audit, remove_files_without_a_row
from storage.imagestore import FsspecImageStore
from storage.records import Claim, JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.sqljobstore.base import IMAGES, JOBS, SUBMISSIONS
from tests.unit.producer.conftest import Invoke, StandInWorker

JOB_COUNT = 4


class Home:
    """A home with one finished submission, and the means to harm it."""

    def __init__(self, store: SqlJobStore, settings: Settings, submission: str) -> None:
        self.store, self.id = store, submission
        self.folder = settings.images_path
        self.images = FsspecImageStore(f"file://{self.folder}")

    def file(self, name: str) -> Path:
        """Return a file of the submission by its name."""
        return self.folder / self.id / "0000" / name

    def leave(self, name: str) -> str:
        """Put a file there that nobody has a row for; return its path below the store's root."""
        self.file(name).write_bytes(b"left")
        return f"{self.id}/0000/{name}"

    def change(self, index: int, **values: object) -> None:
        """Write into the row of a job, as no method of the store would."""
        with self.store.database.write() as connection:
            connection.execute(update(JOBS).where(JOBS.c.index == index).values(values))

    def findings(self) -> list[Finding]:
        """Audit it."""
        return list(audit(self.store, self.images))

    def found(self) -> list[tuple[Kind, str]]:
        """Audit it, and return what was found where."""
        return [(finding.kind, finding.where) for finding in self.findings()]


@pytest.fixture
def finished(store: SqlJobStore, settings: Settings, stand_in: StandInWorker, invoke: Invoke) -> Home:
    """A submission of four jobs: the last one failed, the others have pictures."""
    prompts = [word for number in range(JOB_COUNT) for word in ("-p", f"otter {number}")]
    submission = invoke("submit", *prompts, "--model", "demo").stdout.strip()
    stand_in.start()
    stand_in.render(fail={JOB_COUNT - 1})
    return Home(store, settings, submission)


def test_a_healthy_home_is_quiet(finished: Home, invoke: Invoke) -> None:
    """Nothing is found, the sentence says so, the exit code is 0."""
    assert finished.found() == []
    result = invoke("doctor", "--audit")
    assert result.exit_code == 0, result.output
    assert "Every job that has ended has its one picture or its one reason." in result.stderr


def test_a_lost_file_is_missing(finished: Home, invoke: Invoke) -> None:
    """A row whose file is gone breaks a promise: exit code 1, and the job is named."""
    finished.file("000001.png").unlink()
    assert finished.found() == [(Kind.MISSING, f"{finished.id}:1")]
    result = invoke("doctor", "--audit")
    assert result.exit_code == 1
    assert "1 promise broken (1 missing)" in result.stderr
    assert f"{finished.id}:1" in result.stdout


def test_changed_bytes_are_damage(finished: Home) -> None:
    """One bit is enough."""
    file = finished.file("000002.png")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert finished.found() == [(Kind.DAMAGED, f"{finished.id}:2")]


def test_a_job_that_succeeded_without_a_row_is_found_with_its_file(finished: Home) -> None:
    """Its file has no row then, either."""
    job = finished.store.find_job(f"{finished.id}:0").id
    with finished.store.database.write() as connection:
        connection.execute(delete(IMAGES).where(IMAGES.c.job == job))
    file = f"{finished.id}/0000/000000.png"
    assert finished.found() == [(Kind.NO_PICTURE, f"{finished.id}:0"), (Kind.NO_ROW, file)]


def test_a_picture_of_a_job_that_did_not_succeed_is_one_too_many(finished: Home) -> None:
    """A failed job has a reason, not a picture as well."""
    finished.change(1, status="failed", error_message="It came out black.")
    assert finished.found() == [(Kind.TOO_MANY, f"{finished.id}:1")]


def test_a_picture_of_another_attempt_is_found(finished: Home) -> None:
    """The row says which attempt succeeded, and its key has to be that one's."""
    finished.change(1, attempt=2)
    assert finished.found()[0] == (Kind.OTHER_ATTEMPT, f"{finished.id}:1")


def test_a_failed_job_without_a_reason_is_found(finished: Home) -> None:
    """One clear reason is the promise."""
    finished.change(JOB_COUNT - 1, error_message=None)
    assert finished.found() == [(Kind.NO_REASON, f"{finished.id}:{JOB_COUNT - 1}")]


def test_a_job_that_runs_in_a_worker_that_has_ended_is_found(finished: Home, stand_in: StandInWorker) -> None:
    """Nobody would ever release it."""
    finished.change(1, status="waiting")
    with finished.store.database.write() as connection:
        connection.execute(delete(IMAGES))
        connection.execute(update(JOBS).where(JOBS.c.index != 1).values(status="cancelled"))
    (job,) = finished.store.take_for_dispatch("demo", window=1)
    assert isinstance(finished.store.claim(job, stand_in.incarnation, defaults=stand_in.defaults), Claim)
    stand_in.stop()
    assert (Kind.HELD_BY_NOBODY, f"{finished.id}:1") in finished.found()


def test_files_of_killed_workers_are_found_and_removed(finished: Home, invoke: Invoke) -> None:
    """A whole file that lost its race, and half a file; the pictures themselves stay."""
    finished.change(0, attempt=3)
    with finished.store.database.write() as connection:
        job = finished.store.find_job(f"{finished.id}:0").id
        connection.execute(
            update(IMAGES).where(IMAGES.c.job == job).values(key=f"{finished.id}/0000/000000-3.png")
        )
    finished.file("000000.png").rename(finished.file("000000-3.png"))
    left = [finished.leave("000000-2.png"), finished.leave(".000001.png.77-0badcafe.part")]
    assert sorted(finished.found()) == sorted((Kind.NO_ROW, name) for name in left)
    refused = invoke("doctor", "--audit", "--repair")
    assert refused.exit_code == 2
    assert "Removing 2 files needs --yes" in refused.stderr
    repaired = invoke("doctor", "--audit", "--repair", "--yes", "--json")
    assert repaired.exit_code == 0, repaired.stderr
    assert sorted(json.loads(repaired.stdout)["audit"]["removed"]) == sorted(left)
    assert finished.found() == []
    assert len(list(finished.folder.rglob("*.png"))) == JOB_COUNT - 1


def test_a_file_that_the_database_knows_nothing_of_is_never_removed(finished: Home) -> None:
    """It may be newer than a database that was restored, another farm's, or not ours at all."""
    names = [
        finished.leave("000001-7.png"),  # an attempt that is still to come
        finished.leave("000009.png"),  # a job that is not there
        finished.leave("notes.txt"),
    ]
    elsewhere = finished.folder / "zzzzzzzz" / "0000" / "000000.png"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"another farm's")
    names.append("zzzzzzzz/0000/000000.png")
    findings = finished.findings()
    assert sorted(finding.where for finding in findings) == sorted(names)
    assert {finding.kind for finding in findings} == {Kind.UNKNOWN}
    assert list(remove_files_without_a_row(finished.store, finished.images, findings)) == []
    assert elsewhere.exists()


def test_a_file_whose_job_comes_back_is_not_removed(finished: Home) -> None:
    """Between the audit and the repair the job was retried: its next attempt may have written the file."""
    left = finished.leave(f"{JOB_COUNT - 1:06d}.png")
    findings = finished.findings()
    assert [finding.where for finding in findings] == [left]
    finished.store.retry(finished.id)
    assert list(remove_files_without_a_row(finished.store, finished.images, findings)) == []


def test_what_is_not_finished_is_told_apart(finished: Home, invoke: Invoke) -> None:
    """Waiting jobs and a submit that was killed are no broken promises."""
    waiting = invoke("submit", "-p", "a heron", "--model", "demo").stdout.strip()
    loading, _ = finished.store.add_submission(model="demo", source="killed")
    assert sorted(finished.found()) == sorted([(Kind.UNFINISHED, waiting), (Kind.LOADING, loading.id)])
    result = invoke("doctor", "--audit")
    assert result.exit_code == 0, result.output
    assert "open: 1 waiting" in result.stdout
    assert "its submit goes on or was killed" in result.stdout


def test_what_was_mended_during_the_audit_is_not_reported(
    finished: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What seems wrong is looked at a second time: the job may have changed since its page was read."""
    file = finished.file("000001.png")
    data = file.read_bytes()
    file.unlink()
    find_job = finished.store.find_job

    def mend(reference: str) -> object:
        file.write_bytes(data)
        return find_job(reference)

    monkeypatch.setattr(finished.store, "find_job", mend)
    assert finished.found() == []


def test_a_store_that_is_gone_is_not_called_empty(finished: Home, invoke: Invoke) -> None:
    """A disk that is not mounted: exit code 3, and no picture is called missing."""
    finished.folder.rename(finished.folder.with_name("elsewhere"))
    result = invoke("doctor", "--audit")
    assert result.exit_code == 3, result.output
    assert "mount its disk" in result.stderr
    assert finished.store.counts(finished.id)[JobStatus.SUCCEEDED] == JOB_COUNT - 1


@pytest.mark.parametrize("flags", [["--yes"], ["--audit", "--yes"], ["--audit", "abcd2345"]])
def test_flags_that_do_not_go_together_are_refused(flags: list[str], invoke: Invoke) -> None:
    """Exit code 2, one sentence."""
    result = invoke("doctor", *flags)
    assert result.exit_code == 2
    assert "--yes belong to --repair" in result.stderr


def test_jobs_without_a_row_are_missed(finished: Home) -> None:
    """A database that was restored in part tells of fewer jobs than were submitted."""
    with finished.store.database.write() as connection:
        lost = select(JOBS.c.id).where(JOBS.c.index == 1)
        connection.execute(delete(IMAGES).where(IMAGES.c.job.in_(lost)))
        connection.execute(delete(JOBS).where(JOBS.c.index == 1))
    assert (Kind.LOST, finished.id) in finished.found()


def test_what_is_left_of_a_lost_picture_is_kept(finished: Home) -> None:
    """It was damaged, and could not be rendered again: its file is all that there is."""
    kept = finished.leave("000003.png")
    finished.change(3, lost_sha256="a" * 64)
    assert kept not in {where for _, where in finished.found()}


def test_a_submission_that_is_being_pruned_promises_nothing(finished: Home) -> None:
    """Files go before their rows: what is missing in between is not called missing."""
    changed: list[str] = []
    find = finished.images.find

    def prune_first(key: str) -> bytes | None:
        if not changed:
            changed.append(key)
            finished.file("000000.png").unlink()
            with finished.store.database.write() as connection:
                connection.execute(update(SUBMISSIONS).values(state="pruning"))
        return find(key)

    finished.images.find = prune_first  # type: ignore[method-assign]
    assert Kind.MISSING not in {kind for kind, _ in finished.found()}
