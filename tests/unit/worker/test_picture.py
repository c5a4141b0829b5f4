"""What is written into a picture is what readers find in it: A1111's own rules, sd-parsers, and ours."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from storage.infotext import write_infotext
from storage.parameters import IMAGE_FORMATS, JobParameters, check_job
from storage.picture_metadata import EXIF_IFD, USER_COMMENT, Texts, read_texts
from storage.picture_record import Record, read_record, write_record
from storage.samplers import SAMPLERS, SCHEDULES
from worker.stages.picture import encode_picture, encoder_versions

# Grey noise: WebP has colours at half resolution, whatever its quality.
PIXELS = np.random.default_rng(7).integers(0, 256, (16, 24, 1), dtype=np.uint8).repeat(3, axis=2)
ALIVE: list[Any] = []
NUMERICS = {"model_revision": "0" * 64, "lanes": 8, "versions": {"torch": "2.13"}}

# A1111's modules/infotext_utils.py: how it reads a line of parameters.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")


def read_as_a1111(text: str) -> dict[str, str]:
    """Read an infotext as A1111's `parse_generation_parameters` does, which strips every line."""
    *lines, last = text.strip().split("\n")
    if len(PAIR.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompts = {"Prompt": "", "Negative prompt": ""}
    part = "Prompt"
    for each in lines:
        line = each.strip()
        if line.startswith("Negative prompt:"):
            part, line = "Negative prompt", line[16:].strip()
        prompts[part] += ("" if prompts[part] == "" else "\n") + line
    found = dict(prompts)
    for key, value in PAIR.findall(last):
        whole = json.loads(value) if value[:1] == value[-1:] == '"' else value
        if size := SIZE.match(whole):
            found |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        else:
            found[key] = whole
    return found


def infotext_as_a1111(picture: Any) -> str:
    """Find the infotext where A1111's `read_info_from_image` does, with piexif's way to read a comment."""
    if "parameters" in picture.info:
        return str(picture.info["parameters"])
    comment: bytes = picture.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf-16-be")


def as_a1111_reads_it(prompt: str) -> str:
    """Return a prompt as far as an infotext can hold it: without white space around its lines."""
    return "\n".join(line.strip() for line in prompt.split("\n"))


def texts_of(job: JobParameters) -> Texts:
    """Return what the worker writes into a job's picture."""
    record = Record(parameters=job, model="sd15", source="owner/repo", numerics=NUMERICS)
    infotext = write_infotext(job, model="sd15", model_hash="0123456789", version="1.0")
    return Texts(infotext=infotext, record=write_record(record))


def opened(job: JobParameters) -> Any:
    """Write a job's picture, and open it."""
    picture = Image.open(io.BytesIO(encode_picture(PIXELS, texts_of(job), job.options)))
    picture.load()
    return picture


_odd = st.sampled_from(
    [
        "a fox", ", ", ": ", '"', "\\", "]]>", "\n", "\r\n", "\t", " ", "Steps: 20, ", "Negative prompt:",
        "{", "<lora:x:1>", "&amp;", "\ufffe", "\x1f", "\x85", "\xe9", "\U0001f98a", "\u202e\u05d0", "\u0627",
        "\u4e00", "\u0100", "\ufeff",
    ]
)  # fmt: skip
_letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_texts = st.lists(_odd | st.text(_letters, max_size=12), max_size=12).map("".join).map(str.strip)
_fractions = st.floats(0, 1)


@st.composite
def jobs(draw: st.DrawFn) -> JobParameters:
    """Any job that submit would let through."""
    sampler = SAMPLERS[draw(st.sampled_from(sorted(SAMPLERS)))]
    options: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "guidance_rescale": _fractions,
                "guidance_interval": st.lists(_fractions, min_size=2, max_size=2, unique=True).map(sorted),
                **({"eta": _fractions} if sampler.takes_eta else {}),
            },
        )
    )
    image_format = draw(st.sampled_from(IMAGE_FORMATS))
    if image_format != "png":
        options |= {"image_format": image_format, "quality": draw(st.integers(1, 100))}
    job = JobParameters(
        prompt=draw(_texts.filter(bool)),
        negative_prompt=draw(_texts),
        seed=draw(st.integers(0, 2**63 - 1)),
        num_inference_steps=draw(st.integers(1, 50)),
        guidance_scale=draw(st.floats(0, 100)),
        width=8 * draw(st.integers(8, 256)),
        height=8 * draw(st.integers(8, 256)),
        sampler=sampler.name,
        schedule=draw(st.sampled_from(sorted(sampler.schedules))),
        options=options,
    )
    return check_job(job)


