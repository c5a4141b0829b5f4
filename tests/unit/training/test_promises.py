"""The aims against what was measured, and the card that says both."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from training.card import write_card
from training.evaluate import cells
from training.export import DEFAULTS
from training.plan import FULL
from training.promises import promises
from training.vocabulary import STYLES


@pytest.fixture
def figures() -> dict[str, Any]:
    """The figures of a run that reached everything."""
    shares = {"prompts": 200, "noun": 1.0, "style": 1.0, "background": 1.0, "all": 0.98}
    table = [asdict(cell) | shares for cell in cells()]
    next(row for row in table if row["guidance"] == 1)["all"] = 0.8
    return {
        "seed": 32,
        "plan": asdict(FULL),
        "commits": {"vae": ["a" * 40], "diffusion": ["a" * 40]},
        "table": table,
        "psnr": {"mean_of_pictures": 28.0, "of_mean_error": 27.5} | dict.fromkeys(STYLES, 28.0),
        "judge": {"all": 0.99, "pictures": 868},
        "threads": 2,
        "seconds_per_picture": 0.2,
        "defaults": DEFAULTS,
        "pictures": 35238,
        "stages": [
            {"name": "vae", "steps": 150, "first_loss": 0.2, "last_loss": 0.1, "minutes": 3.0},
        ],
        "minutes": 110.0,
        "minutes_of_judging": 20.0,
        "parameters": {"UNet": 3_300_204},
        "bytes": 9_800_000,
    }


def test_a_run_that_reached_everything_keeps_every_promise(figures: dict[str, Any]) -> None:
    """Nine aims, none missed."""
    kept = promises(figures)
    assert [promise.kept for promise in kept] == [True] * 9


def missed(figures: dict[str, Any]) -> list[str]:
    """The aims that were not reached."""
    return [promise.what for promise in promises(figures) if not promise.kept]


@pytest.mark.parametrize("i", range(len(cells())))
def test_every_line_of_the_table_but_the_recommended_one_counts(figures: dict[str, Any], i: int) -> None:
    """One bad cell misses an aim: it is the worst that is compared."""
    row = figures["table"][i]
    row["all"] = 1.0 if row["guidance"] == 1 else 0.5
    free = (row["guidance"], row["schedule"], row["sampler"]) in {
        (DEFAULTS["guidance_scale"], "karras", "lms"),  # stands beside the aims, which name 4 and 7.5
        (4.0, "default", "lms"),
    }
    assert bool(missed(figures)) is not free


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("seconds_per_picture", 0.26, "seconds"), ("minutes", 151, "minutes"), ("bytes", 12_000_001, "mega")],
)
def test_a_figure_past_its_limit_misses(figures: dict[str, Any], name: str, value: float, what: str) -> None:
    """Exactly that one."""
    figures[name] = value
    (only,) = missed(figures)
    assert only.startswith(what)


def test_the_card_says_what_was_missed(figures: dict[str, Any], tmp_path: Path) -> None:
    """A person who reads the card sees aims and measurements side by side."""
    figures["psnr"]["mean_of_pictures"] = 26.5
    write_card(tmp_path, figures)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| autoencoder on held-out pictures, dB | 27 or more | 26.5 | no |" in card
    assert "| triples | lms | default | 7.5 | 100.0% | 100.0% | 100.0% | **98.0%** |" in card
    assert f"Seed 32, commit {'a' * 40}." in card
    figures["commits"]["diffusion"].append("b" * 40)
    write_card(tmp_path, figures)
    assert f"diffusion {'a' * 40} and {'b' * 40}" in (tmp_path / "README.md").read_text(encoding="utf-8")
