"""Which way a model is rendered, from its `model_index.json`: its loop rebuilt, or its own pipeline."""

from __future__ import annotations

import torch

from storage.model_families import rebuilt_pipeline
from storage.models import ModelReference
from worker.models.folder import check_folder
from worker.models.load import LoadedModel, find_model, load_model, reading
from worker.models.load_pipeline import load_pipeline
from worker.models.pipeline import LoadedPipeline
from worker.models.single_file import is_checkpoint


def load(
    reference: ModelReference, *, device: torch.device, dtype: torch.dtype
) -> LoadedModel | LoadedPipeline:
    """Load the model that `reference` names, for the way in which it is rendered.

    Args:
        reference: a folder in diffusers layout, a checkpoint in one file, or a hub repo id.
        device: from `choose_device`.
        dtype: from `choose_dtype`; every part gets it.

    Raises:
        ModelLoadError: when it is missing, gated, incomplete, corrupt or unsafe, or makes no pictures.
    """
    if is_checkpoint(reference):
        return load_model(reference, device=device, dtype=dtype)
    with reading(reference):
        folder, commit = find_model(reference)
        check_folder(folder)
        if rebuilt_pipeline(folder) is None:
            return load_pipeline(reference, folder, commit, device=device, dtype=dtype)
    return load_model(reference, device=device, dtype=dtype)
