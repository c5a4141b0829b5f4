"""The device, the dtype, and the switches that make a device repeat itself."""

from __future__ import annotations

import os
import re
from typing import Any

# All are read once, when torch starts: operations that Metal lacks run on the CPU instead of failing; cuBLAS
# gets a workspace with which its sums are reproducible; and OpenMP threads sleep while they wait, since on
# cores shared with anything else spinning ones slow a forward pass down many times.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from storage.errors import BadInputError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


# What a measurement may choose and nobody can ask for: a float32 UNet with products in bfloat16
# (`worker.models.mixed`). The name is Keras'.
MIXED = "mixed_bfloat16"


def dtype_name(dtype: torch.dtype) -> str:
    """Return what a user writes for a dtype, like `float32`."""
    return str(dtype).removeprefix("torch.")


def precision_name(dtype: torch.dtype, *, mixed: bool) -> str:
    """Name what a denoiser of this dtype computes in."""
    return MIXED if mixed else dtype_name(dtype)


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to run on.

    Args:
        wanted: `auto` (cuda, else mps, else cpu), `cpu`, `mps`, `cuda`, `cuda:N`, or a GPU's number.

    Raises:
        BadInputError: when there is no such device here.
    """
    if wanted == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    match = re.fullmatch(r"cpu|mps|cuda|(?:cuda:)?(\d+)", wanted)
    if match is None:
        raise BadInputError(f"There is no device {wanted!r}; choose auto, cpu, mps, cuda or a GPU number.")
    number = match[1]
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise BadInputError("There is no Metal device (mps) here; choose --devices auto or cpu.")
    if (wanted == "cuda" or number is not None) and int(number or 0) >= torch.cuda.device_count():
        raise BadInputError(
            f"There is no GPU {number or 0} here ({torch.cuda.device_count()} visible to torch); "
            f"choose --devices auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    return torch.device(wanted if number is None else f"cuda:{number}")


def choose_dtype(wanted: str, device: torch.device, *, mode: str = "exact") -> torch.dtype:
    """Return the dtype of the model's weights.

    Args:
        wanted: `auto`, `float32`, `float16` or `bfloat16`; `auto` is float32 except on cuda, where it is
            bfloat16 if the GPU has it, else float16.
        device: where the model will run.
        mode: the engine's; `reference` is always float32.

    Raises:
        BadInputError: for an unknown dtype, or another than float32 in reference mode.
    """
    if wanted != "auto" and wanted not in DTYPES:
        raise BadInputError(f"There is no dtype {wanted!r}; choose auto, {', '.join(DTYPES)}.")
    if mode == "reference":
        if wanted not in ("auto", "float32"):
            raise BadInputError(f"--mode reference is float32 only, not {wanted}; leave --dtype out.")
        return torch.float32
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def faster_precisions(wanted: str, device: torch.device, *, mode: str = "exact") -> tuple[str, ...]:
    """Return what the UNet may compute in instead of its own dtype if that turns out to be faster.

    Args:
        wanted: as for `choose_dtype`; only `auto` leaves a choice.
        device: likewise.
        mode: likewise.
    """
    return (MIXED,) if wanted == "auto" and mode != "reference" and fast_dtypes(device) else ()


def fast_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes of half the width that a CPU multiplies natively, as far as torch says.

    That is bfloat16 on those with AMX or AVX512-BF16.
    """
    if device.type != "cpu":
        return ()
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot say
    return (torch.bfloat16,) if can.get("amx_bf16") or can.get("avx512_bf16") else ()


def make_repeatable() -> None:
    """Switch off what makes a device's results depend on the moment: autotuning and reduced precision.

    And pin which kernels attention is chosen from; which of them it is goes by shapes, dtype and versions.
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.enable_flash_sdp(enabled=True)
    torch.backends.cuda.enable_mem_efficient_sdp(enabled=True)
    torch.backends.cuda.enable_math_sdp(enabled=True)
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # versions of torch prefer it or not


def device_facts(device: torch.device) -> dict[str, Any]:
    """Describe the device for `worker list`: type, name and, on cuda, the GPU's UUID and memory in bytes."""
    facts: dict[str, Any] = {"type": device.type, "name": device_name(device), "uuid": None, "memory": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"uuid": f"GPU-{properties.uuid}", "memory": properties.total_memory}
    return facts


def device_name(device: torch.device) -> str:
    """Name the kind of device: the GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpu_name()
    return f"Metal on {name}" if device.type == "mps" else name


def _cpu_name() -> str:
    """Read the CPU's model from where Linux keeps it, else ask Python."""
    import platform  # noqa: PLC0415 - a slow import that only this needs

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - not a file of ours
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, platform.processor() or platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
