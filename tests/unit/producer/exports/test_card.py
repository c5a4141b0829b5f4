"""The dataset card: what an export is, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from producer.exports.licences import licence_of
from producer.exports.survey import FEW, Values
from storage.models import parse_model

Invoke = Callable[..., Result]


@pytest.fixture
def card(invoke: Invoke, otters: str, demo: Path) -> str:
    """The card of an export whose model is under a known licence."""
    (demo / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    flags = ("--format", "webdataset", "--where", "genre=neon", "--to", "x")
    done = invoke("export", otters, *flags)
    assert done.exit_code == 0, done.stderr
    return Path("x/README.md").read_text(encoding="utf-8")


def test_its_front_matter_is_what_the_hub_reads(card: str) -> None:
    """Size, tags and files; the pictures' own licence is not ours to choose."""
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert front["task_categories"] == ["text-to-image"]
    assert front["configs"] == [{"config_name": "default", "data_files": "*.tar"}]


def test_it_says_models_settings_counts_and_licences(card: str, otters: str) -> None:
    """With how often each value occurs."""
    for line in (
        f") of submission `{otters}`, rendered by promptmill: those with genre `neon`.",
        "| demo | not known (4) | apache-2.0 |",
        "| sampler | euler (2), lms (2) |",
        "| num_inference_steps | 30 (4) |",
        "| file format | png (4) |",
        "| succeeded | 10 |",
        "| failed | 1 |",
        "Further columns: `genre`, `score`.",
    ):
        assert line in card


def test_many_values_are_a_range() -> None:
    """The smallest and the largest, whatever the order."""
    values = Values()
    for value in (5, 3, *range(100, 100 + FEW), 4):
        values.add(value)
    assert (values.few, values.least, values.most) == (None, 3, 99 + FEW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags: [a]\n---\n", "creativeml-openrail-m"),
        ("\ufeff---\nlicense: 'mit'  # short\n---\n", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: stabilityai\n---\n", "stabilityai"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_a_models_licence_is_what_its_card_names(tmp_path: Path, text: str, expected: str | None) -> None:
    """In its front matter; what is not said there is not known."""
    (tmp_path / "README.md").write_text(text, encoding="utf-8", newline="")
    assert licence_of(parse_model(f"mine={tmp_path}")) == expected


def test_a_model_without_a_card_is_under_no_known_licence(tmp_path: Path) -> None:
    """Nor is one that only other machines know."""
    assert licence_of(parse_model(f"mine={tmp_path}")) is None
    assert licence_of(None) is None
