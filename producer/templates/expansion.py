"""From a template's tree to prompts: one at random, or all in order."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from producer.templates.nodes import Choice, Node, Series, Text


def draw(node: Node, rng: random.Random) -> str:
    """Return one expansion of a node.

    What is drawn from `rng`, in order: for each choice from left to right, its number of options where that
    is a range; one number for each option taken; then what the options themselves draw. Templates with the
    same choices therefore use the same numbers, whatever their text.
    """
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Series):
        return "".join([draw(part, rng) for part in node.parts])
    if isinstance(node, Choice):
        return node.separator.join([draw(option, rng) for option in _take(node, rng)])
    raise TypeError(type(node))  # unreachable: there are no other nodes


def _take(choice: Choice, rng: random.Random) -> list[Node]:
    """Draw options by weight, without putting them back."""
    wanted = choice.low
    if choice.low < choice.high:
        wanted += int(rng.random() * (choice.high - choice.low + 1))
    if wanted == 1:  # by far the most frequent: no copy of a long file's lines
        return [choice.options[_index(choice.cumulative, rng)]]
    options, weights, taken = list(choice.options), list(choice.weights), []
    for _ in range(wanted):
        # accumulate adds plainly in every version of Python; sum() does not.
        at = _index(list(itertools.accumulate(weights)), rng)
        taken.append(options.pop(at))
        weights.pop(at)
    return taken


def _index(cumulative: Sequence[float], rng: random.Random) -> int:
    # The last index is the upper end also where the product rounds up to the whole sum.
    return bisect_right(cumulative, rng.random() * cumulative[-1], 0, len(cumulative) - 1)


def every(node: Node) -> Iterator[str]:
    """Yield all expansions of a node; the part that stands last changes fastest."""
    if isinstance(node, Text):
        yield node.text
    elif isinstance(node, Series):
        yield from _product(node.parts, "")
    elif isinstance(node, Choice):
        for wanted in range(node.low, node.high + 1):
            for taken in itertools.permutations(node.options, wanted):
                yield from _product(taken, node.separator)


def _product(nodes: Sequence[Node], separator: str) -> Iterator[str]:
    """Yield every combination, with one open iterator for each node: no list of expansions is ever held.

    A loop and not a recursion, since a template may have thousands of parts.
    """
    texts = [""] * len(nodes)
    opened: list[Iterator[str]] = []
    while True:
        while len(opened) < len(nodes):
            opened.append(every(nodes[len(opened)]))
            texts[len(opened) - 1] = next(opened[-1])
        yield separator.join(texts)
        while opened:
            text = next(opened[-1], None)
            if text is not None:
                texts[len(opened) - 1] = text
                break
            opened.pop()
        if not opened:
            return
