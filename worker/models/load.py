"""Load a Stable Diffusion model part by part, without pipeline, safety checker or remote code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models import device as _device  # noqa: F401 - sets what torch reads from the environment at import

# isort: split
import diffusers
import torch
import transformers

from storage.errors import ModelLoadError
from storage.model_defaults import REBUILT_PIPELINE, read_defaults, read_native_size, read_pipeline
from storage.models import ModelReference
from worker.models.folder import SINGLE_FILES, check_folder, folder_revision, read_json
from worker.models.hub import fetch
from worker.models.pipeline import COMMIT_LENGTH
from worker.models.threads import in_passing_thread


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model on its device, ready to render.

    Attributes:
        name: what jobs and queues call it.
        source: folder or hub repo id.
        revision: the hub's commit (40 hex digits), or the sha256 over a folder's files (64).
        family: `sd`, Stable Diffusion 1.x and 2.x.
        tokenizer, text_encoder, unet, vae: transformers' and diffusers' classes, in eval mode, no gradients.
        scheduler_config: what `StableDiffusionPipeline(...).scheduler.config` would be, its fix-ups included.
        device: of all weights.
        dtype: of the UNet's weights; text encoder and VAE may have another, see `worker.models.variant`.
        layout: of the UNet's convolutions, `contiguous` or `channels_last`.
        launch: how a forward pass is launched, `eager`, `compiled` or `cuda_graphs`.
        vae_scale_factor: pixels per latent, 8 for the published models.
        native_size: (width, height) in pixels.
        max_length: tokens of a prompt, begin and end included.
        defaults: sampler, schedule, guidance_scale, num_inference_steps, width and height for jobs without.
    """

    name: str
    source: str
    revision: str
    family: str
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    vae_scale_factor: int
    native_size: tuple[int, int]
    max_length: int
    defaults: dict[str, Any]
    layout: str = "contiguous"
    launch: str = "eager"

    @property
    def repo(self) -> str | None:
        """The hub repo id; None for a folder, whose path is not for others to see."""
        return self.source if len(self.revision) == COMMIT_LENGTH else None


def load_model(
    reference: ModelReference, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load the model that `reference` names.

    Args:
        reference: a folder in diffusers layout or a hub repo id, with or without revision.
        device: from `choose_device`.
        dtype: from `choose_dtype`; every part gets it.

    Raises:
        ModelLoadError: when it is missing, gated, incomplete, corrupt, unsafe or of another family.
    """
    with reading(reference):
        return in_passing_thread(lambda: _load_model(reference, device, dtype))


@contextmanager
def reading(reference: ModelReference) -> Iterator[None]:
    """Turn what a disk says while files are listed, checked and hashed into a ModelLoadError."""
    try:
        yield
    except OSError as error:
        where = error.filename or reference.source
        raise ModelLoadError(
            f"{where} cannot be read ({error.strerror or error}); mend its permissions or its disk."
        ) from error


def _load_model(reference: ModelReference, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    hush()
    folder, commit = find_model(reference)
    check_folder(folder)
    pipeline = read_pipeline(folder)
    if pipeline != REBUILT_PIPELINE:
        raise ModelLoadError(f"{folder} is a {pipeline}, and not a {REBUILT_PIPELINE}.")
    size = read_native_size(folder)
    defaults = read_defaults(folder, size=size)  # before the weights, which take their time
    tokenizer = _load(transformers.CLIPTokenizer, folder / "tokenizer")
    text_encoder = load_weights(transformers.CLIPTextModel, folder / "text_encoder", device, dtype=dtype)
    unet = load_weights(diffusers.UNet2DConditionModel, folder / "unet", device, torch_dtype=dtype)
    vae = load_weights(diffusers.AutoencoderKL, folder / "vae", device, torch_dtype=dtype)
    if size is None:
        raise ModelLoadError(f"{folder / 'unet' / 'config.json'} names no sample_size; add the UNet's own.")
    return LoadedModel(
        name=reference.name,
        source=reference.source,
        revision=commit or folder_revision(folder),
        family="sd",
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler_config=_scheduler_config(folder / "scheduler"),
        device=device,
        dtype=dtype,
        vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1),
        native_size=size,
        max_length=tokenizer.model_max_length,
        defaults=defaults,
    )


def hush() -> None:
    """Turn the libraries' progress bars and notes off: what matters comes back as an exception."""
    # The sigmas that DPM++ SDE asks for are off the ends of its Brownian tree by a rounding error.
    warnings.filterwarnings("ignore", message="Should have t[ab]", category=UserWarning)
    libraries: tuple[Any, ...] = (transformers, diffusers)
    for library in libraries:
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def find_model(reference: ModelReference) -> tuple[Path, str | None]:
    """Return the model's folder, and its commit when it comes from the hub.

    Raises:
        ModelLoadError: when the hub does not give us the model.
    """
    return local_folder(reference) or fetch(reference)


def local_folder(reference: ModelReference) -> tuple[Path, None] | None:
    """Return the folder that a reference names, which has no commit; None for a hub repo."""
    path = Path(reference.source).expanduser()
    looks_local = reference.source.startswith((".", "/", "~")) or reference.source.endswith(SINGLE_FILES)
    return (path, None) if path.exists() or looks_local else None


def _load(part_class: Any, folder: Path, **options: Any) -> Any:
    """Call a class's `from_pretrained`, and name the folder when it fails."""
    try:
        return part_class.from_pretrained(folder, local_files_only=True, **options)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{folder} does not fit into the device's memory; take --dtype float16."
        ) from error
    except Exception as error:
        # The libraries raise almost anything for a damaged file.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{folder} cannot be loaded ({reason}); download the model again.") from error


def load_weights(part_class: Any, folder: Path, device: torch.device, **dtype: torch.dtype) -> Any:
    """Load one network; the dtype is always named, else transformers would follow the config's own.

    Args:
        part_class: of diffusers or transformers.
        folder: its config and safetensors.
        device: where it goes.
        dtype: as `torch_dtype` for diffusers, as `dtype` for transformers.

    Raises:
        ModelLoadError: when it cannot be loaded, or lacks weights.
    """
    part, report = _load(part_class, folder, use_safetensors=True, output_loading_info=True, **dtype)
    missing = sorted(report["missing_keys"])
    if missing:
        # from_pretrained would fill them with random numbers and go on.
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights (the first is {missing[0]}); download the model again."
        )
    try:
        return part.to(device).eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{folder} does not fit into the device's memory; take --dtype float16."
        ) from error


def _scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the noise scheduler's config and apply StableDiffusionPipeline's fix-ups to old ones.

    Its `__init__` sets `steps_offset` to 1 and `clip_sample` to False. `_use_default_values` stays as it is:
    it is how diffusers knows what another class may replace by its own defaults.
    """
    name = read_json(folder / "scheduler_config.json").get("_class_name")
    scheduler_class = getattr(diffusers, str(name), None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, diffusers.SchedulerMixin):
        raise ModelLoadError(f"{folder} names a noise scheduler {name!r} that diffusers does not have.")
    config = dict(_load(scheduler_class, folder).config)
    if config.get("steps_offset", 1) != 1:
        config["steps_offset"] = 1
    if config.get("clip_sample", False) is True:
        config["clip_sample"] = False
    return config
