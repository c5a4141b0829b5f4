"""How many lanes: measured, never assumed.

On a fixed shape a lane's result usually depends neither on the other lanes nor on its position, but some
combinations of lanes, threads, layout and dtype break that. `exact` mode promises it, so it is tried out on
the model at hand before the first job.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from storage.errors import BadInputError
from worker.engine.admission import LanePlan, LatentShape
from worker.engine.faults import is_out_of_memory
from worker.engine.forward import Lanes, predict_noise
from worker.models.load import LoadedModel

MODES = ("exact", "throughput", "reference")
CANDIDATES = (8, 4, 2)
Beat = Callable[[], None]
DEFAULT_THROUGHPUT_LANES = {"cpu": 2, "mps": 8, "cuda": 8}


def _nothing() -> None:
    """Do nothing."""


def native_shape(model: LoadedModel) -> LatentShape:
    """Return the (channels, h, w) of latents at the model's native size."""
    width, height = model.native_size
    factor = model.vae_scale_factor
    return (model.unet.config.in_channels, height // factor, width // factor)


def choose_lanes(model: LoadedModel, *, mode: str, lanes: int | None) -> int:
    """Return the number of lanes R to run with.

    Args:
        model: on the device where it will run.
        mode: `exact`, `throughput` or `reference`.
        lanes: what the user pinned, or None for the largest of 8, 4, 2 that is exact with this model here.

    Raises:
        BadInputError: for an unknown mode, or lanes that the mode cannot run with.
    """
    if mode not in MODES:
        raise BadInputError(f"There is no mode {mode!r}; choose {', '.join(MODES)}.")
    if mode == "reference":
        if lanes not in (None, 2):
            raise BadInputError(f"--mode reference runs 2 lanes, not {lanes}; leave --lanes out.")
        return 2
    if mode == "throughput":
        return _check_at_least_two(lanes or DEFAULT_THROUGHPUT_LANES.get(model.device.type, 2))
    return _choose_exact(model, lanes)


def plan_shape(model: LoadedModel, shape: LatentShape, lanes: int, beat: Beat = _nothing) -> LanePlan:
    """Plan how exact mode runs a latent shape: at `lanes` if exact for it, else one request at a time.

    A request alone in two lanes has no company that could change it, so it is exact by construction.
    """
    if verify_exact(model, lanes, shape=shape, beat=beat):
        return LanePlan(lanes=lanes)
    return LanePlan(lanes=2, alone=True)


def smaller_plan(
    model: LoadedModel, shape: LatentShape, plan: LanePlan, *, exact: bool, beat: Beat = _nothing
) -> LanePlan | None:
    """Plan a latent shape anew, after it ran out of memory under `plan`.

    Returns:
        A plan of half as many lanes or fewer, tried out where it has to be exact; None when not even two fit.
    """
    lanes = plan.lanes
    while (lanes := lanes // 4 * 2) >= min(CANDIDATES):
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        if not exact:
            return LanePlan(lanes=lanes)
        try:
            return plan_shape(model, shape, lanes, beat)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return None


@torch.no_grad()
def verify_exact(
    model: LoadedModel, lanes: int, *, shape: LatentShape | None = None, beat: Beat = _nothing
) -> bool:
    """Tell whether a lane's result is bitwise the same at every position and among two sets of mates.

    Four forward passes do: the probe at every even, then at every odd position, among random mates at other
    timesteps, then among idle lanes. (So each position is seen with both sets of mates.)

    Args:
        model: on its device.
        lanes: R.
        shape: of the latents; None for the native one.
        beat: called ahead of every forward pass.
    """
    rows = _random_lanes(model, lanes + 1, shape or native_shape(model))
    probe, busy = rows[0], rows[1:]
    nothing = torch.zeros_like(probe.sample)
    idle = [
        Lanes(
            sample=nothing,
            timesteps=torch.zeros_like(probe.timesteps),
            prompt_embeds=torch.zeros_like(probe.prompt_embeds),
            timestep_cond=None if probe.timestep_cond is None else torch.zeros_like(probe.timestep_cond),
        )
        for _ in busy
    ]
    results: list[torch.Tensor] = []
    for mates in (busy, idle):
        for offset in (0, 1):
            beat()
            mixed = [probe if i % 2 == offset else mate for i, mate in enumerate(mates)]
            results += predict_noise(model, Lanes.stack(mixed), width=lanes)[offset::2]
    return all(torch.equal(results[0], result) for result in results)


def _choose_exact(model: LoadedModel, lanes: int | None) -> int:
    if lanes is not None and (lanes < min(CANDIDATES) or lanes % 2):
        raise BadInputError(f"--mode exact needs an even number of lanes, 2 or more, not {lanes}.")
    too_large = False
    for candidate in CANDIDATES if lanes is None else (lanes,):
        try:
            if verify_exact(model, candidate):
                return candidate
            too_large = False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            too_large = True
        if too_large and model.device.type == "cuda":
            torch.cuda.empty_cache()
    if too_large:
        raise BadInputError(
            f"The {model.device.type} has too little memory for {lanes or min(CANDIDATES)} lanes in "
            f"{model.dtype}; take fewer --lanes, or --dtype float16."
        )
    tried = "any of 8, 4 or 2 lanes" if lanes is None else f"{lanes} lanes"
    raise BadInputError(
        f"--mode exact is not possible with {tried} on this {model.device.type}: in {model.dtype} with "
        f"{torch.get_num_threads()} threads a lane's result depends on its position or its neighbours; take "
        f"other --lanes, --dtype float32, or --mode reference."
    )


def _check_at_least_two(lanes: int) -> int:
    if lanes < 2:  # noqa: PLR2004 - the two halves of guidance
        raise BadInputError(f"--lanes {lanes} is too few: a guided picture takes 2 lanes.")
    return lanes


def _random_lanes(model: LoadedModel, count: int, shape: LatentShape) -> list[Lanes]:
    """Make lanes of random content, each at another timestep; drawn on the CPU, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    config = model.unet.config
    cond = config.time_cond_proj_dim

    def draw(*size: int) -> torch.Tensor:
        return torch.randn((1, *size), generator=generator).to(model.device)

    return [
        Lanes(
            sample=draw(*shape),
            timesteps=torch.tensor([float((i + 1) * 999 // count)], device=model.device),
            prompt_embeds=draw(model.max_length, config.cross_attention_dim),
            timestep_cond=None if cond is None else draw(cond),
        )
        for i in range(count)
    ]
