"""`reproduce`, with a stand-in for workers: what it renders, what it says, what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from storage.errors import ModelLoadError, UnreachableError
from storage.jobstore import JobStore
from storage.records import Submission, SubmissionState
from storage.settings import Settings

Invoke = Callable[..., Result]
NUMERICS = {
    "model_revision": "abc", "mode": "exact", "dtype": "float32", "vae_dtype": "float32", "lanes": 8,
    "layout": "contiguous", "launch": "eager", "device_type": "cpu", "threads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_threads_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def submission(invoke: Invoke, stand_in: Any, store: JobStore) -> Submission:
    """Three pictures, coloured by their seeds; the worker is gone."""
    stand_in.numerics = NUMERICS
    stand_in.colour = lambda claim: claim.parameters.seed
    done = invoke("submit", "-p", "an otter", "--images", "3", "--seed", "7", "--name", "otters")
    assert done.exit_code == 0, done.stderr
    stand_in.start()
    stand_in.render()
    stand_in.stop()
    return store.find_submission("otters")


def fields(done: Result) -> dict[str, Any]:
    """Return what --json has printed."""
    found: dict[str, Any] = json.loads(done.stdout)["reproduced"]
    return found


def test_equal_pictures_are_said_to_be_equal_and_nothing_stays(
    invoke: Invoke, submission: Submission, processes: Any, store: JobStore, settings: Settings
) -> None:
    """A worker is started as it is recorded, and what it rendered is removed."""
    done = invoke("reproduce", "otters")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "Byte-identical: 3 of 3 pictures\n"
    (process,) = processes.started
    assert process.stopped
    assert (process.options.lanes, process.options.dtype) == (8, "float32")
    assert process.environment == {"OMP_NUM_THREADS": "2"}
    assert store.submissions() == [submission]
    assert [path.name for path in settings.images_path.iterdir()] == [submission.id]


def test_one_job_and_a_copied_file_are_found(
    invoke: Invoke, submission: Submission, processes: Any, tmp_path: Path
) -> None:
    """A file is known by its hash, wherever it lies and whatever it is called."""
    del processes
    invoke("export", "otters", "--to", "exported")
    copy = tmp_path / "copy of a picture"
    copy.write_bytes(next(Path("exported").glob("000002*")).read_bytes())
    found = fields(invoke("reproduce", "@last:1", str(copy), "--json"))
    assert [(one["name"], one["job"], one["outcome"]) for one in found["results"]] == [
        (f"{submission.id}:1", f"{submission.id}:1", "byte-identical"),
        (str(copy), f"{submission.id}:2", "byte-identical"),
    ]
    assert (found["pictures"], found["byte_identical"]) == (2, 2)


def test_what_differs_is_measured_and_named(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """By how much, and which values of the record are others."""
    del submission
    stand_in.colour = lambda claim: claim.parameters.seed + 2
    stand_in.numerics = NUMERICS | {"lanes": 4}
    done = invoke("reproduce", "otters", "--lanes", "4")
    assert done.exit_code == 1
    assert done.stdout.count("different: at most 2 of 255, PSNR ") == 3
    assert done.stdout.count("lanes: 8 → 4") == 1
    assert "BROKEN" not in done.stdout
    assert "3 of 3 pictures are not byte-identical" in done.stderr
    assert processes.started[0].options.lanes == 4


def test_what_differs_is_named_also_where_the_bytes_are_the_same(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """Other lanes often make the same picture; a hash is cut."""
    del submission, processes
    stand_in.numerics = NUMERICS | {"lanes": 4, "model_revision": "0123456789abcdef" * 4}
    done = invoke("reproduce", "otters")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "The same bytes, although the worker is not as recorded:",
        "  model_revision: abc → 0123456789ab…",
        "  lanes: 8 → 4",
        "Byte-identical: 3 of 3 pictures",
    ]


def test_a_broken_promise_is_said_loudly(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """Other bytes although nothing that is recorded differs."""
    del submission, processes
    stand_in.colour = lambda claim: claim.parameters.seed + (claim.index == 1)
    done = invoke("reproduce", "otters")
    assert done.exit_code == 1
    assert done.stdout.count("BROKEN") == 1
    assert "please report it" in done.stdout
    assert "Byte-identical: 2 of 3 pictures" in done.stdout


def test_a_job_that_fails_now_is_said(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """With its reason; the others are compared all the same."""
    del submission
    processes.behaviour = lambda _self: (stand_in.start(), stand_in.render(fail={2}))
    done = invoke("reproduce", "otters")
    assert done.exit_code == 1
    assert "not rendered: It came out black." in done.stdout
    assert "Byte-identical: 2 of 3 pictures" in done.stdout


def test_a_damaged_original_is_compared_by_its_recorded_hash(
    invoke: Invoke, submission: Submission, processes: Any, settings: Settings
) -> None:
    """What counts is what was rendered, not what became of the file."""
    del processes
    for path in (settings.images_path / submission.id).rglob("*.png"):
        path.write_bytes(b"damaged")
    assert invoke("reproduce", "otters").exit_code == 0


def test_kept_pictures_are_a_submission(
    invoke: Invoke, submission: Submission, processes: Any, store: JobStore
) -> None:
    """It says that it comes from a reproduction, and a later submit is not taken for it."""
    del processes
    assert invoke("reproduce", "otters", "--keep").exit_code == 0
    kept, first = store.submissions()
    assert first == submission
    assert (kept.source, kept.content_hash, kept.total) == ("reproduce", None, 3)
    assert [job.parameters for job in store.jobs(kept.id)] == [
        job.parameters for job in store.jobs(submission.id)
    ]


def test_pictures_of_other_workers_are_rendered_by_others(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """One worker for each kind, one after another."""
    del submission
    stand_in.numerics = NUMERICS | {"lanes": 2}
    invoke("submit", "-p", "a fox", "--seed", "1", "--name", "foxes")
    stand_in.start()
    stand_in.render()
    stand_in.stop()

    def as_ordered(process: Any) -> None:
        stand_in.numerics = NUMERICS | {"lanes": process.options.lanes}
        stand_in.start()
        stand_in.render()

    processes.behaviour = as_ordered
    done = invoke("reproduce", "otters", "foxes")
    assert done.stdout == "Byte-identical: 4 of 4 pictures\n"
    assert [process.options.lanes for process in processes.started] == [8, 2]


def test_what_was_compared_is_shown_when_a_later_worker_cannot_start(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any
) -> None:
    """With the error and the exit code of that worker."""
    del submission
    stand_in.numerics = NUMERICS | {"lanes": 2}
    invoke("submit", "-p", "a fox", "--seed", "1", "--name", "foxes")
    stand_in.start()
    stand_in.render()
    stand_in.stop()

    def behaviour(process: Any) -> None:
        if process.options.lanes == 2:
            raise ModelLoadError("The model's weights are gone.")
        stand_in.numerics = NUMERICS
        stand_in.start()
        stand_in.render()

    processes.behaviour = behaviour
    done = invoke("reproduce", "otters", "foxes")
    assert done.exit_code == 5
    assert done.stdout == "Byte-identical: 3 of 3 pictures\n"
    assert "weights are gone" in done.stderr


def test_a_live_worker_that_is_not_as_recorded_is_named(
    invoke: Invoke, submission: Submission, processes: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renders all the same."""
    del submission
    stand_in.start()
    monkeypatch.setattr("time.sleep", lambda _seconds: stand_in.render())
    done = invoke("reproduce", "otters:0")
    assert processes.started == []
    assert "is not as recorded: lanes 2, not 8" in done.stderr


