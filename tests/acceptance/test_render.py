"""`render`: everything in one go, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from storage.records import JobStatus
from tests.acceptance.farm import PATIENCE, Farm

PROMPTS = [
    "A watercolor painting of an otter",
    "a neon sign of a fox",
    "pixel art of a penguin on a red background",
]
FAST = ("--model", "demo", "--size", "64x64", "--schedule", "karras", "--guidance", "5")


def test_render_writes_pictures_in_the_order_of_the_prompts_and_leaves_nothing_running(farm: Farm) -> None:
    """Pictures of every format, captions and contact sheet land in --out; worker and Redis are gone then.

    Each picture says how it was made, and the database knows it by its bytes.
    """
    out = farm.home.parent / "out"
    prompts = farm.home.parent / "prompts.csv"
    rows = zip(PROMPTS, ("png", "jpeg", "webp"), strict=True)
    prompts.write_text("prompt,image_format\n" + "".join(f"{prompt},{name}\n" for prompt, name in rows))
    result = farm.run("render", str(prompts), *FAST, "--steps", "8", "--seed", "32", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert str(out) in result.stdout
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == PROMPTS
    assert [next(iter(line)) for line in lines] == ["file_name"] * 3
    pictures = [out / line["file_name"] for line in lines]
    assert [path.suffix for path in pictures] == [".png", ".jpg", ".webp"]
    inspected = farm.run("inspect", *map(str, pictures), "--json")
    said = json.loads(inspected.stdout)["pictures"]
    assert [picture["format"] for picture in said] == ["png", "jpeg", "webp"]
    assert [picture["said"]["prompt"] for picture in said] == PROMPTS
    assert [picture["stored"][0]["job"] for picture in said] == [line["job"] for line in lines]
    assert all(picture["numerics"]["versions"]["torch"] for picture in said)
    assert (out / "contact-sheet.png").is_file()
    assert farm.processes() == {}
    assert not list(farm.home.glob("redis/*.sock"))


def test_ctrl_c_leaves_no_process_and_no_socket_and_a_later_worker_completes(farm: Farm) -> None:
    """An interrupted render ends with 130; a worker renders the rest, `--resume` writes it."""
    out = farm.home.parent / "out"
    prompts = farm.home.parent / "prompts.txt"
    prompts.write_text("\n".join(f"{prompt}, number {number}" for number in range(10) for prompt in PROMPTS))
    render = farm.start("render", str(prompts), *FAST, "--steps", "60", "--name", "mine", "--out", str(out))
    while not farm.home.joinpath("promptmill.db").exists() or farm.run("status", "mine").returncode:
        assert render.poll() is None, farm.output(render)
    submission = farm.status("mine")["submission"]["id"]
    farm.wait_for(submission, 2)
    render.send_signal(signal.SIGINT)
    assert render.wait(timeout=PATIENCE) == 130, farm.output(render)
    assert farm.processes() == {}
    assert not list(farm.home.glob("redis/*.sock"))
    assert farm.count(submission, JobStatus.RUNNING) == 0
    assert farm.count(submission, JobStatus.WAITING, JobStatus.QUEUED) > 0
    worker = farm.start_worker()
    farm.wait_for(submission, 30)
    assert farm.stop(worker) == 0
    resumed = farm.run("render", "--resume", submission, "--out", str(out))
    assert resumed.returncode == 0, resumed.stderr
    farm.audit(submission, 30)
    assert len(list(Path(out).glob("0*.png"))) == 30
    assert farm.processes() == {}
