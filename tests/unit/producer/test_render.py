"""Render from end to end, with a stand-in for the worker process."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image as Picture

from producer.pictures import HIDDEN_MARKER, slug
from storage.errors import ModelLoadError
from storage.jobstore import JobStore
from storage.records import Claim, Finish, Image, SubmissionState
from tests.stand_in_process import StandInProcess

Invoke = Callable[..., Result]


def test_render_writes_pictures_in_order_with_metadata_and_sheet(
    invoke: Invoke, processes: type[StandInProcess]
) -> None:
    """Everything in one go, and what was started is stopped."""
    done = invoke(
        "render", "-p", "An otter, swimming!", "-p", "狐狸", "--images", "2", "--seed", "5", "--out", "o",
        "--lanes", "4",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == ["Pictures: o (4)", "Contact sheet: o/contact-sheet.png"]
    names = sorted(path.name for path in Path("o").glob("0*"))
    assert names == [
        "000000-an-otter-swimming.png", "000001-an-otter-swimming.png", "000002-狐狸.png", "000003-狐狸.png",
    ]  # fmt: skip
    rows = [json.loads(line) for line in Path("o/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [next(iter(row)) for row in rows] == ["file_name"] * 4
    assert [(row["file_name"], row["seed"]) for row in rows] == list(zip(names, [5, 6, 5, 6], strict=True))
    assert rows[0]["text"] == "An otter, swimming!"
    Picture.open("o/contact-sheet.png").verify()
    (process,) = processes.started
    assert process.stopped
    assert (process.options.lanes, process.options.parent_pipe) == (4, True)


def test_render_goes_to_out_by_name_or_id(invoke: Invoke, processes: type[StandInProcess]) -> None:
    """Without --out, the folder is named for the submission."""
    del processes
    assert "Pictures: out/otters (1)" in invoke("render", "-p", "an otter", "--name", "otters").stdout
    assert "Pictures: out/" in invoke("render", "-p", "an otter").stdout


def test_live_worker_is_used_and_own_options_are_said_to_be_idle(
    invoke: Invoke, processes: type[StandInProcess], stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second worker is started beside one that serves the model."""
    stand_in.start()
    monkeypatch.setattr("time.sleep", lambda _seconds: stand_in.render())
    done = invoke("render", "-p", "an otter", "--dtype", "float32")
    assert done.exit_code == 0
    assert processes.started == []
    assert "Warning: --dtype would only concern a worker of our own" in done.stderr


