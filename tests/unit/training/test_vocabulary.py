"""Captions, tokens and what is held out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from training.tokenizer import MAX_LENGTH, make_merges, write_tokenizer
from training.vocabulary import (
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    NOUNS,
    STYLES,
    Triple,
    all_triples,
    caption,
    caption_words,
    held_out,
    prompt,
    training_triples,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The tokenizer, as it is loaded from its folder."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, caption_words())
    return CLIPTokenizer.from_pretrained(folder)


def test_there_are_at_least_a_hundred_nouns() -> None:
    """The issue of the demo model asks for a hundred things, seven styles and nine backgrounds."""
    assert (len(NOUNS) >= 100, len(STYLES), len(BACKGROUNDS)) == (True, 7, 9)


def test_held_out_combinations_are_never_trained_on() -> None:
    """Training, held-out triples and held-out pairs share nothing and together are everything."""
    pairs, triples = held_out()
    trained = set(training_triples())
    assert not trained & triples
    assert not {triple.pair for triple in trained | triples} & pairs
    assert len(pairs) == HELD_OUT_PAIRS
    assert len(trained) + len(triples) + len(pairs) * len(BACKGROUNDS) == len(set(all_triples()))


def test_every_held_out_part_is_trained_on_in_other_company() -> None:
    """A held-out combination is new, but its noun, style and background are not."""
    trained = training_triples()
    assert {triple.noun for triple in trained} == set(NOUNS)
    assert {triple.style for triple in trained} == set(STYLES)
    assert {triple.background for triple in trained} == set(BACKGROUNDS)


def test_the_prompt_names_everything_plainly() -> None:
    """The evaluation's prompt is the first template, with its articles."""
    assert prompt(Triple("otter", "watercolor", "orange")) == (
        "a watercolor painting of an otter on an orange background"
    )
    assert prompt(Triple("unicorn", "neon", "blue")) == "a neon sign of a unicorn on a blue background"


def test_captions_name_the_background_in_some_cases() -> None:
    """About seven in ten captions name it, the rest leave it open."""
    rng = random.Random(1)
    written = [caption(Triple("cat", "oil", "teal"), rng) for _ in range(500)]
    assert 300 < sum("teal" in text for text in written) < 400
    assert all("cat" in text and "oil painting" in text for text in written)


def test_every_caption_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    """Whatever a caption says, the text encoder has a word for it."""
    assert [word for word in caption_words() if len(tokenizer(word).input_ids) != 3] == []


def test_every_caption_fits(tokenizer: CLIPTokenizer) -> None:
    """The longest captions stay below the text encoder's positions."""
    rng = random.Random(2)
    written = [caption(triple, rng, filler=1.0) for triple in all_triples()]
    assert max(len(ids) for ids in tokenizer(written).input_ids) <= MAX_LENGTH


def test_unknown_words_become_bytes_not_unknown_tokens(tokenizer: CLIPTokenizer) -> None:
    """A word that no caption has is still told apart from another."""
    first, second = (tokenizer(text).input_ids for text in ("a quokka", "a wombat, 水獺"))
    assert first != second
    assert tokenizer.unk_token_id not in first[1:-1]


def test_later_merges_keep_earlier_words_whole() -> None:
    """Words that share letters in awkward places all stay one token."""
    words = ["cat", "scarf", "car", "carrot", "star", "tar", "art"]
    merges = make_merges(words)
    assert make_merges([*words, *words]) == merges
    assert {a + b for a, b in merges} >= {word + "</w>" for word in words}
