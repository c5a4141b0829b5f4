"""Load a model whose loop is rebuilt part by part, without pipeline, safety checker or remote code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.models import device as _device  # noqa: F401 - sets what torch reads from the environment at import

# isort: split
import diffusers
import torch
import transformers

from storage.errors import ModelLoadError
from storage.model_defaults import read_defaults, read_native_size
from storage.model_families import REBUILT, read_pipeline, rebuilt_pipeline
from storage.models import ModelReference
from worker.models.device import precision_name
from worker.models.families import FAMILIES
from worker.models.families.protocol import Family
from worker.models.folder import SINGLE_FILES, check_folder, config_revision, folder_revision, read_json
from worker.models.hub import fetch
from worker.models.pipeline import COMMIT_LENGTH
from worker.models.single_file import checkpoint_revision, find_checkpoint, is_checkpoint, load_checkpoint
from worker.models.threads import in_passing_thread

if TYPE_CHECKING:
    from worker.models.loras import LoadedLora


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model on its device, ready to render.

    Attributes:
        name: what jobs and queues call it.
        source: folder, single file or hub repo id.
        revision: the hub's commit (40 hex digits), or the sha256 over a folder's files, or of a single one
            (64).
        config_revision: the sha256 over the configs that a single file was loaded with; None for others.
        family: `sd`, Stable Diffusion 1.x and 2.x, or `sdxl`.
        tokenizer, text_encoder, unet, vae: transformers' and diffusers' classes, in eval mode, no gradients.
        tokenizer_2, text_encoder_2: of Stable Diffusion XL.
        force_zeros_for_empty_prompt: whether zeros stand for a missing negative prompt; likewise.
        scheduler_config: what its pipeline's `scheduler.config` would be, that one's fix-ups included.
        device: of all weights.
        dtype: of what goes into the UNet and comes out; the VAE's may be another.
        mixed: whether the UNet's products are in bfloat16 all the same, see `worker.models.mixed`.
        layout: of the UNet's convolutions, `contiguous` or `channels_last`.
        launch: how a forward pass is launched, `eager`, `compiled` or `cuda_graphs`.
        vae_scale_factor: pixels per latent, 8 for the published models.
        native_size: (width, height) in pixels.
        max_length: tokens of a prompt, begin and end included.
        defaults: sampler, schedule, guidance_scale, num_inference_steps, width and height for jobs without.
        loras: those that jobs may name, by name, all turned off.
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
    mixed: bool = False
    layout: str = "contiguous"
    launch: str = "eager"
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    force_zeros_for_empty_prompt: bool = False
    config_revision: str | None = None
    loras: Mapping[str, LoadedLora] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """What the UNet computes in: a dtype's name, or `mixed_bfloat16`."""
        return precision_name(self.dtype, mixed=self.mixed)

    @property
    def kind(self) -> Family:
        """What its family is to the loop."""
        return FAMILIES[self.family]

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
    file, folder, commit = _find(reference)
    check_folder(folder, weights=file is None)
    rebuilt = rebuilt_pipeline(folder)
    if rebuilt is None:
        raise ModelLoadError(f"{folder} is a {read_pipeline(folder)}, and not one of {', '.join(REBUILT)}.")
    size = read_native_size(folder)
    defaults = read_defaults(folder, size=size)  # before the weights, which take their time
    if size is None:
        raise ModelLoadError(f"{folder / 'unet' / 'config.json'} names no sample_size; add the UNet's own.")
    family = FAMILIES[rebuilt.family]
    parts = _tokenizers(folder, family) | _networks(file, folder, family, device=device, dtype=dtype)
    model = LoadedModel(
        name=reference.name,
        source=reference.source,
        revision=commit or (checkpoint_revision(file) if file else folder_revision(folder)),
        family=rebuilt.family,
        scheduler_config=_scheduler_config(folder / "scheduler", family),
        device=device,
        dtype=dtype,
        vae_scale_factor=2 ** (len(parts["vae"].config.block_out_channels) - 1),
        native_size=size,
        max_length=parts["tokenizer"].model_max_length,
        defaults=defaults,
        config_revision=config_revision(folder) if file else None,
        force_zeros_for_empty_prompt=bool(
            read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
        **parts,
    )
    problem = family.problem(model)
    if problem is not None:
        raise ModelLoadError(f"{folder} is a {read_pipeline(folder)} whose {problem}; take another model.")
    return model


def _find(reference: ModelReference) -> tuple[Path | None, Path, str | None]:
    """Return a model's single file, if it is one; the folder of its configs; its commit on the hub."""
    if is_checkpoint(reference):
        return *find_checkpoint(reference), None
    return None, *find_model(reference)


def _tokenizers(folder: Path, family: Family) -> dict[str, Any]:
    names = [name.replace("text_encoder", "tokenizer") for name in family.text_encoders]
    return {name: _load(transformers.CLIPTokenizer, folder / name) for name in names}


def _networks(
    file: Path | None, folder: Path, family: Family, *, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Load UNet, VAE and text encoders, from the folder or from the single file."""
    vae_dtype = family.vae_dtype(read_json(folder / "vae" / "config.json"), dtype)
    if file is not None:
        pipeline = str(read_pipeline(folder))
        return load_checkpoint(file, folder, pipeline, device=device, dtype=dtype, vae_dtype=vae_dtype)
    encoders = {
        name: load_weights(text_encoder, folder / name, device, dtype=dtype)
        for name, text_encoder in family.text_encoders.items()
    }
    unet = load_weights(diffusers.UNet2DConditionModel, folder / "unet", device, torch_dtype=dtype)
    vae = load_weights(diffusers.AutoencoderKL, folder / "vae", device, torch_dtype=vae_dtype)
    return {**encoders, "unet": unet, "vae": vae}


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


def _scheduler_config(folder: Path, family: Family) -> dict[str, Any]:
    """Read the noise scheduler's config, with its class and as the family's pipeline leaves it.

    `_use_default_values` stays as it is: it is how diffusers knows what another class may replace by its own
    defaults.
    """
    name = read_json(folder / "scheduler_config.json").get("_class_name")
    scheduler_class = getattr(diffusers, str(name), None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, diffusers.SchedulerMixin):
        raise ModelLoadError(f"{folder} names a noise scheduler {name!r} that diffusers does not have.")
    return family.scheduler_config(dict(_load(scheduler_class, folder).config) | {"_class_name": name})
