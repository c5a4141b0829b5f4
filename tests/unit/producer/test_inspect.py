"""`inspect`: what a picture says of itself, and what the database knows of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from storage.parameters import JobParameters
from storage.picture_metadata import Texts, exif_of
from storage.picture_record import Record, write_record
from worker.stages.picture import encode_picture

Invoke = Callable[..., Result]
PIXELS = np.zeros((8, 8, 3), dtype=np.uint8)
A1111 = (
    "a (fox:1.3)\nNegative prompt: blurry\n"
    "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 512x768"
)


def ours(**options: Any) -> bytes:
    """Return a picture as a worker writes it."""
    job = JobParameters(prompt="an otter", seed=9, width=64, height=64, options=options)
    numerics = {"model_revision": "c" * 40, "lanes": 8}
    record = Record(parameters=job, model="sd15", source="owner/repo", numerics=numerics)
    return encode_picture(PIXELS, Texts(infotext=A1111, record=write_record(record)), options)


def png(**texts: str) -> bytes:
    """Return a PNG with these text chunks."""
    info, buffer = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def inspected(invoke: Invoke, *files: Path) -> list[dict[str, Any]]:
    """Inspect files that something is known of."""
    done = invoke("inspect", *files, "--json")
    assert done.exit_code == 0, done.stderr
    pictures: list[dict[str, Any]] = json.loads(done.stdout)["pictures"]
    return pictures


@pytest.mark.parametrize("options", [{}, {"image_format": "jpeg"}, {"image_format": "webp", "quality": 50}])
def test_our_picture_tells_everything_without_a_database(
    options: dict[str, Any], invoke: Invoke, home: Path
) -> None:
    """In every format; and to look makes no database."""
    Path("x").write_bytes(ours(**options))
    (picture,) = inspected(invoke, Path("x"))
    assert (picture["written_by"], picture["problem"], picture["stored"]) == ("promptmill", None, None)
    assert (picture["said"]["prompt"], picture["said"]["seed"]) == ("an otter", 9)
    assert picture["said"]["options"] == options
    assert (picture["source"], picture["revision"]) == ("owner/repo", "c" * 40)
    assert picture["numerics"]["lanes"] == 8
    shown = invoke("inspect", "x")
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()][:6] == [
        "file", "format", "file sha256", "written by", "pixels", "prompt",
    ]  # fmt: skip
    assert "not known, since there is no database here" in shown.stdout
    assert not home.exists()


def test_the_database_knows_a_picture_by_its_bytes(invoke: Invoke, stand_in: Any) -> None:
    """A stored one with its job, whatever it says; one that was changed is no stored one any more."""
    invoke("submit", "-p", "a fox", "--name", "foxes")
    stand_in.start()
    stand_in.render()
    invoke("export", "foxes", "--to", "x")
    stored = Path("x/000000-a-fox.png")  # the stand-in writes no texts
    shown = invoke("inspect", stored)
    assert shown.exit_code == 0
    assert "(foxes), succeeded" in shown.stdout
    assert "does not say how it was made" in shown.stdout
    (picture,) = inspected(invoke, stored)
    (job,) = picture["stored"]
    assert (job["submission_name"], job["worker"], job["status"]) == ("foxes", "demo@here", "succeeded")
    assert Path(job["image_path"]).read_bytes() == stored.read_bytes()
    changed = Path("changed.png")
    changed.write_bytes(ours() + b"\n")
    (picture,) = inspected(invoke, changed)
    assert (picture["said"]["prompt"], picture["stored"]) == ("an otter", [])
    assert "no stored picture has these bytes" in invoke("inspect", changed).stdout


def test_pictures_of_others_are_understood(invoke: Invoke) -> None:
    """A1111's infotext, and through sd-parsers what others write."""
    Path("a.png").write_bytes(png(parameters=A1111))
    meta = {"positive_prompt": "a bee", "seed": 3, "steps": 5, "cfg_scale": 7.0, "scheduler": "euler"}
    Path("b.png").write_bytes(png(invokeai_metadata=json.dumps(meta)))
    first, second = inspected(invoke, Path("a.png"), Path("b.png"))
    assert (first["written_by"], first["said"]["sampler"], first["infotext"]) == (
        "infotext",
        "dpmpp_2m",
        A1111,
    )
    assert (second["written_by"], second["said"]["prompt"]) == ("InvokeAI", "a bee")


def test_a_comment_is_no_infotext(invoke: Invoke) -> None:
    """A camera's is nobody's prompt; Fooocus writes JSON there, and the next picture is not taken for it."""
    fooocus = {
        "prompt": "a hen", "negative_prompt": "", "base_model": "m", "base_model_hash": "h",
        "sampler": "euler", "seed": 3, "steps": 5, "guidance_scale": 4.0,
    }  # fmt: skip
    for name, comment in (("a", json.dumps(fooocus)), ("b", "Holiday in Spain"), ("c", A1111)):
        Image.new("RGB", (8, 8)).save(f"{name}.jpg", exif=b"Exif\0\0" + exif_of(comment))
    for _ in range(3):
        (hen,) = inspected(invoke, Path("a.jpg"))
        assert (hen["written_by"], hen["said"]["prompt"]) == ("Fooocus", "a hen")
        done = invoke("inspect", "b.jpg", "c.jpg")
        assert done.exit_code == 2
        assert "b.jpg: it does not say how it was made." in done.stderr
        assert "a (fox:1.3)" in done.stdout


def test_a_record_that_was_changed_is_said_and_the_infotext_shown(invoke: Invoke) -> None:
    """Nothing is taken for ours that is not whole."""
    Path("x.png").write_bytes(png(parameters=A1111, promptmill='{"version":1}'))
    (picture,) = inspected(invoke, Path("x.png"))
    assert "it was changed or cut" in picture["problem"]
    assert (picture["said"]["seed"], picture["numerics"]) == (77, None)


def test_what_nobody_knows_is_bad_input_after_all_else(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that can be read is shown first."""
    monkeypatch.setitem(sys.modules, "sd_parsers", None)
    Path("good.png").write_bytes(ours())
    Path("blank.png").write_bytes(png())
    Path("note.txt").write_text("no picture")
    done = invoke("inspect", "blank.png", "note.txt", "nosuch.png", ".", "/dev/zero", "good.png")
    assert done.exit_code == 2
    assert "an otter" in done.stdout
    for said in (
        "5 files", "blank.png: it does not say how it was made", "promptmill[images]",
        "note.txt: this is no picture", "nosuch.png: there is no such file", ".: this is a folder",
        "/dev/zero: this is a device",
    ):  # fmt: skip
        assert said in done.stderr
    said = "Error: note.txt: this is no picture; name a PNG, JPEG or WebP file.\n"
    assert invoke("inspect", "note.txt").stderr == said
    assert invoke("inspect").exit_code == 2


def test_a_database_that_cannot_be_asked_hides_nothing(invoke: Invoke, home: Path) -> None:
    """What the picture says is shown, then the fault is, with its exit code."""
    home.mkdir()
    (home / "promptmill.db").write_bytes(b"this is no database, but somebody's letter" * 100)
    Path("x.png").write_bytes(ours())
    done = invoke("inspect", "x.png")
    assert done.exit_code == 3
    assert "an otter" in done.stdout
    assert "not known, since the database cannot be asked" in done.stdout
    assert str(home) in done.stderr
