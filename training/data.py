"""Draw the training pictures once, into arrays on disk: every training triple in several variants."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.art import fetch_art, read_art
from training.parallel import in_parallel
from training.styles import render
from training.vocabulary import BACKGROUNDS, NOUNS, STYLES, Triple, all_triples, held_out, training_triples

_NOUN_INDEX = {noun: i for i, noun in enumerate(NOUNS)}
_STYLE_INDEX = {style: i for i, style in enumerate(STYLES)}
_BACKGROUND_INDEX = {background: i for i, background in enumerate(BACKGROUNDS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Pictures and what they show.

    Attributes:
        pixels: uint8, shape (n, 64, 64, 3), memory-mapped.
        labels: int64, shape (n, 3): noun, style and background by their position in the vocabulary.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def triple(self, i: int) -> Triple:
        """What picture i shows."""
        return to_triple(self.labels[i])


def to_labels(triples: list[Triple]) -> np.ndarray:
    """Return (n, 3) positions in the vocabulary."""
    return np.array(
        [(_NOUN_INDEX[t.noun], _STYLE_INDEX[t.style], _BACKGROUND_INDEX[t.background]) for t in triples],
        dtype=np.int64,
    )


def to_triple(labels: np.ndarray) -> Triple:
    """Return the triple of one row of labels."""
    noun, style, background = labels
    return Triple(list(NOUNS)[noun], list(STYLES)[style], list(BACKGROUNDS)[background])


def build(folder: Path, *, variants: int, seed: int, limit: int | None = None) -> None:
    """Write `train`, `held_out` and `judge` pictures into `folder`.

    `held_out` has pictures of combinations that training never sees, to measure VAE and judge on; `judge` has
    every combination, drawn with a seed of its own, for the judge to learn from.

    Args:
        folder: gets `art/`, `train.npy`, `train_labels.npy` and the same for the other two.
        variants: pictures of each training triple, each with its own placement, shade and texture.
        seed: of picture 0; picture i has its own generator, so the number of processes changes nothing.
        limit: draw only so many triples, chosen at random; for a quick run.
    """
    pairs, held_out_triples = held_out()
    rng = np.random.default_rng(seed)
    unseen = sorted(held_out_triples) + [
        Triple(noun, style, background) for noun, style in sorted(pairs) for background in BACKGROUNDS
    ]
    unseen = [unseen[i] for i in rng.permutation(len(unseen))]
    sets = {
        "train": (training_triples(), variants),
        "held_out": (unseen, 1),
        "judge": (list(all_triples()), max(1, variants // 3)),
    }
    art = read_art(fetch_art(folder / "art"))
    for i, (name, (triples, times)) in enumerate(sets.items()):
        kept = [triples[k] for k in rng.permutation(len(triples))[:limit]] if limit else triples
        _draw(folder / name, kept * times, art, seed + i)


def load(folder: Path, name: str) -> Pictures:
    """Open `train`, `held_out` or `judge`."""
    return Pictures(
        pixels=np.load(folder / f"{name}.npy", mmap_mode="r"), labels=np.load(folder / f"{name}_labels.npy")
    )


def _draw(path: Path, triples: list[Triple], art: dict[str, np.ndarray], seed: int) -> None:
    shape = (len(triples), 64, 64, 3)
    pixels = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A sparse file on a full disk would end in a bus error.
        with path.with_suffix(".npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, pixels.offset + math.prod(shape))
    work = [(art[t.noun], t.style, BACKGROUNDS[t.background], (seed, i)) for i, t in enumerate(triples)]
    for i, picture in enumerate(in_parallel(_render, work, chunksize=64)):
        pixels[i] = picture
    pixels.flush()
    np.save(path.with_name(f"{path.name}_labels.npy"), to_labels(triples))


def _render(art: np.ndarray, style: str, colour: tuple[int, int, int], seed: tuple[int, int]) -> np.ndarray:
    return render(art, style, colour, np.random.default_rng(seed))
