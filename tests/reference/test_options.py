"""Eta, guidance rescale and guidance interval, in mixed company, against diffusers' own code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from storage.parameters import JobParameters
from tests.device import DEVICE
from tests.parity import assert_same, diffusers_scheduler, tolerance
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.load import LoadedModel
from worker.stages.guidance import rescale_guided
from worker.stages.sampler import SamplerSettings
from worker.stages.tables import Tables

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PROMPT = "a sticker of a fox"


def _job(sampler: str, **options: Any) -> JobParameters:
    return JobParameters(
        prompt=PROMPT,
        seed=5,
        num_inference_steps=9,
        guidance_scale=5.0,
        width=64,
        height=64,
        sampler=sampler,
        options=options,
    )


CASES = {
    "eta, all of it": _job("ddim", eta=1.0),
    "eta, some of it": _job("ddim", eta=0.3),
    "gamma of TCD": _job("tcd", eta=0.4),
    "guidance rescaled": _job("lms", guidance_rescale=0.7),
    "rescaled, two evaluations a step": _job("heun", guidance_rescale=1.0),
    "guided at first": _job("euler_a", guidance_interval=[0.0, 0.5]),
    "guided in the middle": _job("dpmpp_2m", guidance_interval=[0.2, 0.8]),
    "guided at the end": _job("unipc", guidance_interval=[0.34, 1.0]),
    "never guided": _job("euler", guidance_interval=[0.0, 0.01]),
    "without its table": _job("pndm", guidance_interval=[0.3, 1.0], guidance_rescale=0.5),
    "without its table, noise drawn": _job("ddpm"),
    "everything": _job("ddim", eta=0.5, guidance_rescale=0.4, guidance_interval=[0.1, 0.9]),
    "nothing": _job("lms"),
}


@pytest.fixture(scope="module")
def rendered(render: Any) -> dict[str, RenderResult]:
    """Render all cases in one engine: what does not fit sits a step out."""

    def some_tables(tables: Tables, settings: SamplerSettings) -> Any:
        return None if settings.sampler in ("pndm", "ddpm") else find(tables, settings)

    find = Tables.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tables, "__getitem__", some_tables)
        return dict(zip(CASES, render(CASES.values(), lanes=8), strict=True))


@pytest.fixture(scope="module")
def otherwise(model: LoadedModel) -> dict[str, dict[str, RenderResult]]:
    """Render all cases one after the other, and in throughput mode each a step after the one before."""
    found: dict[str, dict[str, RenderResult]] = {}
    for mode in ("exact", "throughput"):
        engine, tickets = Engine(model, mode=mode, lanes=8), {}
        for case, job in CASES.items():
            tickets[case] = engine.submit(job, keep_latents=True)
            while engine.step() and mode == "exact":
                pass
        while engine.step():
            pass
        found[mode] = {case: ticket.future.result(timeout=0) for case, ticket in tickets.items()}
    return found


@torch.no_grad()
def _alone(model: LoadedModel, pipeline: Any, job: JobParameters) -> torch.Tensor:
    """Render by a plain loop over diffusers' parts."""
    steps, scale = job.num_inference_steps or 0, job.guidance_scale or 0.0
    rescale, interval = (job.options.get(f"guidance_{name}") for name in ("rescale", "interval"))
    cond, uncond = pipeline.encode_prompt(PROMPT, DEVICE, 1, do_classifier_free_guidance=True)
    scheduler = diffusers_scheduler(pipeline.scheduler.config, job)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(job.seed)
    latents = torch.randn((1, 4, 16, 16), generator=generator).to(DEVICE) * scheduler.init_noise_sigma
    extra = pipeline.prepare_extra_step_kwargs.__func__(
        _With(scheduler), generator, job.options.get("eta", 0.0)
    )
    first, last = interval or (0.0, 1.0)
    count = len(scheduler.timesteps)
    for i, t in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(latents, t)
        output = predicted = model.unet(sample, t, encoder_hidden_states=cond).sample
        if int(first * count) <= i < int(last * count):
            unguided = model.unet(sample, t, encoder_hidden_states=uncond).sample
            output = unguided + scale * (predicted - unguided)
            if rescale:
                output = rescale_noise_cfg(output, predicted, guidance_rescale=rescale)
        latents = scheduler.step(output, t, latents, **extra).prev_sample
    return latents.cpu()


class _With:
    """What `prepare_extra_step_kwargs` reads of a pipeline."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


@pytest.mark.parametrize("case", CASES)
def test_option_matches_diffusers(
    case: str,
    rendered: dict[str, RenderResult],
    otherwise: dict[str, dict[str, RenderResult]],
    model: LoadedModel,
    pipeline: Any,
) -> None:
    """In company, alone and in throughput mode latents agree within 1e-4 and the picture within 1 of 255."""
    theirs = _alone(model, pipeline, CASES[case])
    sampler = CASES[case].sampler
    assert_same(rendered[case], theirs, pipeline, within=tolerance(sampler))
    assert_same(otherwise["exact"][case], theirs, pipeline, within=tolerance(sampler))
    within = tolerance(sampler, exact=False)
    assert_same(otherwise["throughput"][case], theirs, pipeline, within=within)


@pytest.mark.parametrize("case", [case for case, job in CASES.items() if job.options])
def test_the_option_changes_the_picture(case: str, rendered: dict[str, RenderResult], render: Any) -> None:
    """An option that nobody reads would match nothing above, unless the reference forgot it too."""
    (without,) = render([replace(CASES[case], options={})])
    assert rendered[case].pixels.tobytes() != without.pixels.tobytes()


@pytest.mark.parametrize("side", [8, 64, 130])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rescaling_gives_a_row_the_same_bits_at_every_place_and_in_any_company(
    side: int, threads: int, request: pytest.FixtureRequest
) -> None:
    """As long as there are as many rows: what they hold, zeros or nothing finite, is their own affair."""
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    own = [torch.randn((1, 4, side, side), generator=generator).to(DEVICE) for _ in range(2)]
    rescale = torch.full((8, 1, 1, 1), 0.7, device=DEVICE)
    found = []
    for place, others in ((0, 0.0), (3, 1.0), (7, 30.0), (4, float("nan"))):
        guided, cond = (
            torch.randn((8, 4, side, side), generator=generator).to(DEVICE) * others for _ in range(2)
        )
        guided[place : place + 1], cond[place : place + 1] = own
        found.append(rescale_guided(guided, cond, rescale, 1 - rescale)[place])
    assert all(torch.equal(found[0], each) for each in found[1:])
    right = rescale_noise_cfg(*own, guidance_rescale=0.7)[0]
    assert torch.allclose(found[0], right, rtol=1e-5, atol=1e-6)
