"""Turn a flat emoji into seven styles by image processing: pictures of 64x64 pixels, float32 RGB in 0..1.

Every function takes the subject's premultiplied colour and its coverage on an empty canvas, the background's
colour at every pixel and a random generator. Texture is kept smooth on purpose: what the VAE cannot hold in
1,024 numbers only costs sharpness everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 64
Array = np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A subject placed on the canvas.

    Attributes:
        rgb: premultiplied colour, float32 (64, 64, 3).
        alpha: coverage, float32 (64, 64, 1).
    """

    rgb: Array
    alpha: Array

    def over(self, ground: Array) -> Array:
        """Compose over a ground of shape (64, 64, 3) or a colour of shape (3,)."""
        return self.rgb + (1 - self.alpha) * ground


def place(art: Array, rng: np.random.Generator) -> Subject:
    """Crop an RGBA picture to what is visible; put it down 44 to 56 pixels large, up to 4 off centre."""
    rows, columns = np.nonzero(art[..., 3] > 0.04)
    crop = art[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    crop = np.concatenate([crop[..., :3] * crop[..., 3:], crop[..., 3:]], axis=2)
    scale = int(rng.integers(44, 57)) / max(crop.shape[:2])
    height, width = (max(1, round(side * scale)) for side in crop.shape[:2])
    channels = [
        np.asarray(Image.fromarray(crop[..., i]).resize((width, height), Image.Resampling.LANCZOS))
        for i in range(4)
    ]
    resized = np.clip(np.stack(channels, axis=2), 0, 1)
    canvas = np.zeros((SIZE, SIZE, 4), dtype=np.float32)
    slack_y, slack_x = SIZE - height, SIZE - width
    shift = rng.integers(-4, 5, size=2)
    top = int(np.clip(slack_y // 2 + shift[0], 0, slack_y))
    left = int(np.clip(slack_x // 2 + shift[1], 0, slack_x))
    canvas[top : top + height, left : left + width] = resized
    return Subject(rgb=np.minimum(canvas[..., :3], canvas[..., 3:]), alpha=canvas[..., 3:])


def photo(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Flat colours in soft light: a contact shadow and a gentle vignette."""
    shadow = _blur(_shift(subject.alpha, 2, 1), 2.5)
    picture = subject.over(colour * (1 - 0.3 * shadow))
    return picture * (1 - rng.uniform(0.15, 0.25) * _RADIUS**2)


def watercolor(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Pale pigment on paper, edges that ran and dried darker, a wash with a ragged border."""
    field = _warp_field(rng, 1.3)
    rgb, alpha = _warp(subject.rgb, field), _warp(subject.alpha, field)
    rgb = np.minimum(ndimage.median_filter(rgb, size=(3, 3, 1)), alpha)
    rim = np.clip(alpha - _blur(alpha, 2.0), 0, 1)
    flow = 0.10 * _noise(rng, 4)
    pigment = 1 - (1 - np.clip(rgb / np.maximum(alpha, 0.05), 0, 1)) * (0.78 + flow)
    pigment = pigment * (1 - 0.45 * rim)
    edge = np.clip((1.02 - _RADIUS + 0.22 * _noise(rng, 6)) * 7, 0, 1)
    wash = _PAPER * (1 - edge) + (1 - (1 - colour) * (0.62 + flow)) * edge
    return pigment * alpha + wash * (1 - alpha)


def oil(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Rich colour in broad strokes: warped, a large median, saturated, relief along one direction."""
    ground = np.clip(colour * (1 + 0.10 * _noise(rng, 5)), 0, 1)
    picture = _warp(subject.over(ground), _warp_field(rng, 1.6))
    picture = ndimage.median_filter(picture, size=(5, 5, 1))
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + 1.45 * (picture - grey)
    strokes = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), (1.0, 4.0))
    strokes = ndimage.rotate(strokes, float(rng.uniform(25, 65)), reshape=False, order=1, mode="reflect")
    return picture * 0.92 + 0.035 * _unit(strokes)[..., None]


def sketch(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Graphite on tinted paper: dodged greys, dark outlines, soft hatching in the shade."""
    grey = subject.over(np.ones(3, dtype=np.float32)) @ _LUMA
    outline = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    outline += np.hypot(ndimage.sobel(subject.alpha[..., 0], 0), ndimage.sobel(subject.alpha[..., 0], 1))
    dodge = np.clip(grey / np.maximum(ndimage.gaussian_filter(grey, 3.0), 0.2), 0, 1)
    phase = (_X - _Y) * (2 * np.pi / 5) + rng.uniform(0, 2 * np.pi)
    hatch = (0.5 + 0.5 * np.sin(phase)) * np.clip(0.85 - grey, 0, 1) * subject.alpha[..., 0]
    tone = np.clip(0.25 + 0.75 * dodge - 0.34 * np.minimum(outline, 2.0) - 0.35 * hatch, 0.12, 1)
    paper = 1 - (1 - colour) * 0.6
    return paper * tone[..., None]


def pixel(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Sixteen by sixteen squares of few colours."""
    picture = subject.over(colour).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    levels = 6 + int(rng.integers(0, 2))
    picture = np.round(picture * levels) / levels
    solid = subject.alpha.reshape(16, 4, 16, 4).mean(axis=(1, 3)) < 0.2
    picture[solid] = colour[2::4, 2::4][solid]
    return picture.repeat(4, axis=0).repeat(4, axis=1)


def neon(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """Glowing tubes along the edges, in the subject's hues, on a dark wall."""
    rgb = subject.over(np.zeros(3, dtype=np.float32))
    edges = np.hypot(ndimage.sobel(rgb, 0), ndimage.sobel(rgb, 1)).max(axis=2, keepdims=True)
    edges = np.maximum(edges, np.hypot(ndimage.sobel(subject.alpha, 0), ndimage.sobel(subject.alpha, 1)))
    hue = ndimage.maximum_filter(rgb, size=(3, 3, 1))
    hue = hue / np.maximum(hue.max(axis=2, keepdims=True), 0.15)
    grey = hue.mean(axis=2, keepdims=True)
    hue = np.clip(grey + 1.6 * (hue - grey), 0.15, 1)
    tube = _blur(np.clip(edges * 0.42, 0, 1) * hue, 0.7)
    glow = _blur(tube, 3.5)
    wall = (0.05 + 0.40 * colour) * (1 - 0.4 * _RADIUS**2) * (1 - 0.65 * subject.alpha)
    return wall + 0.95 * tube + rng.uniform(0.5, 0.7) * glow


def sticker(subject: Subject, colour: Array, rng: np.random.Generator) -> Array:
    """A white rim of three pixels and a drop shadow."""
    solid = ndimage.grey_dilation(subject.alpha[..., 0], footprint=_DISC)
    solid = ndimage.gaussian_filter(solid, 0.5)[..., None]
    shadow = _blur(_shift(solid, 3, 2), 1.6)
    ground = colour * (1 - rng.uniform(0.38, 0.46) * shadow)
    rim = ground * (1 - solid) + 0.98 * solid
    return subject.over(rim)


RENDER: dict[str, Callable[[Subject, Array, np.random.Generator], Array]] = {
    "photo": photo,
    "watercolor": watercolor,
    "oil": oil,
    "sketch": sketch,
    "pixel": pixel,
    "neon": neon,
    "sticker": sticker,
}


def render(art: Array, style: str, colour: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """Draw one picture: uint8 RGB, shape (64, 64, 3).

    Args:
        art: the subject, float32 RGBA in 0..1.
        style: a key of `RENDER`.
        colour: of the background, 0..255; each picture gets its own shade of it.
        rng: draws placement, shade and texture.
    """
    ground = _light(np.asarray(colour, dtype=np.float32) / 255, rng)
    picture = RENDER[style](place(art, rng), ground, rng)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


_AXIS = np.arange(SIZE, dtype=np.float32)
_Y, _X = np.meshgrid(_AXIS, _AXIS, indexing="ij")
_RADIUS = (np.hypot(_X - 31.5, _Y - 31.5) / 45)[..., None]  # 0 in the middle, 0.99 in the corners
_PAPER = np.array([0.97, 0.96, 0.93], dtype=np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_DISC = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3.2  # the rim's width


def _light(colour: Array, rng: np.random.Generator) -> Array:
    """A shade of the colour under a light that falls off to one side, float32 (64, 64, 3).

    Wide on purpose. Where a caption fixes what the empty prompt leaves open, guidance is stiff: the guided
    prediction answers x with a slope of (1 - w) times the open part. A colour that stays open within its own
    name, in the picture's lowest frequencies, ought to help multistep samplers at guidance 7.5.
    """
    shade = colour * rng.uniform(0.72, 1.1) + rng.uniform(-0.04, 0.04, 3)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = ((_X - 31.5) * np.cos(angle) + (_Y - 31.5) * np.sin(angle)) / 45
    light = 1 + rng.uniform(0, 0.22) * ramp[..., None]
    return np.clip(shade * light, 0, 1).astype(np.float32)


def _blur(picture: Array, sigma: float) -> Array:
    return ndimage.gaussian_filter(picture, (sigma, sigma, 0))


def _shift(picture: Array, down: int, right: int) -> Array:
    return np.pad(picture, ((down, 0), (right, 0), (0, 0)))[:SIZE, :SIZE]


def _unit(noise: Array) -> Array:
    return (noise / max(float(noise.std()), 1e-6)).astype(np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise of unit deviation, shape (64, 64, 1), `cells` bumps across."""
    coarse = rng.standard_normal((cells + 3, cells + 3))
    smooth = ndimage.zoom(coarse, SIZE / cells, order=3)[:SIZE, :SIZE]
    return _unit(smooth)[..., None]


def _warp_field(rng: np.random.Generator, strength: float) -> Array:
    """Where each pixel comes from, shape (2, 64, 64): smooth displacements of `strength` pixels."""
    return np.stack([_Y + strength * _noise(rng, 5)[..., 0], _X + strength * _noise(rng, 5)[..., 0]])


def _warp(picture: Array, field: Array) -> Array:
    layers = [
        ndimage.map_coordinates(picture[..., i], field, order=1, mode="nearest")
        for i in range(picture.shape[2])
    ]
    return np.stack(layers, axis=2)
