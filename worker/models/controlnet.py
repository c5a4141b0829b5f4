"""Load a ControlNet: the worker's own, never one that a job names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.models import device as _device  # noqa: F401 - sets what torch reads from the environment at import

# isort: split
import diffusers
import torch

from storage.errors import ModelLoadError
from storage.models import ModelReference
from worker.models.folder import check_weights, folder_revision, read_json
from worker.models.hub import PART_FILES, fetch_part
from worker.models.load import load_weights, local_folder, reading
from worker.models.threads import in_passing_thread


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNet:
    """What steers a model's denoiser by a picture.

    Attributes:
        name: what its user calls it.
        revision: the hub's commit, or the sha256 over a folder's files.
        network: on its device, in eval mode, no gradients.
    """

    name: str
    revision: str
    network: Any


def load_controlnet(reference: ModelReference, *, device: torch.device, dtype: torch.dtype) -> ControlNet:
    """Load the ControlNet that `reference` names: a folder with config.json and safetensors, or a hub repo.

    Args:
        reference: how its user named it.
        device: of the model that it is for.
        dtype: of that model's parts, denoiser apart.

    Raises:
        ModelLoadError: when it is missing, gated, incomplete, corrupt, unsafe or something else.
    """
    with reading(reference):
        folder, commit = local_folder(reference) or fetch_part(reference)
        if not (folder / "config.json").is_file():
            raise ModelLoadError(
                f"{folder} has no config.json; --controlnet takes the folder of one ControlNet, as "
                f"save_pretrained writes it."
            )
        name = str(read_json(folder / "config.json").get("_class_name"))
        found = getattr(diffusers, name, None) if "ControlNet" in name else None
        if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
            raise ModelLoadError(f"{folder} is a {name}, which is no ControlNet that diffusers has.")
        check_weights(folder, PART_FILES)
        network = in_passing_thread(lambda: load_weights(found, folder, device, torch_dtype=dtype))
        return ControlNet(
            name=reference.name, revision=commit or folder_revision(folder, PART_FILES), network=network
        )
