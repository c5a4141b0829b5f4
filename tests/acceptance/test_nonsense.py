"""What only a worker can find out: one clear sentence, the documented exit code, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.models import builtin_model_path
from storage.records import JobStatus
from tests.acceptance.farm import Farm

FAST = ("--size", "64x64", "--schedule", "karras", "--steps", "4")


def copy_of_the_model(folder: Path) -> Path:
    """Copy the demo model to where it can be broken."""
    return Path(shutil.copytree(builtin_model_path(), folder / "model"))


def check_refused(farm: Farm, model: Path, *words: str) -> None:
    """Render with a broken model: exit code 5, one sentence with these words, no traceback, no process."""
    out = farm.home.parent / "out"
    result = farm.run("render", "-p", "an otter", *FAST, "--model", f"mine={model}", "--out", str(out))
    assert result.returncode == 5, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert all(word in errors[0] for word in words), errors
    assert "Traceback" not in result.stderr
    assert farm.processes() == {}


def test_a_model_folder_without_a_unet_is_refused(farm: Farm) -> None:
    """The sentence names the missing part."""
    model = copy_of_the_model(farm.home.parent)
    shutil.rmtree(model / "unet")
    check_refused(farm, model, "unet")


def test_a_corrupt_safetensors_file_is_refused(farm: Farm) -> None:
    """The sentence names the file that is cut short."""
    model = copy_of_the_model(farm.home.parent)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    check_refused(farm, model, "diffusion_pytorch_model.safetensors")


def test_a_pickle_checkpoint_is_refused(farm: Farm) -> None:
    """A pickle can run any code, so it is not opened; the sentence says what to do instead."""
    checkpoint = farm.home.parent / "model.ckpt"
    checkpoint.write_bytes(b"\x80\x02}q\x00.")
    check_refused(farm, checkpoint, "is no safetensors", "from_single_file")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 3 MB; needs root and the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.getuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)],  # noqa: S607 - wherever mount is
        check=False,
        capture_output=True,
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("a full disk needs a small tmpfs, which only root may mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - wherever umount is


def test_a_full_picture_store_pauses_the_submission_and_resume_completes_it(
    farm: Farm, small_disk: Path
) -> None:
    """No picture fits: the job is not charged, the submission pauses with the reason, exit code 3."""
    store = small_disk / "images"
    filler = small_disk / "filler"
    _fill(filler)
    out = farm.home.parent / "out"
    settings = {"PROMPTMILL_STORE_URL": f"file://{store}"}
    prompts = [word for number in range(3) for word in ("-p", f"an otter, number {number}")]
    full = farm.run("render", *prompts, *FAST, "--model", "demo", "--out", str(out), **settings)
    assert full.returncode == 3, full.stderr
    assert "full" in full.stderr
    assert "Traceback" not in full.stderr
    assert farm.processes() == {}
    submission = farm.status("@last")["submission"]
    assert submission["state"] == "paused"
    assert submission["counts"]["waiting"] == 3
    assert {job.failures for job in farm.jobs(submission["id"])} == {0}
    filler.unlink()
    resumed = farm.run("render", "--resume", "@last", "--out", str(out), **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert farm.count(submission["id"], JobStatus.SUCCEEDED) == 3
    assert len(list(store.rglob("*.png"))) == 3


def test_a_home_on_a_full_disk_is_one_sentence(farm: Farm, small_disk: Path) -> None:
    """A submit that cannot write its rows ends with 3 and says that the disk is full."""
    _fill(small_disk / "filler")
    result = farm.run(
        "submit", "-p", "an otter", *FAST, "--model", "demo", PROMPTMILL_HOME=str(small_disk / "home")
    )
    assert result.returncode == 3, result.stderr
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_disk_that_fills_up_during_a_submit_loses_nothing_of_what_was_there(
    farm: Farm, small_disk: Path
) -> None:
    """The earlier submission is whole; the one that did not fit is not open, and says so."""
    home = {"PROMPTMILL_HOME": str(small_disk / "home")}
    first = farm.run("submit", "-p", "an otter", *FAST, "--model", "demo", **home)
    assert first.returncode == 0, first.stderr
    prompts = "".join(
        f"a long prompt about an otter, number {number} " + "x" * 400 + "\n" for number in range(9000)
    )
    second = farm.run("submit", "-", *FAST, "--model", "demo", given=prompts, **home)
    assert second.returncode == 3, second.stderr
    assert "Traceback" not in second.stderr
    status = farm.run("status", first.stdout.strip(), "--json", **home)
    assert status.returncode == 0, status.stderr
    assert '"waiting": 1' in status.stdout


def _fill(filler: Path) -> None:
    """Write until nothing more fits."""
    with filler.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        except OSError:
            return
