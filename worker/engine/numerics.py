"""The numerics record: what besides a job's parameters determines its bytes.

Nothing in it differs between two renders of one job on one kind of worker: no host, no GPU's UUID, no time.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from typing import Any

import PIL
import torch
from PIL import features

from worker.models.device import device_name, dtype_name
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline


def numerics_record(model: LoadedModel | LoadedPipeline, *, mode: str) -> dict[str, Any]:
    """Describe model, device and libraries; the engine adds the lanes of the job's latent shape.

    Returns:
        Values that JSON can hold.
    """
    configs: str | None = None
    if isinstance(model, LoadedPipeline):
        denoiser, vae = model.denoiser, getattr(model.pipeline, "vae", None)
    else:
        denoiser, vae, configs = model.unet, model.vae, model.config_revision
    return {
        "model_revision": model.revision,
        **({} if configs is None else {"config_revision": configs}),
        "family": model.family,
        "mode": mode,
        "dtype": model.precision,
        "vae_dtype": "none" if vae is None else dtype_name(vae.dtype),
        "layout": model.layout,
        "launch": model.launch,
        "attention": _attention_backend(denoiser),
        **({"attention_kernels": _attention_kernels()} if model.device.type == "cuda" else {}),
        "device": device_name(model.device),
        "device_type": model.device.type,
        "threads": torch.get_num_threads(),
        # randn on the CPU takes other paths with other instruction sets.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": _versions(model),
        **(model.facts if isinstance(model, LoadedPipeline) else {}),
    }


def _attention_backend(denoiser: Any) -> str:
    """Name the denoiser's attention processors, one name unless somebody mixed them."""
    processors = getattr(denoiser, "attn_processors", {})
    return "+".join(sorted({type(processor).__name__ for processor in processors.values()})) or "own"


def _attention_kernels() -> list[str]:
    """Name the kernels that a GPU's attention is chosen from, see `make_repeatable`."""
    backends: Any = torch.backends.cuda  # torch has no types for some of these
    allowed = {
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "cudnn": backends.cudnn_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return [name for name, is_allowed in allowed.items() if is_allowed]


def _compiler(model: LoadedModel | LoadedPipeline) -> str:
    """Name what generates a compiled UNet's machine code: Triton on a GPU, a C++ compiler elsewhere."""
    if model.device.type == "cuda":
        try:
            return f"triton {importlib.metadata.version('triton')}"
        except importlib.metadata.PackageNotFoundError:  # builds for other GPUs have other names
            return "triton"
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        return "none"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - what torch calls
    return (said.stdout.splitlines() or ["unknown"])[0]


def _versions(model: LoadedModel | LoadedPipeline) -> dict[str, str]:
    onednn = re.search(r"(?:oneDNN|MKL-DNN) v([\d.]+)", torch.__config__.show())
    versions = {
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else "none",
        "pillow": PIL.__version__,
        "zlib": features.version("zlib") or "none",
    }
    if model.launch == "compiled":
        versions |= {"compiler": _compiler(model)}
    if model.device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    libraries = ("diffusers", "transformers", "scipy", "torchsde", "numpy")
    return versions | {name: importlib.metadata.version(name) for name in libraries}


def decoder_versions() -> dict[str, str]:
    """Name the libraries that decode what a job begins with: those of lossy formats may round otherwise."""
    names = {"libjpeg": "libjpeg_turbo", "webp": "webp"}
    return {name: features.version(feature) or "none" for name, feature in names.items()}
