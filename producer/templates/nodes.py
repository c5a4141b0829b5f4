"""A template as a tree, each node of which knows what it can become without being expanded."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_COUNT = 10**18  # larger counts are given as this: more than can be rendered, and still quick to print


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A part of a template.

    Attributes:
        count: its expansions, at most `MAX_COUNT`.
        work: of its costliest expansion: nodes passed plus characters written.
        depth: of the choices within each other, this one included.
        blank: whether it can expand to nothing but white space.
    """

    count: int
    work: int
    depth: int
    blank: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Text(Node):
    """Text as it stands."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Series(Node):
    """Parts one after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice(Node):
    """Options of which some are taken, each at most once, in any order.

    Attributes:
        options, weights: in the order they stand; an option of weight 0 is left out.
        cumulative: the weights' running sums.
        low, high: how many are taken.
        separator: joins them.
        wildcard: whether the options are lines of files.
    """

    options: tuple[Node, ...]
    weights: tuple[float, ...]
    cumulative: tuple[float, ...]
    low: int
    high: int
    separator: str
    wildcard: bool


def make_text(text: str) -> Text:
    """Return a leaf."""
    return Text(count=1, work=1 + len(text), depth=0, blank=not text.strip(), text=text)


def make_series(parts: Sequence[Node]) -> Node:
    """Return the parts as one node."""
    if len(parts) == 1:
        return parts[0]
    return Series(
        count=_capped(itertools.accumulate((part.count for part in parts), _times, initial=1)),
        work=1 + sum(part.work for part in parts),
        depth=max((part.depth for part in parts), default=0),
        blank=all(part.blank for part in parts),
        parts=tuple(parts),
    )


def make_choice(
    options: Sequence[Node],
    weights: Sequence[float],
    *,
    low: int = 1,
    high: int = 1,
    separator: str = "",
    wildcard: bool = False,
) -> Choice:
    """Return a choice of `low` to `high` of the options, which are at least `high`, all with a weight."""
    return Choice(
        count=min(MAX_COUNT, _selections([option.count for option in options], low, high)),
        work=1 + high * len(separator) + sum(heapq.nlargest(high, (option.work for option in options))),
        depth=1 + max(option.depth for option in options),
        blank=_can_be_blank(sum(option.blank for option in options), low, separator),
        options=tuple(options),
        weights=tuple(weights),
        cumulative=tuple(itertools.accumulate(weights)),
        low=low,
        high=high,
        separator=separator,
        wildcard=wildcard,
    )


def _times(left: int, right: int) -> int:
    return min(MAX_COUNT, left * right)


def _capped(products: Iterable[int]) -> int:
    *_, last = products
    return last


def _can_be_blank(blank_options: int, low: int, separator: str) -> bool:
    fewest = max(1, low)
    return low == 0 or (blank_options >= fewest and (fewest == 1 or not separator.strip()))


def _selections(counts: Sequence[int], low: int, high: int) -> int:
    """Count the ordered selections of `low` to `high` options that have so many expansions each.

    k options in any order are k! times the elementary symmetric polynomial e_k of the counts; those are the
    coefficients of the product of (1 + count x), which is taken for all equal counts at once.
    """
    if (low, high) == (1, 1):
        return sum(counts)
    if math.perm(len(counts), high) >= MAX_COUNT:  # each option has at least one: no need to be exact
        return MAX_COUNT
    polynomial = [1] + [0] * high
    for count, times in Counter(counts).items():
        power = [math.comb(times, k) * count**k for k in range(min(times, high) + 1)]
        polynomial = [
            sum(power[j] * polynomial[k - j] for j in range(min(k, len(power) - 1) + 1))
            for k in range(high + 1)
        ]
    return sum(math.factorial(k) * polynomial[k] for k in range(low, high + 1))
