"""Rendering again: the same bytes from another worker in other company, what differs named, damage mended."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.models import builtin_model_path
from tests.acceptance.farm import Farm, wait_until

WORKER = ("--lanes", "4", "--dtype", "float32")
COUNT = 12
LIST = "".join(
    f"An emoji of an otter, number {number} --s {3 + number % 3} --l {(1, 5)[number % 2]} --d {number}\n"
    for number in range(COUNT)
)


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """A home with twelve pictures, called `otters`, whose worker is gone; and a second worker that serves."""
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        farm = Farm(Path(folder) / "home")
        try:
            prompts = farm.home.parent / "otters.txt"
            prompts.write_text(LIST)
            done = farm.run(
                *("render", str(prompts), "--model", "demo", "--size", "64x64", "--name", "otters"),
                *("--out", str(farm.home.parent / "out"), "--sampler", "euler_a", *WORKER),
            )
            assert done.returncode == 0, done.stderr
            farm.start_worker(*WORKER)
            yield farm
        finally:
            farm.close()


def reproduced(farm: Farm, *arguments: str, **environment: str) -> dict[str, Any]:
    """Return what `reproduce --json` says."""
    done = farm.run("reproduce", *arguments, "--json", **environment)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["reproduced"]
    assert done.returncode == (0 if found["byte_identical"] == found["pictures"] else 1), done.stderr
    return found


def test_another_worker_makes_the_same_bytes_in_other_company(farm: Farm) -> None:
    """A second life of the worker, with other samplers, sizes and steps beside; nothing is left of it."""
    company = farm.submit(8, "--steps", "7", "--sampler", "dpmpp_2m", "--guidance", "3")
    farm.submit(4, "--steps", "3", "--size", "64x128")
    found = reproduced(farm, "otters")
    assert (found["pictures"], found["byte_identical"]) == (COUNT, COUNT), found["results"]
    copied = next((farm.home.parent / "out").glob("000005*.png"))
    assert reproduced(farm, str(copied))["results"][0]["job"].endswith(":5")
    farm.wait_for(company, 8)
    assert "reproduce" not in {found.source for found in farm.store().submissions()}


def test_a_flipped_byte_a_missing_file_and_swapped_ones_are_found_and_mended(farm: Farm) -> None:
    """Verify names each with its job; a repair gives every job its own bytes back."""
    submission = farm.store().find_submission("otters")
    before = [job.image.file_sha256 for job in farm.audit(submission.id, COUNT) if job.image]
    paths = [farm.settings.images_path / job.image.key for job in farm.jobs(submission.id) if job.image]
    flipped = bytearray(paths[0].read_bytes())
    flipped[-40] ^= 1
    paths[0].write_bytes(flipped)
    paths[3].unlink()
    kept = paths[6].read_bytes()
    paths[6].write_bytes(paths[7].read_bytes())
    paths[7].write_bytes(kept)
    verified = farm.run("verify", "otters", "--json")
    assert verified.returncode == 1
    wrong = {one["job"]: one["fault"] for one in json.loads(verified.stdout)["verified"]["wrong"]}
    faults = {0: "damaged", 3: "missing", 6: "swapped", 7: "swapped"}
    assert wrong == {f"{submission.id}:{index}": fault for index, fault in faults.items()}
    repair = farm.run("doctor", "--repair", "otters", "--yes")
    assert repair.returncode == 0, repair.stderr
    assert farm.run("verify", "--all").returncode == 0
    after = farm.audit(submission.id, COUNT)
    assert [job.image.file_sha256 for job in after if job.image] == before
    assert {job.index for job in after if job.attempt > 1} == {0, 3}


def test_what_a_worker_does_otherwise_is_named(farm: Farm) -> None:
    """Of dtype, lanes, threads and the model's revision, each; a worker is started for it."""
    (worker,) = farm.workers()
    assert farm.run("worker", "drain", worker.name).returncode == 0
    wait_until(lambda: not farm.workers(), what="the worker is gone")
    changed = farm.home.parent / "changed"
    shutil.copytree(builtin_model_path(), changed)
    index = changed / "model_index.json"
    index.write_text(index.read_text() + "\n")
    found = reproduced(
        farm, "otters:0", "otters:1", "--model", f"demo={changed}", "--dtype", "bfloat16", "--lanes", "2",
        OMP_NUM_THREADS="2",
    )  # fmt: skip
    for result in found["results"]:
        assert result["outcome"] == "different"
        assert result["max_difference"] > 0
        assert not result["broken_promise"]
        named = {change["name"]: (change["before"], change["after"]) for change in result["changes"]}
        assert named["dtype"] == ("float32", "bfloat16")
        assert named["lanes"] == (4, 2)
        assert named["threads"] == (1, 2)
        assert "model_revision" in named
    assert farm.processes() == {}


def test_prune_leaves_neither_rows_nor_files(farm: Farm) -> None:
    """Of everything that there is."""
    for found in farm.store().submissions():
        if not farm.store().status(found.id, lease=farm.settings.lease).done:
            assert farm.run("cancel", found.id).returncode == 0
    assert farm.run("prune", "--older-than", "0m", "--yes").returncode == 0
    assert farm.store().submissions() == []
    assert list(farm.settings.images_path.iterdir()) == []
