"""The infotext is what other programs read from our pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sd_parsers.parsers import AUTOMATIC1111Parser

from storage.infotext import read_infotext, write_infotext
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS

OTTER = JobParameters(
    prompt="A watercolor painting of an otter",
    negative_prompt="blurry, low quality",
    seed=32,
    width=512,
    height=768,
    sampler="dpmpp_2m",
    schedule="karras",
)


def test_text_is_laid_out_as_a1111_does() -> None:
    """Prompt, negative prompt and the pairs come in the order that readers expect."""
    assert write_infotext(OTTER, model="sd15", model_hash="6ce0161689", version="0.1.0") == (
        "A watercolor painting of an otter\n"
        "Negative prompt: blurry, low quality\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 32, Size: 512x768, "
        "Model hash: 6ce0161689, Model: sd15, RNG: CPU, Version: promptmill 0.1.0"
    )


def test_default_schedule_and_missing_negative_prompt_are_left_out() -> None:
    """What was not asked for takes no place in the text."""
    plain = JobParameters(prompt="an otter", seed=1, guidance_scale=7.0, width=64, height=64)
    assert write_infotext(plain, model="demo", model_hash=None, version="1") == (
        "an otter\nSteps: 30, Sampler: LMS, CFG scale: 7, Seed: 1, Size: 64x64, Model: demo, RNG: CPU, "
        "Version: promptmill 1"
    )


def test_independent_reader_understands_it() -> None:
    """sd-parsers, which we did not write, finds prompts, sampler and model."""
    text = write_infotext(OTTER, model="sd15", model_hash="6ce0161689", version="0.1.0")
    sampler = AUTOMATIC1111Parser().parse({"parameters": text}).samplers[0]
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters["seed"] == "32"
    assert [prompt.value for prompt in sampler.prompts] == [OTTER.prompt]
    assert [prompt.value for prompt in sampler.negative_prompts] == [OTTER.negative_prompt]
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("sd15", "6ce0161689")


@pytest.mark.parametrize("sampler", [*SAMPLERS, "default"])
def test_every_sampler_reads_back(sampler: str) -> None:
    """Each sampler's infotext name leads back to the sampler."""
    job = JobParameters(prompt="an otter", seed=7, width=64, height=64, sampler=sampler)
    fields = read_infotext(write_infotext(job, model="demo", model_hash=None, version="1"))
    assert fields["sampler"] == sampler


_letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_prompts = st.text(_letters, max_size=200).map(str.strip)
_names = st.text("abcz019._- ,:\"'", min_size=1, max_size=20).filter(lambda text: text == text.strip())


@given(
    prompt=_prompts.filter(bool).filter(lambda text: "Negative prompt:" not in text),
    negative=_prompts,
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(0, 100),
    model=_names,
)
def test_what_is_written_reads_back(
    prompt: str, negative: str, seed: int, guidance: float, model: str
) -> None:
    """Any prompt, seed, guidance and model survive writing and reading."""
    job = JobParameters(
        prompt=prompt, negative_prompt=negative, seed=seed, guidance_scale=guidance, width=64, height=72
    )
    fields = read_infotext(write_infotext(job, model=model, model_hash=None, version="1"))
    assert fields["prompt"] == prompt
    assert fields["negative_prompt"] == negative
    assert fields["seed"] == seed
    assert fields["guidance_scale"] == guidance
    assert (fields["width"], fields["height"]) == (64, 72)
    assert fields["model"] == model


def test_older_sampler_names_carry_their_schedule() -> None:
    """A1111 before 1.9 wrote sampler and schedule as one name."""
    fields = read_infotext("an otter\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1")
    assert (fields["sampler"], fields["schedule"]) == ("dpmpp_2m", "karras")


def test_what_we_do_not_know_is_kept_as_text() -> None:
    """A sampler or key of another program is kept under `other`, not dropped and not an error."""
    fields = read_infotext('x\nSteps: 20, Sampler: Restart, Seed: abc, Lora hashes: "a: 1, b: 2"')
    assert fields["num_inference_steps"] == 20
    assert fields["other"] == {
        "Sampler": "Restart", "Seed": "abc", "Lora hashes": "a: 1, b: 2",
    }  # fmt: skip


def test_text_without_parameters_is_all_prompt() -> None:
    """A last line with fewer than three pairs belongs to the prompt."""
    assert read_infotext("an otter\nstyle: oil") == {
        "prompt": "an otter\nstyle: oil", "negative_prompt": "", "other": {},
    }  # fmt: skip


def test_seldom_options_are_read_back() -> None:
    """Under A1111's name for DDIM's eta; its "Eta" is another thing, and stays where it was."""
    options = {
        "eta": 0.3,
        "guidance_rescale": 0.7,
        "guidance_interval": [0.2, 0.8],
        "prompt_syntax": "weighted",
    }
    job = JobParameters(prompt="an otter", seed=1, sampler="ddim", options=options)
    text = write_infotext(job, model="demo", model_hash=None, version="1")
    assert "Eta DDIM: 0.3" in text
    assert "Prompt syntax: weighted" in text
    assert read_infotext(text)["options"] == options
    other = read_infotext("an otter\nSteps: 5, Sampler: Euler a, Seed: 1, Eta: 0.67, Eta DDIM: much")
    assert "options" not in other or other["options"] == {}
    assert other["other"] == {"Eta": "0.67", "Eta DDIM": "much"}


def test_what_a_picture_begins_with_reads_back_by_its_hash() -> None:
    """Strength as A1111 calls it; another program's strength is of a picture that nobody can name."""
    options = {"init_image": "a" * 64, "mask_image": "b" * 64, "strength": 0.6}
    text = write_infotext(replace(OTTER, options=options), model="m", model_hash=None, version="1")
    assert "Denoising strength: 0.6" in text
    assert read_infotext(text)["options"] == options
    theirs = (
        "an otter\nSteps: 30, Sampler: Euler a, Seed: 1, Denoising strength: 0.7, Init image hash: 6f1ed002"
    )
    fields = read_infotext(theirs)
    assert "options" not in fields
    assert fields["other"] == {"Denoising strength": "0.7", "Init image hash": "6f1ed002"}