def test_an_interrupted_one_is_left_cancelled(
    invoke: Invoke, submission: Submission, processes: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would compare what a worker rendered later; prune removes what is there."""
    del submission

    def interrupted(_self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "behaviour", interrupted)
    done = invoke("reproduce", "otters")
    assert done.exit_code == 130
    left = store.submissions()[0]
    assert (left.source, left.state) == ("reproduce", SubmissionState.CANCELLED)
    assert f"promptmill prune {left.id}" in done.stderr
    assert invoke("prune", left.id, "--yes").exit_code == 0


def test_results_are_shown_also_when_the_new_pictures_cannot_be_removed(
    invoke: Invoke, submission: Submission, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails at the end costs a remark, not the answer."""
    del submission, processes

    def down(*_: object) -> None:
        raise UnreachableError("The picture store is down.")

    monkeypatch.setattr("storage.imagestore.FsspecImageStore.delete_folder", down)
    done = invoke("reproduce", "otters")
    assert (done.exit_code, done.stdout) == (0, "Byte-identical: 3 of 3 pictures\n")
    assert "is down" in done.stderr


def picture(path: Path, record: object) -> Path:
    """Write a picture that says how it was made, if at all."""
    chunks = PngInfo()
    if record is not None:
        chunks.add_text("promptmill", json.dumps(record))
    Image.new("RGB", (64, 64), (9, 80, 160)).save(path, "PNG", pnginfo=chunks)
    return path


def test_a_file_that_no_database_knows_is_believed(
    invoke: Invoke, submission: Submission, processes: Any, store: JobStore, tmp_path: Path
) -> None:
    """Its own record says how to render it; a text that was added since then does no harm."""
    del processes
    parameters = store.find_job(f"{submission.id}:2").parameters
    record = {"version": 1, "parameters": PARAMETERS, "model": MODEL, "numerics": NUMERICS}
    assert {name: getattr(parameters, name) for name in PARAMETERS} == PARAMETERS
    found = fields(invoke("reproduce", str(picture(tmp_path / "p.png", record)), "--json"))
    (result,) = found["results"]
    assert (result["outcome"], result["job"], result["changes"]) == ("pixel-identical", None, [])
    assert (result["texts"], result["broken_promise"]) == (["promptmill"], False)


PARAMETERS = {
    "prompt": "an otter", "negative_prompt": "", "seed": 9, "num_inference_steps": 30, "guidance_scale": 7.5,
    "width": 64, "height": 64, "sampler": "lms", "schedule": "default", "options": {},
}  # fmt: skip
MODEL = {"name": "demo", "source": None}


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"parameters": {"prompt": "x"}},
        {"parameters": 3},
        {"parameters": PARAMETERS | {"seed": "nine"}, "model": MODEL, "numerics": NUMERICS},
        {"parameters": PARAMETERS | {"width": 9}, "model": MODEL, "numerics": NUMERICS},
        {"parameters": PARAMETERS, "model": "demo", "numerics": NUMERICS},
        {"parameters": PARAMETERS, "model": MODEL | {"name": "../x"}, "numerics": NUMERICS},
        {"parameters": PARAMETERS, "model": MODEL, "numerics": NUMERICS | {"mode": "fast"}},
        {"parameters": PARAMETERS, "model": MODEL, "numerics": [1]},
    ],
)
def test_a_file_that_says_nothing_is_refused(
    invoke: Invoke, record: object, tmp_path: Path, store: JobStore
) -> None:
    """Before anything is written, in one sentence."""
    done = invoke("reproduce", str(picture(tmp_path / "p.png", record)))
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert store.submissions() == []


