"""Prompts are encoded one by one, with a word about what did not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from worker.models.families.sd import ClipEncoder
from worker.stages.text import TextStage
from worker.stages.tokens import tokenise

DEMO = Path(__file__).parents[4] / "models" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    """Load the demo model's tokenizer, which takes 30 tokens and two marks."""
    transformers.utils.logging.set_verbosity_error()
    return transformers.CLIPTokenizer.from_pretrained(DEMO / "tokenizer")


class CountingEncoder:
    """Counts how often it is asked."""

    device = torch.device("cpu")
    dtype = torch.float32
    config = None
    calls = 0

    def __call__(self, input_ids: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        """Answer with the tokens themselves."""
        self.calls += 1
        return (input_ids[..., None].float(),)


def test_a_prompt_that_fits_has_no_warning(tokenizer: object) -> None:
    """A short prompt is padded to the model's length and not complained about."""
    tokens = tokenise(tokenizer, "a fox")
    assert tokens.input_ids.shape == (1, 32)
    assert tokens.warning is None


def test_exactly_full_has_no_warning(tokenizer: object) -> None:
    """Thirty tokens are what the model takes."""
    assert tokenise(tokenizer, "fox " * 30).warning is None


def test_a_long_prompt_says_what_was_dropped(tokenizer: object) -> None:
    """The warning counts the tokens that were cut and quotes the text."""
    warning = tokenise(tokenizer, "fox " * 30 + "zebra giraffe").warning
    assert warning is not None
    assert "2 tokens too long" in warning
    assert "'zebra giraffe'" in warning


def test_the_negative_prompt_is_named(tokenizer: object) -> None:
    """A warning about the negative prompt says so, also when the text comes from the cache."""
    stage = TextStage(ClipEncoder(tokenizer, CountingEncoder()))
    long = "fox " * 31
    assert "The prompt is 1 token too long" in (stage(long)[1] or "")
    assert "The negative prompt is 1 token too long" in (stage(long, what="negative prompt")[1] or "")


def test_texts_are_encoded_once(tokenizer: object) -> None:
    """A repeated text comes from the cache until newer ones push it out."""
    encoder = CountingEncoder()
    stage = TextStage(ClipEncoder(tokenizer, encoder), capacity=2)
    for text in ("a", "b", "a", "c", "a"):
        stage(text)
    assert encoder.calls == 3
    stage("b")
    assert encoder.calls == 4
