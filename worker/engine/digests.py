"""What every layer of a denoiser puts out, as a number per lane: a result in few bits hides much.

In half precision two kernels that add up in another order round to the same number most of the time, so it is
not enough to compare what comes out at the end, and of few lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from worker.engine.lane_layers import over_lanes
from worker.engine.telltale import HALVES, TelltaleInputs

DRAWS = 4  # of R random lanes each, in half precision; in float32 another order shows in more numbers
MOST = 2**20  # numbers of a lane that are hashed at a time: what that takes is small beside any forward pass
_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def draws(denoiser: Any, *, listens: bool = True) -> list[tuple[int, AbstractContextManager[object]]]:
    """Return the seeds of the draws of random lanes that are compared, each with what it is run within.

    Args:
        denoiser: whose passes are compared; one in half precision takes more, and one with telltale inputs.
        listens: whether its layers are heard.
    """
    if not in_half_precision(denoiser):
        return [(seed, nullcontext()) for seed in range(2)]
    # Seed 0 moves lanes by one place, so that whatever goes by places shows.
    first = TelltaleInputs() if listens else nullcontext()
    return [(0, first), *((seed, nullcontext()) for seed in range(1, DRAWS))]


def in_half_precision(denoiser: Any) -> bool:
    """Tell whether any of its weights is."""
    return any(weight.dtype in HALVES for weight in denoiser.parameters())


@contextmanager
def listening(denoiser: Any, lanes: int, *, silent: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the digests of what a denoiser's layers put out meanwhile, in the order in which they run."""
    found: list[torch.Tensor] = []

    def hear(_layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
        if over_lanes(output, lanes):
            found.append(lane_digests(output))

    layers = [] if silent else [layer for layer in denoiser.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(hear) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def lane_digests(output: torch.Tensor) -> torch.Tensor:
    """Return a number for each lane in which every bit of its rows counts, (lanes,) int64.

    Integers add up to the same in any order. Each is weighted by a hash of its place, so that two that were
    rounded up and down do not make up for each other. It is done piece by piece, since a pass that fits
    should not fail for being looked at.

    Args:
        output: (lanes, ...) of any dtype and memory format.
    """
    rows = output if output.dim() > 1 else output[:, None]
    digests = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    first = 0
    for piece in torch.split(rows, max(1, MOST // rows[0, 0].numel()), dim=1):
        weights = _hashes(first, piece[0].numel(), rows.device)
        digests += torch.stack([(_integers(lane) * weights).sum() for lane in piece])
        first += len(weights)
    return digests


def _integers(numbers: torch.Tensor) -> torch.Tensor:
    """Return the bits of floating-point numbers as integers, and anything else as it is, (count,)."""
    flat = numbers.reshape(-1)
    return flat.contiguous().view(_AS_INTEGERS[flat.element_size()]) if flat.is_floating_point() else flat


def _hashes(first: int, count: int, device: torch.device) -> torch.Tensor:
    """Return odd numbers that look random for places from `first` on, (count,) int64.

    By shifts and factors of known mixers.
    """
    numbers = torch.arange(first + 1, first + count + 1, device=device) * -0x61C8864680B583EB
    numbers = (numbers ^ (numbers >> 33)) * -0x00AE502812AA7333
    return (numbers ^ (numbers >> 33)) | 1
