"""What the demo model can be asked for: nouns, styles, backgrounds, captions, and what is held out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# One clear motif each; where Noto has a face and a whole animal, the one that reads better at 50 pixels.
NOUNS: tuple[str, ...] = (
    # animals
    "otter", "cat", "dog", "fox", "lion", "tiger", "unicorn", "zebra", "pig", "sheep", "giraffe",
    "elephant", "rabbit", "bear", "panda", "koala", "monkey", "mouse", "cow", "horse", "wolf", "hamster",
    "raccoon", "hedgehog", "penguin", "owl", "flamingo", "parrot", "duck", "eagle", "chick", "frog",
    "turtle", "snake", "dragon", "crocodile", "dinosaur", "whale", "dolphin", "fish", "shark", "octopus",
    "crab", "snail", "butterfly", "bee", "ladybug", "spider", "bat", "scorpion",
    # plants
    "rose", "tulip", "sunflower", "cactus", "tree", "palm", "mushroom",
    # food
    "watermelon", "lemon", "banana", "apple", "pear", "strawberry", "pineapple", "carrot", "avocado",
    "pizza", "hamburger", "doughnut", "cupcake", "cookie", "croissant", "egg", "teapot",
    # things that move
    "car", "bus", "tractor", "bicycle", "rocket", "helicopter", "airplane", "sailboat", "balloon",
    # things that stay
    "house", "castle", "tent", "guitar", "trumpet", "drum", "robot", "ghost", "alien", "pumpkin", "skull",
    "heart", "star", "crown", "umbrella", "snowman", "cloud", "rainbow", "volcano", "fire", "anchor",
    "key", "candle", "clock",
)  # fmt: skip

# What emoji-datasource calls them, where it is another name.
EMOJI_NAMES: dict[str, str] = {
    "fox": "fox_face",
    "lion": "lion_face",
    "unicorn": "unicorn_face",
    "zebra": "zebra_face",
    "giraffe": "giraffe_face",
    "panda": "panda_face",
    "monkey": "monkey_face",
    "chick": "baby_chick",
    "dragon": "dragon_face",
    "dinosaur": "t-rex",
    "fish": "tropical_fish",
    "tree": "deciduous_tree",
    "palm": "palm_tree",
    "egg": "fried_egg",
    "bicycle": "bike",
    "airplane": "small_airplane",
    "sailboat": "boat",
    "castle": "european_castle",
    "drum": "drum_with_drumsticks",
    "robot": "robot_face",
    "pumpkin": "jack_o_lantern",
    "clock": "alarm_clock",
}

STYLES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}", "a photograph of {}", "photo of {}"),
    "watercolor": (
        "a watercolor painting of {}",
        "a watercolor of {}",
        "watercolor painting of {}",
        "{}, watercolor",
    ),
    "oil": ("an oil painting of {}", "oil painting of {}", "{}, oil painting"),
    "sketch": ("a pencil sketch of {}", "a sketch of {}", "pencil sketch of {}", "a pencil drawing of {}"),
    "pixel": ("pixel art of {}", "{}, pixel art", "a pixel art picture of {}"),
    "neon": ("a neon sign of {}", "neon sign of {}", "{}, neon sign"),
    "sticker": ("a sticker of {}", "sticker of {}", "{}, sticker"),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (206, 62, 56),
    "orange": (238, 150, 62),
    "yellow": (244, 218, 94),
    "green": (104, 176, 92),
    "teal": (56, 160, 160),
    "blue": (72, 118, 206),
    "purple": (136, 88, 178),
    "pink": (242, 164, 190),
    "white": (244, 244, 240),
}

BACKGROUND_PHRASES = (
    "{} on {article} {} background",
    "{} on {article} {} background",
    "{}, {} background",
    "{} on {}",
)
FILLERS = ("cute", "little", "small", "big", "beautiful", "happy")
NAMED_BACKGROUND = 0.7  # share of captions that name it: else the model could not draw without being told
FILLER = 0.08
CAPTION_DROP = 0.1  # classifier-free guidance needs the empty prompt

HELD_OUT_PAIRS = 24
HELD_OUT_TRIPLES = 0.1
_HELD_OUT_SEED = 32


@dataclass(frozen=True, order=True, slots=True)
class Triple:
    """What a picture shows: a noun in a style on a background."""

    noun: str
    style: str
    background: str

    @property
    def pair(self) -> tuple[str, str]:
        """Noun and style."""
        return self.noun, self.style


def all_triples() -> Iterator[Triple]:
    """Every combination, in a fixed order."""
    return itertools.starmap(Triple, itertools.product(NOUNS, STYLES, BACKGROUNDS))


def held_out() -> tuple[frozenset[tuple[str, str]], frozenset[Triple]]:
    """Return what training never sees: whole (noun, style) pairs, and triples of the other pairs."""
    rng = random.Random(_HELD_OUT_SEED)
    nouns = rng.sample(sorted(NOUNS), HELD_OUT_PAIRS)
    styles = list(STYLES)
    pairs = frozenset((noun, styles[i % len(styles)]) for i, noun in enumerate(nouns))
    rest = [triple for triple in all_triples() if triple.pair not in pairs]
    triples = frozenset(rng.sample(rest, int(len(rest) * HELD_OUT_TRIPLES)))
    return pairs, triples


def training_triples() -> list[Triple]:
    """Every combination that training may see."""
    pairs, triples = held_out()
    return [triple for triple in all_triples() if triple.pair not in pairs and triple not in triples]


def caption(
    triple: Triple, rng: random.Random, *, named: float = NAMED_BACKGROUND, filler: float = FILLER
) -> str:
    """Write one caption of a picture.

    Args:
        triple: what it shows.
        rng: draws template, filler and whether the background is named.
        named: probability that the background is named.
        filler: probability of an adjective that says nothing about the picture.
    """
    noun = f"{rng.choice(FILLERS)} {triple.noun}" if rng.random() < filler else triple.noun
    text = rng.choice(STYLES[triple.style]).format(f"{_article(noun)} {noun}")
    if rng.random() < named:
        background = triple.background
        text = rng.choice(BACKGROUND_PHRASES).format(text, background, article=_article(background))
    return text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"


def prompt(triple: Triple) -> str:
    """The prompt that the evaluation asks with: the first template, background named."""
    return caption(triple, _First(), named=1.0, filler=0.0)


class _First(random.Random):
    """Draws the first of everything, so that `caption` writes its plainest form."""

    def random(self) -> float:
        return 0.5

    def choice(self, seq: Any) -> Any:
        return seq[0]


def caption_words() -> list[str]:
    """Every word that a caption may hold, sorted: each becomes one token."""
    templates = [text for texts in STYLES.values() for text in texts] + list(BACKGROUND_PHRASES)
    words = set(" ".join(templates).replace("{}", " ").replace("{article}", " ").replace(",", " , ").split())
    return sorted(words | {"a", "an"} | set(NOUNS) | set(BACKGROUNDS) | set(FILLERS))
