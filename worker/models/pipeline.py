"""A diffusers pipeline as it was loaded: whole, unmodified, on its device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.models.device import precision_name

if TYPE_CHECKING:
    import torch

    from worker.models.loras import LoadedLora

COMMIT_LENGTH = 40  # hex digits of a hub commit; a folder's hash has 64
DENOISERS = ("unet", "transformer")  # components that are called at every step


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedPipeline:
    """A model that is rendered by its pipeline's own code.

    Attributes:
        name: what jobs and queues call it.
        source: folder or hub repo id.
        revision: the hub's commit (40 hex digits), or the sha256 over a folder's files (64).
        family: the pipeline's class, e.g. `FluxPipeline`.
        pipeline: on its device, in eval mode, without gradients.
        denoiser_name: which of its components is called at every step, one of DENOISERS.
        device: of all weights.
        dtype: likewise.
        native_size: (width, height) in pixels.
        defaults: sampler, schedule, guidance_scale, num_inference_steps, width and height for jobs without.
        facts: what belongs into the numerics record besides.
        mixed, layout, launch, loras: as in `LoadedModel`; a pipeline is run as it is.
    """

    name: str
    source: str
    revision: str
    family: str
    pipeline: Any
    denoiser_name: str
    device: torch.device
    dtype: torch.dtype
    native_size: tuple[int, int]
    defaults: dict[str, Any]
    mixed: bool = False
    layout: str = "contiguous"
    launch: str = "eager"
    loras: Mapping[str, LoadedLora] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """What the denoiser computes in: a dtype's name, or `mixed_bfloat16`."""
        return precision_name(self.dtype, mixed=self.mixed)

    @property
    def repo(self) -> str | None:
        """The hub repo id; None for a folder, whose path is not for others to see."""
        return self.source if len(self.revision) == COMMIT_LENGTH else None

    @property
    def denoiser(self) -> Any:
        """The module whose forward passes are shared."""
        return getattr(self.pipeline, self.denoiser_name)


def guidance_argument(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Name the argument that is classifier-free guidance, or else the scale that a distilled model takes.

    Qwen-Image has both, and leaves `guidance_scale` to distilled models; Flux guides by `guidance_scale`, and
    its `true_cfg_scale` is off by default.
    """
    true_cfg = parameters.get("true_cfg_scale")
    if true_cfg is not None and (true_cfg.default or 0) > 1:
        return "true_cfg_scale"
    return "guidance_scale" if "guidance_scale" in parameters else None
