"""A CLIP tokenizer in which every caption word is one token, and anything else still has bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MAX_LENGTH = 32  # positions, begin and end included
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, words: Iterable[str]) -> CLIPTokenizer:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        folder: of the tokenizer.
        words: lower case; each becomes one token.
    """
    merges = make_merges(words)
    characters = list(bytes_to_unicode().values())
    entries = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), _BEGIN, _END]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    pairs: Any = merges  # its annotation says list[str], and its code wants pairs
    tokenizer = CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    # What transformers before 5, and most other tools, read instead of tokenizer.json.
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


def make_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return BPE merges, most urgent first, that make each word one token.

    A word is run through the merges so far, and what is still apart is joined from the left. A new merge is
    the least urgent of all, so it cannot take a word apart that was already whole.
    """
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        symbols = _apply(word, merges)
        while len(symbols) > 1:
            merges[symbols[0], symbols[1]] = len(merges)
            symbols = _apply(word, merges)
    return list(merges)


def _apply(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word (Sennrich et al. 2016, algorithm 1)."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
        if best not in merges:
            break
        joined: list[str] = []
        while symbols:
            if tuple(symbols[:2]) == best:
                joined.append(symbols.pop(0) + symbols.pop(0))
            else:
                joined.append(symbols.pop(0))
        symbols = joined
    return symbols
