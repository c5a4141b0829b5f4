"""`python -m worker.facts`: what torch is here and can do, as a line of JSON.

Asked by `doctor`. A dtype works where a product in it comes out right: a build without kernels for a GPU says
so only when it has to compute.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from worker.models.device import (
    DTYPES,
    choose_device,
    choose_dtype,
    device_facts,
    dtype_name,
    fast_dtypes,
)

import torch  # isort: skip - the module above sets what torch reads when it is loaded

SIZE = 16  # of the matrices that are multiplied


def facts() -> dict[str, Any]:
    """Return torch's version and build, every device with what it can do, and what a worker would choose."""
    kinds = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    kinds += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    device = choose_device("auto")
    return {
        "torch": torch.__version__,
        "build": _build(),
        "threads": torch.get_num_threads(),
        "devices": [_device(kind) for kind in kinds],
        "auto": f"{dtype_name(choose_dtype('auto', device))} on {device}",
    }


def _build() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"


def _device(kind: str) -> dict[str, Any]:
    device = torch.device(kind)
    told = device_facts(device)
    return {
        **told,
        "kind": _kind(device),
        "dtypes": {name: _trial(device, dtype) for name, dtype in DTYPES.items()},
        "fast": [dtype_name(dtype) for dtype in _fast(device)],
    }


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device}, compute capability {major}.{minor}"
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type


def _fast(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes of half the width that the hardware multiplies natively, as far as torch says."""
    if device.type != "cuda":
        return fast_dtypes(device)
    return (torch.float16, torch.bfloat16) if torch.cuda.is_bf16_supported() else (torch.float16,)


def _trial(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    try:
        ones = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
        works = bool(((ones @ ones) == SIZE).all())
    except (RuntimeError, NotImplementedError) as error:
        return {"works": False, "reason": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    return {"works": works} if works else {"works": False, "reason": "a product came out wrong"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
