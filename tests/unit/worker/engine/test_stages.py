"""Noise, pixels and files are the same every time."""

from __future__ import annotations

import io
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from worker.stages.decode import decode
from worker.stages.guidance import guidance_embedding, guide, is_guided
from worker.stages.noise import initial_noise, job_generator
from worker.stages.picture import encode_png, pixel_sha256


def test_noise_is_diffusers_noise() -> None:
    """The draws are those of diffusers' randn_tensor with a CPU generator."""
    theirs = randn_tensor((1, 4, 9, 8), generator=torch.Generator().manual_seed(2**63 - 1))
    assert torch.equal(initial_noise((4, 9, 8), job_generator(2**63 - 1)), theirs)


def test_guidance_as_diffusers() -> None:
    """Guidance runs above 1 only, and not where the UNet embeds the scale."""
    assert is_guided(1.01, None)
    assert not is_guided(1.0, None)
    assert not is_guided(7.5, 256)
    one, two = torch.ones(1), torch.full((1,), 2.0)
    assert guide(one, two, 3.0).item() == 4.0


def test_the_embedded_scale_is_diffusers() -> None:
    """UNets that take the scale as an input get diffusers' embedding of it."""
    theirs = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(
        None, torch.tensor([6.5]), embedding_dim=256
    )
    assert torch.equal(guidance_embedding(7.5, 256), theirs)


class IdentityVae:
    """Returns what it is given."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        """Answer as AutoencoderKL does with return_dict=False."""
        return (latents,)


def test_rounding_is_diffusers() -> None:
    """Pixels are rounded as VaeImageProcessor does, halves and values out of range included."""
    values = torch.linspace(-1.2, 1.2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    theirs = VaeImageProcessor().postprocess(values, output_type="pil")[0]
    assert np.array_equal(decode(IdentityVae(), values), np.asarray(theirs))


def test_values_that_are_not_finite_are_no_picture() -> None:
    """A decoder that returns NaN is an error, not a black picture."""
    with pytest.raises(ValueError, match="not finite"):
        decode(IdentityVae(), torch.full((1, 3, 8, 8), float("nan")))


def test_equal_pictures_are_equal_files() -> None:
    """Encoding twice gives the same bytes, and a reader gets pixels and text back."""
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    text = {"parameters": "a fox\nSteps: 4, Seed: 1, Size: 8x8", "promptmill": '{"note": "日本"}'}
    data = encode_png(pixels, text)
    assert data == encode_png(pixels.copy(), dict(text))
    read = Image.open(io.BytesIO(data))
    assert read.text == text  # type: ignore[attr-defined]
    assert pixel_sha256(np.asarray(read)) == pixel_sha256(pixels)
