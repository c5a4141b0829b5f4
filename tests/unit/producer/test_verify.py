"""`verify` and `doctor --repair`, with a stand-in for workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from storage.errors import UnreachableError
from storage.imagestore import FsspecImageStore
from storage.jobstore import JobStore
from storage.records import JobStatus, Submission
from storage.settings import Settings

Invoke = Callable[..., Result]


@pytest.fixture
def submission(invoke: Invoke, stand_in: Any, store: JobStore) -> Submission:
    """Four pictures, each of a colour of its own; the worker is gone."""
    invoke("submit", "-p", "an otter", "--images", "4", "--seed", "7", "--name", "otters")
    stand_in.start()
    stand_in.render()
    stand_in.stop()
    return store.find_submission("otters")


@pytest.fixture
def path_of(settings: Settings, store: JobStore, submission: Submission) -> Callable[[int], Path]:
    """Say where a job's picture lies."""

    def path(index: int) -> Path:
        image = store.find_job(f"{submission.id}:{index}").image
        assert image is not None
        return settings.images_path / image.key

    return path


def flip(path: Path) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    """Let two files change places."""
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def wrong(invoke: Invoke, *what: str) -> dict[str, dict[str, Any]]:
    """Return what verify finds wrong, by job index."""
    found = json.loads(invoke("verify", *what, "--json").stdout)["verified"]
    assert found["right"] + len(found["wrong"]) == found["pictures"]
    return {one["job"].partition(":")[2]: one for one in found["wrong"]}


def test_pictures_that_are_right_are_counted(invoke: Invoke, submission: Submission) -> None:
    """Exit code 0, and how many it were."""
    for what in ("otters", submission.id[:5], "--all"):
        done = invoke("verify", what)
        assert done.exit_code == 0, done.stderr
        assert (done.stdout, done.stderr) == (
            "", "Checked 4 pictures of 1 submission: 4 right, 0 wrong.\n",
        )  # fmt: skip


def test_what_is_wrong_is_found(invoke: Invoke, path_of: Callable[[int], Path]) -> None:
    """A flipped byte, a missing file, two swapped ones; each is named with its job."""
    flip(path_of(0))
    path_of(1).unlink()
    swap(path_of(2), path_of(3))
    done = invoke("verify", "otters")
    assert done.exit_code == 1
    assert "4 pictures not as recorded; `promptmill doctor --repair" in done.stderr
    found = wrong(invoke, "otters")
    assert {index: one["fault"] for index, one in found.items()} == {
        "0": "damaged", "1": "missing", "2": "swapped", "3": "swapped",
    }  # fmt: skip
    assert found["2"]["holds"].endswith(":3")
    assert all(one["job"] in done.stdout and one["detail"] in done.stdout for one in found.values())


def test_a_cut_file_says_its_size(invoke: Invoke, path_of: Callable[[int], Path]) -> None:
    """How many bytes are there, and how many there should be."""
    size = path_of(0).stat().st_size
    path_of(0).write_bytes(path_of(0).read_bytes()[:40])
    assert wrong(invoke, "otters")["0"]["detail"] == f"its file has 40 bytes, not {size}"


