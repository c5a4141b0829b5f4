"""Parameters out of pictures: ours, A1111's in every place where it stands, and those of other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producer.jobs import JobOptions
from producer.lines import Line, Problem
from producer.readers.image import read_image
from storage.infotext import write_infotext
from storage.parameters import JobParameters
from storage.picture_metadata import EXIF_IFD, USER_COMMENT
from storage.picture_record import Record, write_record

A1111 = (
    "a (fox:1.3) in snow\nNegative prompt: blurry, dark\n"
    "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 512x768"
)
OF_A1111 = {
    "negative_prompt": "blurry, dark", "num_inference_steps": 25, "guidance_scale": 6.5,
    "sampler": "dpmpp_2m", "schedule": "karras", "width": 512, "height": 768,
    "options": {"prompt_syntax": "weighted"},
}  # fmt: skip


def png(folder: Path, **texts: str) -> str:
    """Write a PNG with these text chunks."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    path = folder / "picture.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return str(path)


def with_comment(folder: Path, suffix: str, comment: bytes) -> str:
    """Write a picture whose EXIF has a UserComment."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    path = folder / f"picture.{suffix}"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return str(path)


def read(name: str, **flags: Any) -> Line:
    """Read a picture that can be read."""
    found = read_image(name, JobOptions(**flags))
    assert isinstance(found, Line), found
    return found


def test_our_own_picture_makes_the_same_job(tmp_path: Path) -> None:
    """All that the infotext holds, options included; brackets mean what they meant."""
    job = JobParameters(
        prompt='a (fox), two: "x"', negative_prompt="dark", seed=2**40, num_inference_steps=12,
        guidance_scale=4.25, width=64, height=128, sampler="ddim", schedule="default",
        options={"eta": 0.5, "guidance_interval": [0.1, 0.9]},
    )  # fmt: skip
    text = write_infotext(job, model="demo", model_hash="abc", version="1.0")
    line = read(png(tmp_path, parameters=text))
    assert (line.prompt, line.seeds) == (job.prompt, (job.seed,))
    assert {"schedule": "default", **line.settings} == {
        name: getattr(job, name)
        for name in (
            "negative_prompt", "num_inference_steps", "guidance_scale", "width", "height", "sampler",
            "schedule", "options",
        )
    }  # fmt: skip
    assert line.extra == {"from_image": "picture.png"}


def test_our_record_is_preferred_to_the_infotext(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds everything; one that was cut is said, and the infotext is taken."""
    options = {"image_format": "jpeg", "quality": 70, "guidance_interval": [0.1, 0.9]}
    job = JobParameters(prompt="a fox\nNegative prompt: in it", seed=5, width=64, height=64, options=options)
    text = write_record(Record(parameters=job, model="demo", source=None, numerics={}))
    line = read(png(tmp_path, parameters=A1111, promptmill=text))
    assert (line.prompt, line.seeds) == (job.prompt, (5,))
    assert line.settings["options"] == options
    again = read(png(tmp_path, promptmill=text), said=frozenset({"image_format"}))
    assert again.settings["options"] == {"guidance_interval": [0.1, 0.9]}  # the quality was the JPEG's
    jpeg = {"image_format": "jpeg"}
    again = read(png(tmp_path, promptmill=text), said=frozenset(jpeg), options=jpeg)
    assert again.settings["options"] == {"quality": 70, "guidance_interval": [0.1, 0.9]}
    assert capsys.readouterr().err == ""
    line = read(png(tmp_path, parameters=A1111, promptmill=text[:-9]))
    assert line.seeds == (77,)
    assert "Its infotext is taken instead." in capsys.readouterr().err
    found = read_image(png(tmp_path, promptmill=text[:-9]), JobOptions())
    assert isinstance(found, Problem)
    assert "it was changed or cut" in found.reason


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"ASCII\0\0\0" + A1111.encode(),
        b"\0" * 8 + A1111.encode(),
    ],
    ids=["big-endian", "little-endian", "ascii", "undefined"],
)
def test_a1111s_exif(suffix: str, comment: bytes, tmp_path: Path) -> None:
    """However the comment is written."""
    line = read(with_comment(tmp_path, suffix, comment))
    assert (line.prompt, line.seeds, line.settings) == ("a (fox:1.3) in snow", (77,), OF_A1111)


def test_flags_and_sweeps_beat_the_picture(tmp_path: Path) -> None:
    """It is where one begins; a sampler that is typed does not get the picture's schedule."""
    name = png(tmp_path, parameters=A1111)
    line = read(name, num_inference_steps=9, sampler="euler", seeds=(1, 2), negative_prompt="cat")
    assert line.seeds == ()
    assert line.settings == {
        name: value for name, value in OF_A1111.items()
        if name not in ("num_inference_steps", "sampler", "schedule", "negative_prompt")
    }  # fmt: skip
    line = read(name, sweep=({"guidance_scale": 3.0, "seed": 4}, {"guidance_scale": 5.0, "seed": 5}))
    assert line.seeds == ()
    assert "guidance_scale" not in line.settings


def comfyui() -> dict[str, str]:
    """Return what ComfyUI writes of a small workflow."""
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 5, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal",
                "denoise": 1.0,
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["5", 0],
            },
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    }  # fmt: skip
    links = [
        [1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "CONDITIONING"], [3, 3, 0, 4, 2, "CONDITIONING"],
        [4, 1, 1, 2, 0, "CLIP"], [5, 1, 1, 3, 0, "CLIP"], [6, 5, 0, 4, 3, "LATENT"],
    ]  # fmt: skip
    return {"prompt": json.dumps(nodes), "workflow": json.dumps({"nodes": [], "links": links})}


def test_a_picture_of_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through sd-parsers, which is an extra: without it the error names that."""
    name = png(tmp_path, **comfyui())
    line = read(name)
    assert (line.prompt, line.seeds) == ("a fox", (5,))
    assert line.settings["negative_prompt"] == "blurry"
    assert (line.settings["num_inference_steps"], line.settings["sampler"]) == (20, "euler")
    monkeypatch.setitem(sys.modules, "sd_parsers", None)
    found = read_image(name, JobOptions())
    assert isinstance(found, Problem)
    assert "promptmill[images]" in found.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        (b"not a picture", "this is no picture"),
        (b"\x89PNG\r\n\x1a\n", "this is no picture"),
    ],
)
def test_what_is_no_picture_is_one_sentence(content: bytes | None, reason: str, tmp_path: Path) -> None:
    """With its name."""
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    found = read_image(str(path), JobOptions())
    assert isinstance(found, Problem)
    assert reason in found.reason
    assert found.file == str(path)


def test_a_picture_that_says_nothing_and_a_sampler_nobody_knows(tmp_path: Path) -> None:
    """Nothing is guessed."""
    found = read_image(png(tmp_path), JobOptions())
    assert isinstance(found, Problem)
    assert "does not say how it was made" in found.reason
    name = png(tmp_path, parameters=A1111.replace("DPM++ 2M", "Magic"))
    found = read_image(name, JobOptions())
    assert isinstance(found, Problem)
    assert "its sampler 'Magic' has no counterpart here" in found.reason
    assert read(name, sampler="lms").prompt == "a (fox:1.3) in snow"
