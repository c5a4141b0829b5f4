"""The drawn pictures: styles, placement, and that a seed gives the same pictures again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import data
from training.styles import RENDER, place, render
from training.vocabulary import BACKGROUNDS, NOUNS, STYLES


def art() -> np.ndarray:
    """A red disc on nothing, RGBA."""
    y, x = np.mgrid[:64, :64]
    disc = (np.hypot(x - 20, y - 40) < 18).astype(np.float32)
    return np.stack([0.9 * disc, 0.2 * disc, 0.1 * disc, disc], axis=2)


def test_every_style_has_a_renderer() -> None:
    """The vocabulary and the renderers name the same styles."""
    assert set(RENDER) == set(STYLES)


@pytest.mark.parametrize("style", list(STYLES))
def test_a_style_draws_the_subject_on_its_background(style: str) -> None:
    """A picture is 64x64 RGB, depends on its seed only, and shows which background it has."""
    blue, red = (
        render(art(), style, BACKGROUNDS[name], np.random.default_rng(5)).astype(int)
        for name in ("blue", "red")
    )
    again = render(art(), style, BACKGROUNDS["blue"], np.random.default_rng(5))
    other = render(art(), style, BACKGROUNDS["blue"], np.random.default_rng(6))
    assert blue.shape == (64, 64, 3)
    assert (again == blue).all()
    assert (other != blue).any()
    border = np.r_[0:4, 60:64]
    assert (blue[border, :, 2] - blue[border, :, 0]).mean() > 10
    assert (red[border, :, 0] - red[border, :, 2]).mean() > 10


def test_a_subject_is_placed_whole_and_large() -> None:
    """Wherever it lies in the art, it is 44 to 56 pixels large, and nothing of it is cut off."""
    for seed in range(20):
        rows, columns = np.nonzero(place(art(), np.random.default_rng(seed)).alpha[..., 0] > 0.5)
        assert 42 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 56


def test_drawing_again_gives_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures depend on the seed, not on processes or on what is there; sets do not repeat each other."""
    monkeypatch.setattr(data, "fetch_art", lambda folder: folder)
    monkeypatch.setattr(data, "read_art", lambda _: dict.fromkeys(NOUNS, art()))
    pictures: list[Any] = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        data.build(folder, variants=1, seed=3, limit=12)
        pictures.append({name: data.load(folder, name) for name in ("train", "held_out", "judge")})
    for name, drawn in pictures[0].items():
        assert (drawn.pixels == pictures[1][name].pixels).all()
        assert (data.to_labels([drawn.triple(i) for i in range(12)]) == drawn.labels).all()
    assert (pictures[0]["train"].pixels != pictures[0]["judge"].pixels).any()
