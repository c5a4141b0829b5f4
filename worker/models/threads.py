"""How many threads a forward pass gets, and that there is one OpenMP team: the engine's.

Every thread that runs a parallel operation of torch gets an OpenMP team of its own for as long as it lives.
Once the teams have more threads than there are cores, libgomp lets idle ones sleep instead of spin, and each
of the hundreds of parallel regions of a forward pass pays for waking them. So what runs beside the engine's
thread either stays below torch's grain size (32,768 elements) or runs in a thread that ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SMALL = 10_000_000  # parameters of a UNet whose parallel regions are too short to share

T = TypeVar("T")


def in_passing_thread(action: Callable[[], T]) -> T:
    """Run `action` in a thread that ends with it, and return or raise what it does."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="passing") as pool:
        return pool.submit(action).result()


def set_threads(unet: torch.nn.Module, device: torch.device) -> int:
    """Give a small UNet on the CPU one thread, leave any other torch's choice, and return the number.

    A rule and not a measurement: the number of threads can change the bytes, so it must not depend on how
    busy the machine was at the start. OMP_NUM_THREADS overrules it. The figures are in decision 0003.
    """
    parameters = sum(weight.numel() for weight in unet.parameters())
    if device.type == "cpu" and parameters < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return torch.get_num_threads()
