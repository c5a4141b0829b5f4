"""A lane count on trial: is it exact, and how fast is it? One look answers both.

On a fixed shape a lane's result usually depends neither on the other lanes nor on its position, but some
combinations of lanes, threads, layout and dtype break that. `exact` mode promises it, so it is tried out on
the model at hand before the first job. (Some counts even agree with each other: `worker.engine.agreement`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from worker.engine.admission import Group, Parts
from worker.engine.forward import Lanes
from worker.engine.shared_step import predict
from worker.models.load import LoadedModel
from worker.stages.condition import Condition

Beat = Callable[[], None]
TRIAL_SECONDS = 60.0  # once trials have taken this long, no larger candidate is tried


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What forward passes of one width showed.

    Attributes:
        lanes: R.
        exact: whether the probe's prediction was bitwise the same at every position and among two sets of
            mates; of a trial that was `compared`, whether random lanes were so as well, in every layer.
        lanes_per_second: of the fastest pass.
        noise_pred: what the UNet predicted for the probe, the same random lane in every trial of a group,
            (channels, h, w) float32 on the CPU.
        parts: layers that were called for some lanes at a time.
        compared: whether places were compared in every layer as well, see `worker.engine.lane_parts`.
    """

    lanes: int
    exact: bool
    lanes_per_second: float
    noise_pred: torch.Tensor
    parts: Parts = ()
    compared: bool = False


def native_group(model: LoadedModel) -> Group:
    """Return the group of plain prompts at the model's native size."""
    width, height = model.native_size
    factor = model.vae_scale_factor
    shape = (model.unet.config.in_channels, height // factor, width // factor)
    return Group(shape=shape, tokens=model.max_length)


@torch.no_grad()
def try_lanes(
    model: LoadedModel,
    lanes: int,
    *,
    group: Group | None = None,
    parts: Parts = (),
    beat: Beat = nothing,
) -> Trial:
    """Run four forward passes of R lanes that show whether R is exact.

    The probe at every even, then at every odd position, among random mates at other timesteps, then among
    idle lanes. (So each position is seen with both sets of mates.)

    Args:
        model: on its device.
        lanes: R.
        group: its latent shape and prompt length; None for the native ones.
        parts: layers that are called for some lanes at a time.
        beat: called ahead of every forward pass.

    Raises:
        torch.OutOfMemoryError: when that many lanes do not fit.
    """
    drawn = random_lanes(model, lanes + 1, group or native_group(model))
    probe, busy = drawn[0], drawn[1:]
    idle = [_idle(probe) for _ in busy]
    results: list[torch.Tensor] = []
    seconds: list[float] = []
    for mates in (busy, idle):
        for offset in (0, 1):
            beat()
            mixed = Lanes.stack([probe if i % 2 == offset else mate for i, mate in enumerate(mates)])
            began = perf_counter()
            noise_pred = predict(model, mixed, width=lanes, parts=parts).cpu()  # waits for the device
            seconds.append(perf_counter() - began)
            results += noise_pred[offset::2]
    return Trial(
        lanes=lanes,
        exact=all(torch.equal(results[0], result) for result in results),
        lanes_per_second=lanes / min(seconds),
        noise_pred=results[0],
        parts=parts,
    )


def _idle(lane: Lanes) -> Lanes:
    """Return zeros in the form of `lane`."""
    return Lanes(
        sample=torch.zeros_like(lane.sample),
        timesteps=torch.zeros_like(lane.timesteps),
        condition=lane.condition.idle(),
    )


def random_lanes(model: LoadedModel, count: int, group: Group, *, seed: int = 0) -> list[Lanes]:
    """Make lanes of random content, each at another timestep; drawn on the CPU, the same on every device.

    Args:
        model: on its device.
        count: how many.
        group: their latent shape and prompt length.
        seed: of their content.
    """
    generator = torch.Generator().manual_seed(seed)
    _, height, width = (size * model.vae_scale_factor for size in group.shape)
    cond = model.unet.config.time_cond_proj_dim

    def draw(*size: int) -> torch.Tensor:
        return torch.randn((1, *size), generator=generator).to(model.device)

    def condition() -> Condition:
        drawn = model.kind.random(model, draw, tokens=group.tokens, width=width, height=height)
        return drawn if cond is None else replace(drawn, timestep_cond=draw(cond))

    return [
        Lanes(
            sample=draw(*group.shape),
            timesteps=torch.tensor([float((500 + 389 * i + 17 * seed) % 1000)], device=model.device),
            condition=condition(),
        )
        for i in range(count)
    ]
