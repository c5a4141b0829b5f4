"""A model of a few numbers: fast, and easy to break on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worker.engine import agreement
from worker.engine.digests import lane_digests
from worker.models.load import LoadedModel


@dataclass
class Looking:
    """Compares what lanes put out.

    Attributes:
        fits: lanes that there is memory to look at; forward passes of more may fit all the same.
    """

    fits: float = math.inf

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Do as `lane_digests`."""
        if len(output) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lane_digests(output)


@dataclass
class FakeUnet:
    """Predicts a tenth of its input.

    Attributes:
        before: may raise, or change the prediction.
        saw: is told what each forward pass got.
        copies: how often it was copied, which is done to run in mixed precision: it computes in bfloat16.
        fits: latents (lanes times height times width) that the memory holds; a native lane has 64.
        widths: the lanes of all forward passes.
    """

    before: Callable[[torch.Tensor], torch.Tensor] | None = None
    saw: Callable[[dict[str, Any]], object] | None = None
    fits: float = math.inf
    widths: list[int] = field(default_factory=list)
    config: Any = field(
        default_factory=lambda: SimpleNamespace(in_channels=4, time_cond_proj_dim=None, cross_attention_dim=2)
    )
    attn_processors: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    copies: int = 0

    def modules(self) -> list[torch.nn.Module]:
        """Return its layers: there are none."""
        return []

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return a weight in its dtype."""
        return [torch.nn.Parameter(torch.zeros(1, dtype=self.dtype), requires_grad=False)]

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        """Return its layers by name."""
        return []

    def __deepcopy__(self, _: object) -> FakeUnet:
        """Copy, but go on counting in the same place."""
        return replace(self, copies=self.copies + 1)

    def to(
        self, dtype: torch.dtype | None = None, *, memory_format: torch.memory_format | None = None
    ) -> FakeUnet:
        """Note what a real UNet would become."""
        self.dtype, self.layout = dtype or self.dtype, memory_format or self.layout
        return self

    def __call__(self, sample: torch.Tensor, *_: Any, **named: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        if self.saw:
            self.saw({**named, "unet": self, "sample": sample})
        self.widths.append(len(sample))
        if sample[:, 0].numel() > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sample = sample.bfloat16() if self.copies else sample
        return (((self.before(sample) if self.before else sample) * 0.1).float(),)


class FakeText:
    """Tokenizer and text encoder in one."""

    model_max_length = 4
    device = torch.device("cpu")
    dtype = torch.float32
    config = SimpleNamespace()

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Answer both as a tokenizer and as an encoder."""
        return FakeEncoding((torch.zeros(1, 4, 2),))


class FakeEncoding(tuple):  # type: ignore[type-arg] # noqa: SLOT001 - holds what both answers need
    """A tuple that also has a tokenizer's fields."""

    input_ids = torch.zeros(1, 4, dtype=torch.int64)
    attention_mask = torch.ones(1, 4, dtype=torch.int64)


class FakeVae:
    """Repeats three of the four channels, a pixel per latent."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """Answer as AutoencoderKL does with return_dict=False."""
        return (latents[:, :3],)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Looking:
    """Return what compares lanes, to be left with little memory by the test."""
    looking = Looking()
    monkeypatch.setattr(agreement, "lane_digests", looking)
    return looking


@pytest.fixture
def unet() -> FakeUnet:
    """Return the fake UNet, to be broken by the test."""
    return FakeUnet()


@pytest.fixture
def model(unet: FakeUnet) -> LoadedModel:
    """Return a model of fakes with a real noise scheduler config."""
    return LoadedModel(
        name="fake",
        source="nowhere",
        revision="0" * 64,
        family="sd",
        tokenizer=FakeText(),
        text_encoder=FakeText(),
        unet=unet,
        vae=FakeVae(),
        scheduler_config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        device=torch.device("cpu"),
        dtype=torch.float32,
        vae_scale_factor=8,
        native_size=(64, 64),
        max_length=4,
        defaults={"width": 64, "height": 64},
    )
