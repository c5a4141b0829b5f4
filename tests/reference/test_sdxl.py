"""Stable Diffusion XL in the shared loop: diffusers' pictures in any company, always the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from storage.models import ModelReference
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from tests.device import DEVICE
from tests.pipelines import clip_tokenizer, stable_diffusion_xl
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.engine.trial import try_lanes
from worker.models.choice import load
from worker.models.load import LoadedModel
from worker.models.load_pipeline import load_pipeline
from worker.stages.picture import encode_png
from worker.stages.tables import Tables
from worker.stages.text import Text, TextStage
from worker.stages.weighting import level, split

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

LANES = 8
TABLES = Tables()
WEIGHTED = {"prompt_syntax": "weighted"}


def job(prompt: str = "a red fox", **settings: Any) -> JobParameters:
    """Return a job of few steps."""
    chosen: dict[str, Any] = {
        "seed": 1, "num_inference_steps": 4, "guidance_scale": 5.0, "width": 64, "height": 64,
        "sampler": "euler", "schedule": "default",
    }  # fmt: skip
    return JobParameters(prompt=prompt, **chosen | settings)


MIXED = {
    "alone at its own guidance": job(),
    "without guidance": job("an otter", guidance_scale=1.0, negative_prompt="is not used", seed=2),
    "negative prompt": job(negative_prompt="blue", sampler="dpmpp_2m", schedule="karras", seed=3),
    "rescaled": job("a cat", sampler="lms", options={"guidance_rescale": 0.7}, seed=4, num_inference_steps=7),
    "noise in the loop": job("", sampler="euler_a", seed=5, guidance_scale=7.5, num_inference_steps=5),
    "eta": job("a cake", sampler="ddim", options={"eta": 0.5}, seed=6, num_inference_steps=6),
    "a wide one": job("a fox", width=96, seed=7, sampler="unipc"),
    "a tall one": job("a fox", height=96, seed=7, sampler="unipc", negative_prompt="grey"),
    "too long": job("fox " * 40, negative_prompt="cat " * 40, seed=8),
    "the model's own sampler": job(sampler="default", seed=9),
}
LOOP_OF_OURS = {  # what no argument of the pipeline says
    "interval": job("a fox", seed=10, options={"guidance_interval": [0.3, 0.9]}, num_inference_steps=6),
    "weighted": job("a (fox:1.4) on [red]", negative_prompt="(blue:1.2)", options=WEIGHTED, seed=11),
    "weighted, no negative prompt": job("(fox:1.3) BREAK a cake", options=WEIGHTED, seed=12),
    "many chunks": job("fox " * 40, negative_prompt="cat " * 70, options=WEIGHTED, seed=13),
}
SAMPLER_JOBS = {
    name: job("a fox", sampler=name, seed=20 + i, num_inference_steps=4 + i % 3, guidance_scale=3.0 + i % 2)
    for i, name in enumerate(SAMPLERS)
}
ALL = MIXED | LOOP_OF_OURS | SAMPLER_JOBS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, as diffusers saves it; its tokenizers pad with other tokens, as the real ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = stable_diffusion_xl((clip_tokenizer(), clip_tokenizer(pad_token="!")))  # noqa: S106
    path = tmp_path_factory.mktemp("models") / "xl"
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """What a diffusers user would load."""
    built = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    built.set_progress_bar_config(disable=True)
    return built.to(DEVICE)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    """What a worker loads."""
    loaded = load(ModelReference(name="xl", source=str(folder)), device=DEVICE, dtype=torch.float32)
    assert isinstance(loaded, LoadedModel)
    return loaded


def run(engine: Engine | PipelineEngine, jobs: Any) -> list[RenderResult]:
    """Render jobs that arrive a step after each other."""
    tickets = []
    for each in jobs:
        tickets.append(engine.submit(each, keep_latents=True))
        engine.step()
    while engine.step():
        pass
    return [ticket.future.result(timeout=0) for ticket in tickets]


@pytest.fixture(scope="module")
def together(model: LoadedModel) -> dict[str, RenderResult]:
    """Render all jobs in one engine."""
    results = run(Engine(model, lanes=LANES, tables=TABLES), ALL.values())
    return dict(zip(ALL, results, strict=True))


def alone(pipeline: Any, job: JobParameters, **changes: Any) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Render a job as a diffusers user does; returns latents and picture."""
    own = pipeline.scheduler
    if job.sampler != "default":
        sampler = SAMPLERS[job.sampler or ""]
        options = dict(sampler.overrides) | ({"use_karras_sigmas": True} if job.schedule == "karras" else {})
        if sampler.name == "dpmpp_sde":
            options["noise_sampler_seed"] = job.seed
        pipeline.scheduler = getattr(diffusers, sampler.scheduler_class).from_config(own.config, **options)
    arguments = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt or None,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "guidance_rescale": job.options.get("guidance_rescale", 0.0),
        "eta": job.options.get("eta", 0.0),
        "width": job.width,
        "height": job.height,
    } | changes
    try:
        latents, picture = (
            pipeline(generator=torch.Generator().manual_seed(job.seed), output_type=kind, **arguments).images
            for kind in ("latent", "pil")
        )
    finally:
        pipeline.scheduler = own
    return latents.cpu(), np.asarray(picture[0])