def long_job(letter: str, image_format: str) -> JobParameters:
    """A job whose prompts are as long as any can be."""
    options = {} if image_format == "png" else {"image_format": image_format}
    return JobParameters(
        prompt=letter * 10_000, negative_prompt=letter * 10_000, seed=1, width=64, height=64, options=options
    )


@settings(max_examples=500, deadline=None)
@given(job=jobs())
@example(job=long_job("\U0001f98a", "png"))
@example(job=long_job("\U0001f98a", "jpeg"))
@example(job=long_job("\U0001f98a", "webp"))
@example(job=long_job("一", "jpeg"))
@example(job=long_job("&", "jpeg"))
def test_what_is_written_is_read(job: JobParameters) -> None:
    """By A1111's rules all that an infotext can hold, and by ours everything, from every format."""
    picture = opened(job)
    texts = read_texts(picture)
    assert read_record(texts.record).parameters == job
    assert texts == texts_of(job)
    found = read_as_a1111(infotext_as_a1111(picture))
    assert (int(found["Steps"]), int(found["Seed"])) == (job.num_inference_steps, job.seed)
    assert float(found["CFG scale"]) == job.guidance_scale
    assert (int(found["Size-1"]), int(found["Size-2"])) == (job.width, job.height)
    assert job.sampler is not None
    assert found["Sampler"] == SAMPLERS[job.sampler].infotext
    assert found.get("Schedule type", "") == SCHEDULES[job.schedule or "default"]
    assert (found["Model"], found["Model hash"]) == ("sd15", "0123456789")
    labels = {
        "eta": "Eta DDIM", "guidance_rescale": "Guidance rescale", "guidance_interval": "Guidance interval",
        "quality": "Image quality",
    }  # fmt: skip
    said = {name: json.loads(found[label]) for name, label in labels.items() if label in found}
    assert said == {name: value for name, value in job.options.items() if name in labels}
    assert found.get("Image format", "png") == job.options.get("image_format", "png")
    if "Negative prompt:" not in f"{job.prompt}{job.negative_prompt}":  # the format has no escape for it
        assert found["Prompt"] == as_a1111_reads_it(job.prompt)
        assert found["Negative prompt"] == as_a1111_reads_it(job.negative_prompt)
        # sd-parsers splits values at each comma and colon, and those of ours that it looks for have none.
        seen = ParserManager().parse(picture)
        ALIVE[:] = [picture]  # it takes the next picture for this one if that gets its `id`
        assert seen is not None
        assert (seen.full_prompt, seen.full_negative_prompt or "") == (job.prompt, job.negative_prompt)
        assert seen.samplers[0].parameters["seed"] == str(job.seed)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_same_job_gives_the_same_bytes(image_format: str) -> None:
    """In every format; a lossy one of higher quality is nearer to the pixels."""
    texts, options = Texts(infotext="an otter", record="{}"), {"image_format": image_format}
    assert encode_picture(PIXELS, texts, options) == encode_picture(PIXELS, texts, options)

    def error(quality: int) -> float:
        data = encode_picture(PIXELS, texts, options | {"quality": quality})
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == image_format.upper()
            return float(np.abs(np.asarray(picture.convert("RGB")).astype(int) - PIXELS).mean())

    if image_format == "png":
        assert error(1) == error(100) == 0
    else:
        assert error(100) < error(90) < error(10)


def test_colours_of_a_jpeg_keep_their_resolution() -> None:
    """Red next to blue stays red next to blue."""
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 2] = 255
    data = encode_picture(pixels, Texts(), {"image_format": "jpeg"})
    with Image.open(io.BytesIO(data)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - pixels).max() < 40


def test_a_lossy_format_names_the_library_that_wrote_it() -> None:
    """Its version is part of what determined the bytes; a PNG's is in every numerics record."""
    assert all(encoder_versions("webp").values())
    assert len(encoder_versions("jpeg")) == 1
    assert encoder_versions("png") == {}
