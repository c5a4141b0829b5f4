"""How much memory models take on their device, and how much is left for another."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from storage.models import ModelReference, is_single_file
from worker.models.folder import model_files
from worker.models.load import LoadedModel, find_model, reading
from worker.models.pipeline import LoadedPipeline

# Kept free of weights, as a share of all memory: a forward pass of R lanes and a decoding need room as well.
RESERVES = {"cuda": 0.2}
RESERVE = 0.1  # of any other device
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")


def weights_bytes(model: LoadedModel | LoadedPipeline) -> int:
    """Return the bytes of all parameters and buffers of a loaded model, shared ones counted once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in _modules(model)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def _modules(model: LoadedModel | LoadedPipeline) -> Iterator[torch.nn.Module]:
    if isinstance(model, LoadedModel):
        parts = [model.text_encoder, model.text_encoder_2, model.unet, model.vae]
    else:
        parts = list(model.pipeline.components.values())
    return (part for part in parts if isinstance(part, torch.nn.Module))


def files_bytes(reference: ModelReference) -> int:
    """Return the bytes of a model's weight files: what is known of its size before it is loaded.

    More than it takes where it is loaded in fewer bits than it is stored in.

    Raises:
        ModelLoadError: when it is not here and cannot be downloaded.
    """
    with reading(reference):
        if is_single_file(reference.source):
            return Path(reference.source).stat().st_size
        folder, _ = find_model(reference)
        return sum(path.stat().st_size for path in model_files(folder) if path.suffix == ".safetensors")


def room(device: torch.device) -> int | None:
    """Return how many bytes the weights of another model may take; None where nobody can tell."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        known = _host_memory()
        if known is None:
            return None
        free, total = known
    return int(free - total * RESERVES.get(device.type, RESERVE))


def give_back(device: torch.device) -> None:
    """Let go of what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _host_memory() -> tuple[int, int] | None:
    """Return free and total bytes of the machine, or of the container if that has less; None but on Linux."""
    try:
        lines = (line.split() for line in _MEMINFO.read_text().splitlines())
        info = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        machine = info["MemAvailable"], info["MemTotal"]
    except (OSError, KeyError, IndexError, ValueError):
        return None
    container = _container_memory()
    return machine if container is None else min(machine, container)


def _container_memory() -> tuple[int, int] | None:
    """Return what the control group (version 2) leaves and allows; None where it sets no limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):  # no such files, or `max`
        return None
    return limit - used + cached, limit


def usage(device: torch.device) -> dict[str, int]:
    """Return bytes that this process has `used`, and that are `free` and there in `total`, where known.

    Of a GPU; of any other device the host's memory, or the container's.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"used": torch.cuda.memory_reserved(device), "free": free, "total": total}
    try:
        used = {"used": int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    except (OSError, IndexError, ValueError):
        used = {}
    known = _host_memory()
    return used if known is None else {**used, "free": known[0], "total": known[1]}