def assert_same(ours: RenderResult, theirs: tuple[torch.Tensor, np.ndarray[Any, Any]]) -> None:
    """Latents within 1e-4, pictures within 1 of 255."""
    latents, picture = theirs
    assert ours.latents is not None
    assert (ours.latents - latents).norm() / latents.norm() < 1e-4
    assert np.abs(ours.pixels.astype(int) - picture.astype(int)).max() <= 1


@pytest.mark.parametrize("name", [*MIXED, *SAMPLER_JOBS])
def test_a_job_in_company_is_what_diffusers_renders_alone(
    name: str, together: dict[str, RenderResult], pipeline: Any
) -> None:
    """Other samplers, steps, guidance, sizes, lengths and arrivals beside it; latents and picture agree."""
    assert_same(together[name], alone(pipeline, ALL[name]))


@pytest.mark.parametrize("name", ["weighted", "weighted, no negative prompt", "many chunks"])
def test_weighted_prompts_are_what_diffusers_renders_from_embeddings_written_out_here(
    name: str, together: dict[str, RenderResult], pipeline: Any, model: LoadedModel
) -> None:
    """Each encoder's state is weighted by itself, the first chunk gives the pooled embedding."""
    this = ALL[name]
    texts = [this.negative_prompt, this.prompt] if this.negative_prompt else [this.prompt]
    chunks = level([split(model.tokenizer, text) for text in texts])
    (embeds, pooled), *uncond = [written_out(model, own) for own in reversed(chunks)]
    no_embeds, no_pooled = uncond[0] if uncond else (torch.zeros_like(embeds), torch.zeros_like(pooled))
    theirs = alone(
        pipeline,
        this,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=no_embeds,
        negative_pooled_prompt_embeds=no_pooled,
    )
    assert_same(together[name], theirs)