def test_what_names_nothing_is_refused(
    invoke: Invoke, submission: Submission, store: JobStore, tmp_path: Path
) -> None:
    """A file that is no picture, a job without one, a submission without any, nothing at all."""
    (tmp_path / "no.png").write_text("no picture")
    invoke("submit", "-p", "a fox", "--name", "foxes")
    cases = {
        "x" * 300: "no submission",
        str(tmp_path / "no.png"): "is no picture",
        str(tmp_path / "missing.png"): "neither a file nor a submission",
        "foxes": "has no picture yet",
        "foxes:0": "it is waiting",
        "otters:99": "no job 99",
        "nobody": "no submission",
    }
    for reference, reason in cases.items():
        done = invoke("reproduce", "otters", reference)
        assert done.exit_code == 2, reference
        assert reason in done.stderr, reference
    assert invoke("reproduce").exit_code == 2
    assert len(store.submissions()) == 2
    del submission


def test_a_model_that_nobody_knows_is_refused(
    invoke: Invoke, farmhand: Any, store: JobStore, submission: Submission
) -> None:
    """With the flag that says where it is; one flag cannot say it of two models."""
    del submission
    worker = farmhand("other")
    worker.start()
    invoke("submit", "-p", "a fox", "--model", "other", "--name", "foxes")
    worker.render()
    worker.stop()
    done = invoke("reproduce", "foxes")
    assert done.exit_code == 2
    assert "--model other=REPO_OR_PATH" in done.stderr
    assert "of models demo, other" in invoke("reproduce", "foxes", "otters", "--model", "demo").stderr
    assert len(store.submissions()) == 2
