"""Jobs that begin with a picture get what diffusers' own pipeline for that gives, called alone."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from storage.errors import BadInputError
from storage.inputs import CONTROL_SCALE
from storage.parameters import JobParameters
from tests.device import DEVICE
from tests.pipelines import load_tiny
from worker.coalescing.engines import Engines
from worker.coalescing.image_pipelines import image_pipeline
from worker.coalescing.pictures import Kind, fitted
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.device_turns import DeviceTurns
from worker.engine.engine import Engine
from worker.models.controlnet import ControlNet
from worker.models.device import MIXED
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.models.variant import Variant, run_as

SIZE = 64
HASH = "0" * 64


def drawing(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """Return a picture with shapes."""
    draw = ImageDraw.Draw(picture := Image.new("RGB", size, (seed * 60 % 256, 80, 160)))
    draw.ellipse((8, 8 + seed, 40, 50), fill=(240, 200, seed * 40 % 256))
    return picture


MASK = Image.new("L", (SIZE, SIZE), 0)
MASK.paste(255, (16, 16, 48, 60))
PICTURES = {"init_image": drawing(1), "mask_image": MASK.convert("RGB"), "control_image": drawing(3)}


def pictures_of(job: JobParameters) -> dict[str, Image.Image]:
    """Return what a job begins with."""
    return {name: PICTURES[name] for name in job.options if name in PICTURES}


def jobs_of(kind: Kind, samplers: tuple[str, ...]) -> list[JobParameters]:
    """Return jobs of mixed prompts, lengths, seeds, steps, guidance and strength."""
    options: dict[str, Any] = dict.fromkeys(kind.needs, HASH)
    controlled = {CONTROL_SCALE: 0.6} if "control_image" in kind.needs else {}
    return [
        JobParameters(
            prompt=("a red fox", "an otter with a hat", "a cat", "a red fox")[i],
            negative_prompt=("", "rain", "", "")[i],
            seed=i,
            num_inference_steps=(4, 6, 3, 5)[i],
            guidance_scale=(5.0, 1.0, 3.0, 7.5)[i],
            width=SIZE,
            height=SIZE,
            sampler=samplers[i % len(samplers)],
            schedule="default",
            options=options
            | ({"strength": (0.5, 1.0, 0.7, 0.8)[i]} if "init_image" in kind.needs else {})
            | (controlled if i else {}),
        )
        for i in range(4)
    ]


def alone(pipeline: Any, job: JobParameters, kind: Kind) -> np.ndarray[Any, Any]:
    """Call a pipeline as a user of diffusers would."""
    given: dict[str, Any] = {}
    if "height" in inspect.signature(pipeline.__call__).parameters:
        given |= {"width": SIZE, "height": SIZE}
    if "init_image" in kind.needs:
        given |= {"image": PICTURES["init_image"], "strength": job.options["strength"]}
    if "mask_image" in kind.needs:
        given["mask_image"] = PICTURES["mask_image"]
    if "control_image" in kind.needs:
        given["control_image" if "image" in given else "image"] = PICTURES["control_image"]
        given["controlnet_conditioning_scale"] = job.options.get(CONTROL_SCALE, 1.0)
    found = pipeline(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt or None,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        **given,
    )
    return np.asarray(found.images[0])


def rendered(engine: Any, jobs: list[JobParameters]) -> list[np.ndarray[Any, Any]]:
    """Render jobs that arrive one after the other in an engine that the test steps."""
    tickets = []
    for job in jobs:
        tickets.append(engine.submit(job, pictures=pictures_of(job)))
        engine.step()
    while engine.step():
        pass
    return [ticket.future.result(timeout=0).pixels for ticket in tickets]


@pytest.fixture(scope="module")
def controlnet(model: LoadedModel) -> ControlNet:
    """A ControlNet of random weights for the demo model."""
    torch.manual_seed(0)
    # As many halvings as the VAE has.
    channels = (4,) * model.vae_scale_factor.bit_length()
    network = diffusers.ControlNetModel.from_unet(model.unet, conditioning_embedding_out_channels=channels)
    for parameter in network.parameters():  # else its last layers are zero, and it does nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return ControlNet(name="shapes", revision="f" * 64, network=network.eval().to(DEVICE))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.TEXT])
def test_mixed_jobs_of_stable_diffusion_keep_their_pictures(
    kind: Kind, model: LoadedModel, controlnet: ControlNet
) -> None:
    """Jobs of other steps, guidance, seeds, prompts and samplers have the pipeline's own pictures."""
    loaded = image_pipeline(model, kind, controlnet)
    engine = PipelineEngine(loaded, lanes=8, kind=kind)
    assert engine.shared
    jobs = jobs_of(kind, ("lms", "euler", "dpmpp_2m", "ddim"))
    pictures = rendered(engine, jobs)
    for job, picture in zip(jobs, pictures, strict=True):
        reference = image_pipeline(model, kind, controlnet).pipeline
        reference.scheduler = scheduler_of(model, job)
        difference = np.abs(picture.astype(int) - alone(reference, job, kind).astype(int)).max()
        assert difference <= 1, job
    assert engine.lanes_run / engine.steps > 1.2