def test_failed_jobs_end_with_1_and_the_rest_is_written(
    invoke: Invoke, processes: type[StandInProcess], stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What succeeded is there; what failed is named with its reason."""

    def behaviour(_self: object) -> None:
        stand_in.start()
        stand_in.render(fail={1})

    monkeypatch.setattr(processes, "behaviour", behaviour)
    done = invoke("render", "-p", "an otter", "--images", "3", "--out", "o")
    assert done.exit_code == 1
    assert "Pictures: o (2)" in done.stdout
    assert "It came out black." in done.stderr


def test_interrupted_render_stops_its_worker_and_can_be_resumed(
    invoke: Invoke, processes: type[StandInProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C says how to go on, and going on completes the same submission in the same folder."""

    def interrupts(_self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(processes, "behaviour", interrupts)
        broken = invoke("render", "-p", "an otter", "--out", "o")
    assert broken.exit_code == 130
    assert all(process.stopped for process in processes.started)
    submission = json.loads(Path("o/promptmill.json").read_text())["submission"]
    hint = f"promptmill render --resume {submission} --out o"
    assert f"0 of 1 picture done and kept. Go on with `{hint}`" in broken.stderr
    done = invoke(*hint.split()[1:])
    assert done.exit_code == 0, done.stderr
    assert "Pictures: o (1)" in done.stdout
    again = invoke(*hint.split()[1:])
    assert (again.exit_code, again.stdout) == (0, done.stdout)


def test_worker_that_cannot_load_ends_render_with_its_error(
    invoke: Invoke, processes: type[StandInProcess], store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's sentence and exit code become render's, and the submission is kept."""

    def fails(_self: object) -> None:
        raise ModelLoadError("Model demo has no unet folder.")

    monkeypatch.setattr(processes, "behaviour", fails)
    done = invoke("render", "-p", "an otter", "--out", "o")
    assert done.exit_code == 5
    assert "Error: Model demo has no unet folder. Submission" in done.stderr
    assert "is kept; go on with `promptmill render --resume" in done.stderr
    assert store.submissions()[0].state is SubmissionState.OPEN


def test_submission_paused_by_a_fault_ends_render_with_3(
    invoke: Invoke, processes: type[StandInProcess], store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full store is told with its reason; --resume opens the submission again."""

    def pauses(_self: object) -> None:
        store.pause(store.submissions()[0].id, note="the picture store is full")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "behaviour", pauses)
        done = invoke("render", "-p", "an otter", "--out", "o")
    assert done.exit_code == 3
    assert "paused: the picture store is full" in done.stderr
    assert invoke("render", "--resume", "@last", "--out", "o").exit_code == 0


@pytest.mark.parametrize(
    ("args", "said_with"),
    [
        (["--out", "full"], ("holds other files", 2)),
        (["--out", "file"], ("is a file, not a folder", 2)),
        (["--out", "file/below"], ("cannot be made", 2)),
        (["--model", "nosuch"], ("There is no model 'nosuch'", 2)),
        (["--model", "./missing"], ("there is nothing at", 5)),
        (["--lanes", "0"], ("Lanes '0'", 2)),
        (["--devices", "toaster"], ("There is no device 'toaster'", 2)),
        (["--devices", "97"], ("There is no GPU 97", 2)),
        (["--mode", "reference", "--dtype", "bfloat16"], ("float32 only", 2)),
        (["--mode", "reference", "--compile"], ("takes neither --compile nor --cuda-graphs", 2)),
        (["--compile", "--cuda-graphs"], ("do not go together", 2)),
        (["--cuda-graphs", "--devices", "cpu"], ("needs an NVIDIA GPU", 2)),
        (["--cuda-graphs"], ("--devices auto finds none", 2)),
        (["--lanes", "3"], ("an even number of lanes", 2)),
        (["--lanes", "1", "--mode", "throughput"], ("too few", 2)),
        (["--size", "513x512"], ("Width 513", 2)),
        (["none.txt"], ("there is no such file", 2)),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    invoke: Invoke,
    processes: type[StandInProcess],
    store: JobStore,
    args: list[str],
    said_with: tuple[str, int],
) -> None:
    """One sentence, the documented exit code, no submission and no worker."""
    said, code = said_with
    Path("full").mkdir()
    Path("full/mine.png").write_text("mine")
    Path("file").write_text("")
    done = invoke("render", "-p", "an otter", *args)
    assert done.exit_code == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.submissions() == []
    assert processes.started == []
    assert Path("full/mine.png").read_text() == "mine"


def test_folder_of_another_submission_is_refused(invoke: Invoke, processes: type[StandInProcess]) -> None:
    """Pictures of two submissions are never mixed."""
    del processes
    invoke("render", "-p", "an otter", "--out", "o")
    done = invoke("render", "-p", "a fox", "--out", "o")
    assert done.exit_code == 2
    assert "holds the pictures of submission" in done.stderr


def test_key_makes_render_repeatable(invoke: Invoke, processes: type[StandInProcess]) -> None:
    """The same key finds the same submission and folder again."""
    first = invoke("render", "-p", "an otter", "--out", "o", "--key", "k")
    again = invoke("render", "-p", "an otter", "--out", "o", "--key", "k")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.stdout == again.stdout
    assert len(processes.started) == 1


@pytest.mark.parametrize("args", [["-p", "an otter"], ["prompts.txt"], ["--steps", "5"]])
def test_resume_refuses_what_it_would_ignore(
    invoke: Invoke, processes: type[StandInProcess], args: list[str]
) -> None:
    """A submission's jobs are what they are."""
    del processes
    invoke("submit", "-p", "an otter")
    done = invoke("render", "--resume", "@last", *args)
    assert done.exit_code == 2
    assert f"leave out {'--prompt' if args[0] == '-p' else args[0]}" in done.stderr


def test_resume_of_a_cancelled_submission_names_retry(
    invoke: Invoke, processes: type[StandInProcess]
) -> None:
    """Cancelled jobs come back by retry only."""
    del processes
    invoke("submit", "-p", "an otter")
    invoke("cancel", "@last")
    done = invoke("render", "--resume", "@last")
    assert done.exit_code == 2
    assert "promptmill retry" in done.stderr


def test_signals_are_ours_again_afterwards(invoke: Invoke, processes: type[StandInProcess]) -> None:
    """Render leaves no signal handler behind."""
    del processes
    before = signal.getsignal(signal.SIGTERM)
    invoke("render", "-p", "an otter")
    assert signal.getsignal(signal.SIGTERM) is before


def test_export_writes_an_imagefolder_and_can_be_repeated(
    invoke: Invoke, processes: type[StandInProcess]
) -> None:
    """No sheet; a second run leaves identical files alone and restores missing ones."""
    del processes
    invoke("render", "-p", "an otter", "--images", "2", "--name", "otters")
    done = invoke("export", "otters", "--format", "imagefolder", "--to", "x")
    assert (done.exit_code, done.stdout) == (0, "x\n")
    names = sorted(path.name for path in Path("x").iterdir())
    pictures = ["000000-an-otter.png", "000001-an-otter.png"]
    assert names == [HIDDEN_MARKER, *pictures, "README.md", "metadata.jsonl"]
    kept = Path("x/000000-an-otter.png").stat().st_mtime_ns
    Path("x/000001-an-otter.png").unlink()
    assert invoke("export", "otters", "--to", "x").exit_code == 0
    assert Path("x/000000-an-otter.png").stat().st_mtime_ns == kept
    assert Path("x/000001-an-otter.png").is_file()
    invoke("submit", "-p", "a fox")
    assert invoke("export", "@last", "--to", "x").exit_code == 2


def test_a_sidecar_holds_what_is_known_of_its_picture(
    invoke: Invoke, processes: type[StandInProcess]
) -> None:
    """The prompt file's own columns included; `render` and `export` write the same one."""
    del processes
    Path("list.csv").write_text("prompt,eta,sampler,rating\nan otter,0.5,ddim,good\n")
    assert invoke("render", "list.csv", "--out", "r", "--name", "otters", "--sidecar").exit_code == 0
    assert invoke("export", "otters", "--to", "x", "--sidecar").exit_code == 0
    written = Path("r/000000-an-otter.json").read_bytes()
    assert Path("x/000000-an-otter.json").read_bytes() == written
    told = json.loads(written)
    assert (told["version"], told["job"]) == (1, f"{told['submission']['id']}:0")
    assert (told["submission"]["name"], told["model"]["name"], told["format"]) == ("otters", "demo", "png")
    assert (told["parameters"]["prompt"], told["parameters"]["options"]) == ("an otter", {"eta": 0.5})
    assert (told["extra"], told["numerics"]) == ({"rating": "good"}, {"lanes": 2})
    picture = Path("x/000000-an-otter.png").read_bytes()
    assert told["file_sha256"] == hashlib.sha256(picture).hexdigest()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("An otter, swimming!", "an-otter-swimming"),
        ("../../etc", "etc"),
        ("!!!", "picture"),
        ("é" * 80, "é" * 30),
    ],
)
def test_slug_is_a_safe_short_file_name(prompt: str, expected: str) -> None:
    """No separator, no leading dot, bounded in bytes."""
    assert slug(prompt) == expected


def test_a_dry_run_renders_and_writes_nothing(
    invoke: Invoke, processes: type[StandInProcess], store: JobStore
) -> None:
    """It shows what `submit --dry-run` shows, and bad input is said as it would be."""
    done = invoke("render", "-p", "an otter", "--seed", "1,2", "--out", "o", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 jobs of 1 prompt for demo"
    assert "Nothing was submitted: --dry-run." in done.stderr
    assert not Path("o").exists()
    assert processes.started == []
    assert store.submissions() == []
    assert invoke("render", "-p", "an otter", "--steps", "0", "--dry-run").exit_code == 2
    assert "leave out --dry-run" in invoke("render", "--resume", "@last", "--dry-run").stderr


def test_a_picture_that_was_taken_over_says_where_it_came_from(
    invoke: Invoke, processes: type[StandInProcess], stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `show` and in the metadata of the folder."""

    def copies(claim: Claim, image: Image) -> Finish:
        return finish(claim, replace(image, copied_from="abcd2345:7" if claim.index else None))

    finish = stand_in.store.finish
    monkeypatch.setattr(stand_in.store, "finish", copies)
    assert processes.started == []
    assert invoke("render", "-p", "an otter", "--images", "2", "--out", "o").exit_code == 0
    rows = [json.loads(line) for line in Path("o/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("copied_from") for row in rows] == [None, "abcd2345:7"]
    assert "abcd2345:7" in invoke("show", "@last:1").stdout
    assert "copied from" not in invoke("show", "@last:0").stdout