@torch.no_grad()
def written_out(model: LoadedModel, chunks: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode chunks by transformers' classes and float64."""
    parts, pooled = [], []
    for chunk in chunks:
        states = []
        for tokenizer, encoder in (
            (model.tokenizer, model.text_encoder),
            (model.tokenizer_2, model.text_encoder_2),
        ):
            padding = 32 - 2 - len(chunk.ids)
            ids = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * padding
            output = encoder(torch.tensor([ids], device=DEVICE), output_hidden_states=True)
            state = output.hidden_states[-2].double()
            weighted = (
                state
                * torch.tensor([1.0, *chunk.weights, 1.0, *[1.0] * padding], device=DEVICE)[None, :, None]
            )
            states.append((weighted * state.mean() / weighted.mean()).float())
        parts.append(torch.cat(states, dim=-1))
        pooled.append(output.text_embeds)
    return torch.cat(parts, dim=1), pooled[0]


def test_guidance_runs_in_its_interval_only(together: dict[str, RenderResult], pipeline: Any) -> None:
    """The pipeline gives the same where its guidance is switched off and on between steps."""
    this = ALL["interval"]

    def guide(own: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Take 1 for "no guidance": both lanes run, and the prompt's is what is left."""
        own._guidance_scale = this.guidance_scale if step + 1 in range(1, 5) else 1.0 + 1e-9
        return tensors

    theirs = alone(pipeline, this, guidance_scale=1.0 + 1e-9, callback_on_step_end=guide)
    assert_same(together["interval"], theirs)


def png(result: RenderResult) -> bytes:
    """Return the file of a result."""
    return encode_png(result.pixels, {"promptmill": str(result.numerics)})


def test_bytes_do_not_depend_on_company(model: LoadedModel, together: dict[str, RenderResult]) -> None:
    """Other company, the reverse order of arrival, and none at all: the same files."""
    jobs = MIXED | LOOP_OF_OURS
    names = list(reversed(jobs))
    engine = Engine(model, lanes=LANES, tables=TABLES)
    for name, result in zip(names, run(engine, [jobs[name] for name in names]), strict=True):
        assert png(result) == png(together[name]), name
    for name in ("rescaled", "interval", "negative prompt", "many chunks"):
        (result,) = run(engine, [jobs[name]])
        assert png(result) == png(together[name]), name
    assert together["rescaled"].numerics["family"] == "sdxl"
    assert together["rescaled"].numerics["lanes"] == LANES


@pytest.mark.parametrize("mode", ["throughput", "reference"])
def test_other_modes_give_diffusers_pictures_too(mode: str, model: LoadedModel, pipeline: Any) -> None:
    """Without padding, and one request at a time."""
    jobs = [MIXED[name] for name in ("negative prompt", "without guidance", "eta")]
    engine = Engine(model, mode=mode, lanes=None if mode == "reference" else LANES, tables=TABLES)
    for each, result in zip(jobs, run(engine, jobs), strict=True):
        assert_same(result, alone(pipeline, each))


def test_the_pipeline_as_it_is_gives_the_same_pictures(folder: Path, model: LoadedModel) -> None:
    """The way of all other pipelines renders this one too, within 1 of 255."""
    jobs = [MIXED[name] for name in ("negative prompt", "the model's own sampler", "without guidance")]
    reference = ModelReference(name="xl", source=str(folder))
    other = PipelineEngine(
        load_pipeline(reference, folder, None, device=DEVICE, dtype=torch.float32), lanes=LANES
    )
    tickets = [other.submit(each) for each in jobs]
    while other.step():
        pass
    ours = run(Engine(model, lanes=LANES, tables=TABLES), jobs)
    for ticket, result in zip(tickets, ours, strict=True):
        pixels = ticket.future.result(timeout=0).pixels
        assert np.abs(pixels.astype(int) - result.pixels.astype(int)).max() <= 1


def test_a_missing_negative_prompt_is_encoded_where_the_model_says_so(
    model: LoadedModel, pipeline: Any, together: dict[str, RenderResult]
) -> None:
    """With `force_zeros_for_empty_prompt` off, an empty text stands for it and not zeros."""
    this = MIXED["alone at its own guidance"]
    encoding = replace(model, force_zeros_for_empty_prompt=False)
    (result,) = run(Engine(encoding, lanes=LANES, tables=TABLES), [this])
    assert_same(result, alone(pipeline, this, negative_prompt=""))
    assert not np.array_equal(result.pixels, together["alone at its own guidance"].pixels)


def test_latents_with_a_mean_and_a_deviation_are_brought_back(
    model: LoadedModel, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VAEs of later models have both in their config."""
    own = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
    for vae in (model.vae, pipeline.vae):
        monkeypatch.setattr(
            vae, "_internal_dict", diffusers.configuration_utils.FrozenDict({**vae.config, **own})
        )
    this = MIXED["alone at its own guidance"]
    (result,) = run(Engine(model, lanes=LANES, tables=TABLES), [this])
    assert_same(result, alone(pipeline, this))


def test_every_condition_of_a_lane_counts(model: LoadedModel) -> None:
    """A trial's lanes have all of them, and the UNet hears each: else nothing here would show one missing."""
    right = try_lanes(model, 2)
    assert right.exact

    def without(name: str) -> torch.Tensor:
        class Deaf(type(model.kind)):  # type: ignore[misc]
            """A family that leaves one condition at zero."""

            def random(self, *arguments: Any, **named: Any) -> Any:
                """Take one away."""
                drawn = super().random(*arguments, **named)
                return replace(drawn, **{name: torch.zeros_like(getattr(drawn, name))})

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(_families(), "sdxl", Deaf())
            return try_lanes(model, 2).noise_pred

    for name in ("prompt_embeds", "text_embeds", "time_ids"):
        changed = (without(name) - right.noise_pred).norm() / right.noise_pred.norm()
        assert changed > 1e-3, name


def _families() -> dict[str, Any]:
    from worker.models.families import FAMILIES  # noqa: PLC0415 - one test looks inside

    return FAMILIES


def test_texts_are_encoded_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps both embeddings; a warning about what was cut off comes with them."""
    asked: list[int] = []
    encode = type(model.text_encoder_2).forward
    monkeypatch.setattr(
        type(model.text_encoder_2),
        "forward",
        lambda *given, **named: asked.append(1) or encode(*given, **named),
    )
    stage = TextStage(model.kind.prompt_encoder(model))
    text: Text = "fox " * 31
    with torch.no_grad():
        first, second = stage(text), stage(text, what="negative prompt")
    assert len(asked) == 1
    assert first[0] is second[0]
    assert "The prompt is 1 token too long" in (first[1] or "")
    assert "The negative prompt is 1 token too long" in (second[1] or "")
