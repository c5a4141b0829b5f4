"""What the model is meant to reach, held against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.export import MAX_BYTES
from training.vocabulary import NOUNS

GUIDED = (4.0, 7.5)  # the guidance scales that the aims speak of


@dataclass(frozen=True, slots=True)
class Promise:
    """One aim: what, the wanted and the measured value as text, and whether it is reached."""

    what: str
    wanted: str
    measured: str
    kept: bool


def promises(figures: dict[str, Any]) -> list[Promise]:
    """Compare the figures of a run, as `Maker` notes them, with the aims."""
    table = figures["table"]
    default_lms = [row for row in table if (row["sampler"], row["schedule"]) == ("lms", "default")]
    guided = [row for row in table if row not in default_lms and row["guidance"] in GUIDED]
    lines = [
        _share(
            f"held-out {asked}, worst of Euler, DPM++ 2M and LMS (karras) at guidance 4 and 7.5",
            aim,
            min(row["all"] for row in guided if row["asked"] == asked),
        )
        for asked, aim in (("triples", 0.97), ("pairs", 0.95))
    ]
    lines.append(
        _share(
            "held-out triples, LMS with the default spacing at guidance 7.5",
            0.9,
            min(row["all"] for row in default_lms if row["guidance"] == max(GUIDED)),
        )
    )
    (free,) = (row["all"] for row in table if row["guidance"] == 1)
    (euler,) = (
        row["all"]
        for row in guided
        if (row["asked"], row["sampler"], row["guidance"]) == ("triples", "euler", min(GUIDED))
    )
    return [
        *lines,
        Promise(
            "guidance 1 is worse than 4 (Euler)",
            f"below {euler:.1%}",
            f"{free:.1%}",
            free < euler,
        ),
        Promise("nouns", "100", str(len(NOUNS)), len(NOUNS) >= 100),
        _at_least("autoencoder on held-out pictures, dB", 27, figures["psnr"]["mean_of_pictures"]),
        _at_most("seconds a picture", 0.25, figures["seconds_per_picture"]),
        _at_most("minutes from nothing to the weights", 150, figures["minutes"]),
        _at_most("megabytes", MAX_BYTES / 1e6, figures["bytes"] / 1e6),
    ]


def _share(what: str, aim: float, measured: float) -> Promise:
    return Promise(what, f"{aim:.0%}", f"{measured:.1%}", measured >= aim)


def _at_least(what: str, aim: float, measured: float) -> Promise:
    return Promise(what, f"{aim:g} or more", f"{measured:.1f}", measured >= aim)


def _at_most(what: str, aim: float, measured: float) -> Promise:
    return Promise(what, f"{aim:g} or less", f"{measured:.3g}", measured <= aim)