def scheduler_of(model: LoadedModel, job: JobParameters) -> Any:
    """Build a job's noise scheduler as a user of diffusers would."""
    classes = {
        "lms": diffusers.LMSDiscreteScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "ddim": diffusers.DDIMScheduler,
    }
    return classes[job.sampler or ""].from_config(model.scheduler_config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stable_diffusion_xl", Kind.IMG2IMG),
        ("stable_diffusion_xl", Kind.INPAINT),
        ("stable_diffusion_3", Kind.IMG2IMG),
        ("flux", Kind.IMG2IMG),
        ("flux", Kind.INPAINT),
    ],
)
def test_other_pipelines_begin_with_pictures_too(name: str, kind: Kind) -> None:
    """Where diffusers has an img2img or inpaint twin of a pipeline, jobs get what the twin alone gives."""
    main = load_tiny(name)
    engine = PipelineEngine(image_pipeline(main, kind, None), lanes=8, kind=kind)
    jobs = [replace(job, negative_prompt="") for job in jobs_of(kind, ("default",))]
    for job, picture in zip(jobs, rendered(engine, jobs), strict=True):
        twin = image_pipeline(main, kind, None).pipeline
        twin.scheduler = type(twin.scheduler).from_config(twin.scheduler.config)
        difference = np.abs(picture.astype(int) - alone(twin, job, kind).astype(int)).max()
        assert difference <= 1, job


def engines_of(model: LoadedModel | LoadedPipeline, controlnet: ControlNet | None = None) -> Engines:
    """Return all engines of a model, as a worker has them."""
    turns = DeviceTurns()
    main: Any = (
        Engine(model, lanes=4, turns=turns)
        if isinstance(model, LoadedModel)
        else PipelineEngine(model, lanes=4, turns=turns)
    )
    return Engines(
        main,
        make=lambda pipeline, kind: PipelineEngine(pipeline, lanes=4, kind=kind, turns=turns),
        turns=turns,
        controlnet=controlnet,
    )


def pixels_of(engines: Engines, groups: list[list[JobParameters]]) -> list[bytes]:
    """Render groups of jobs, one group after the other, in a worker's engines."""
    engines.start()
    found = []
    for group in groups:
        tickets = [engines.submit(job, pictures=pictures_of(job)) for job in group]
        found += [ticket.future.result(timeout=120) for ticket in tickets]
    engines.close()
    return [result.pixels.tobytes() for result in found]


def test_one_worker_renders_all_kinds_at_once_with_the_same_bytes(
    model: LoadedModel, controlnet: ControlNet
) -> None:
    """Jobs of every kind, side by side in one worker, have the bytes that each has without company."""
    kinds = (Kind.TEXT, Kind.IMG2IMG, Kind.INPAINT, Kind.CONTROL)
    jobs = [jobs_of(kind, ("euler",))[i] for i in range(2) for kind in kinds]

    together = pixels_of(engines_of(model, controlnet), [jobs])
    assert together == pixels_of(engines_of(model, controlnet), [[job] for job in jobs])


def test_a_denoiser_in_mixed_precision_keeps_the_pipeline_in_float32(model: LoadedModel) -> None:
    """Where measuring chose bfloat16 for the UNet's products, what is around it stays float32."""
    mixed = run_as(model, Variant(dtype=MIXED, layout="contiguous"))
    job = jobs_of(Kind.IMG2IMG, ("euler",))[0]
    engine = PipelineEngine(image_pipeline(mixed, Kind.IMG2IMG, None), lanes=4, kind=Kind.IMG2IMG)
    exact = PipelineEngine(image_pipeline(model, Kind.IMG2IMG, None), lanes=4, kind=Kind.IMG2IMG)
    (ours,), (right,) = rendered(engine, [job]), rendered(exact, [job])
    assert engine.shared
    assert engine.numerics["dtype"] == MIXED
    assert engine.numerics["vae_dtype"] == "float32"
    assert 0 < np.abs(ours.astype(int) - right.astype(int)).mean() < 8


def test_what_a_model_cannot_begin_with_is_refused_in_a_sentence() -> None:
    """Lumina has no twin for pictures, and a worker without ControlNet says how to get one."""
    lumina = engines_of(load_tiny("lumina2"))
    assert lumina.takes == []
    with pytest.raises(BadInputError, match="A Lumina2Pipeline takes no init image"):
        lumina.submit(jobs_of(Kind.IMG2IMG, ("default",))[0], pictures=PICTURES)
    flux = engines_of(load_tiny("flux"))
    assert flux.takes == ["init_image", "mask_image"]
    with pytest.raises(BadInputError, match=r"no ControlNet.*--controlnet"):
        flux.submit(jobs_of(Kind.CONTROL, ("default",))[0], pictures=PICTURES)


def test_pictures_are_resized_as_diffusers_does(model: LoadedModel) -> None:
    """A picture of another size is brought to the job's as the pipeline's own image processor does it."""
    large = drawing(2, (150, 90))
    job = jobs_of(Kind.IMG2IMG, ("euler",))[0]
    ours = fitted({"init_image": large}, job)["init_image"]
    processor = image_pipeline(model, Kind.IMG2IMG, None).pipeline.image_processor
    theirs = processor.resize(large, height=SIZE, width=SIZE)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