def test_a_store_that_does_not_answer_misses_no_picture(
    invoke: Invoke, submission: Submission, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3, whether it is down or its disk is not mounted."""
    shutil.move(settings.images_path, settings.home / "elsewhere")
    done = invoke("verify", submission.id)
    assert (done.exit_code, done.stdout) == (3, "")
    settings.images_path.mkdir(exist_ok=True)
    assert invoke("verify", submission.id).exit_code == 3

    def down(*_: object) -> bytes:
        raise UnreachableError("The picture store is down.")

    monkeypatch.setattr(FsspecImageStore, "find", down)
    done = invoke("verify", submission.id)
    assert (done.exit_code, done.stdout) == (3, "")


def test_verify_wants_to_know_what(invoke: Invoke) -> None:
    """Submissions or --all, not both and not neither."""
    for arguments in ([], ["otters", "--all"]):
        done = invoke("verify", *arguments)
        assert done.exit_code == 2
        assert "--all" in done.stderr
    assert invoke("verify", "nothing").exit_code == 2


def repaired(invoke: Invoke, *arguments: str) -> dict[str, tuple[str, str | None]]:
    """Repair, and return what became of each broken picture, by job index."""
    done = invoke("doctor", "--repair", "--yes", "--json", *arguments)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert "checks" in report
    mended = report["repair"]["mended"]
    return {one["job"].partition(":")[2]: (one["result"], one["result_detail"]) for one in mended}


def test_a_repair_puts_back_what_lies_elsewhere_and_renders_the_rest(
    invoke: Invoke, path_of: Callable[[int], Path], processes: Any, store: JobStore, submission: Submission
) -> None:
    """Swapped files find their places; lost ones come out with the bytes that they had."""
    before = [path_of(index).read_bytes() for index in range(4)]
    flip(path_of(0))
    path_of(1).unlink()
    swap(path_of(2), path_of(3))
    assert repaired(invoke, "otters") == {
        "0": ("rendered again", None),
        "1": ("rendered again", None),
        "2": ("put back", None),
        "3": ("put back", None),
    }
    assert [path_of(index).read_bytes() for index in range(4)] == before
    assert [job.attempt for job in store.jobs(submission.id)] == [2, 2, 1, 1]
    assert invoke("verify", "otters").exit_code == 0
    (process,) = processes.started
    assert process.stopped
    assert [path.name for path in path_of(0).parents[2].iterdir()] == [submission.id]


def test_a_good_picture_in_the_wrong_place_survives_the_repair_of_that_place(
    invoke: Invoke, path_of: Callable[[int], Path], processes: Any, stand_in: Any
) -> None:
    """Its own job is of a submission that is repaired later."""
    invoke("submit", "-p", "a fox", "--seed", "3", "--name", "fox")
    stand_in.start()
    stand_in.colour = lambda _: 99
    stand_in.render()
    stand_in.stop()
    fox = next(
        path for path in path_of(0).parents[2].rglob("*.png") if path.parents[1] != path_of(0).parents[1]
    )
    picture = fox.read_bytes()
    path_of(1).write_bytes(picture)
    fox.unlink()
    assert repaired(invoke, "otters")["1"][0] == "rendered again, other bytes"
    assert repaired(invoke, "fox") == {"0": ("put back", None)}
    assert fox.read_bytes() == picture
    assert len(processes.started) == 1


def test_other_bytes_than_before_are_said(
    invoke: Invoke, path_of: Callable[[int], Path], processes: Any, stand_in: Any
) -> None:
    """With what differs in the record; a later verify still knows it."""
    del processes
    path_of(1).unlink()
    stand_in.colour, stand_in.numerics = lambda _: 255, {"lanes": 4}
    assert repaired(invoke) == {"1": ("rendered again, other bytes", "lanes: 2 → 4")}
    done = invoke("verify", "--all")
    assert done.exit_code == 0
    assert "1 picture came out with other bytes after a repair" in done.stderr
    assert "lost_sha256" in invoke("show", "otters:1", "--json").stdout


def test_what_cannot_be_mended_is_listed(
    invoke: Invoke, farmhand: Any, store: JobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that nobody serves or has configured: the job stays as it is, and the exit code is 1."""
    worker = farmhand("other")
    worker.start()
    invoke("submit", "-p", "an otter", "--model", "other", "--name", "mine")
    worker.render()
    worker.stop()
    job = store.find_job("mine:0")
    assert job.image is not None
    flip(settings.images_path / job.image.key)
    done = invoke("doctor", "--repair", "--yes")
    assert done.exit_code == 1
    assert "No live worker serves model other, and it is not configured" in done.stdout
    assert store.find_job("mine:0") == job
    monkeypatch.setenv("PROMPTMILL_MODELS", "other=/nowhere")
    assert "there is nothing at /nowhere" in invoke("doctor", "--repair", "--yes").stdout
    assert store.find_job("mine:0") == job
    worker.start()
    store.pause(job.submission)
    assert "is paused" in invoke("doctor", "--repair", "--yes").stdout
    assert store.find_job("mine:0").status is JobStatus.SUCCEEDED


def test_a_job_that_fails_now_is_listed_with_its_reason(
    invoke: Invoke, path_of: Callable[[int], Path], processes: Any, stand_in: Any
) -> None:
    """The broken picture was none; the job says why there is no other."""
    flip(path_of(2))
    processes.behaviour = lambda _self: (stand_in.start(), stand_in.render(fail={2}))
    assert repaired(invoke) == {"2": ("not mended", "It came out black.")}


def test_a_repair_asks_first(invoke: Invoke, path_of: Callable[[int], Path], store: JobStore) -> None:
    """Where nobody can be asked, --yes has to say it; nothing is changed without."""
    flip(path_of(0))
    before = list(store.jobs(store.find_submission("otters").id))
    done = invoke("doctor", "--repair")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert list(store.jobs(before[0].submission)) == before
    assert invoke("doctor", "otters").exit_code == 2
