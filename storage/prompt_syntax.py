r"""The grammar of weighted prompts, A1111's, as text alone: what a worker encodes, and what submit checks.

    (word)        attention times 1.1, ((word)) times 1.21
    (word:1.3)    times 1.3
    [word]        divided by 1.1
    \( \) \[ \] \\  the character itself
    BREAK         what follows begins a new chunk

After `parse_prompt_attention` of AUTOMATIC1111/stable-diffusion-webui (modules/prompt_parser.py): round and
square brackets are counted apart, one that is never closed reaches to the end, and one that was never opened
is text. Ours differs where A1111's fails: a BREAK inside brackets is one, and `1.2.3` is no number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from storage.errors import BadInputError

PLAIN, WEIGHTED = "plain", "weighted"
PROMPT_SYNTAXES = (PLAIN, WEIGHTED)

MAX_WEIGHT = 10.0
MAX_CHUNKS = 32  # 2,400 tokens; more than 10,000 characters of English, and encoded within a second or two
MAX_NESTING = 100  # brackets that are open at once; more would take time that grows with their square

_BRACKET = 1.1
_PIECE = re.compile(
    r"""
    \\ [\\()\[\]]?                                  # escaped; a backslash before anything else just goes
    | : \s* (?P<weight> [+-]? (?: \d+ \.? \d* | \. \d+ ) ) \s* \)
    | [()\[\]:]
    | [^\\()\[\]:]+
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


class Fragment(NamedTuple):
    """Text with one weight."""

    text: str
    weight: float


def parse_weighted(text: str, *, what: str = "prompt") -> list[list[Fragment]]:
    """Parse a weighted prompt.

    Args:
        text: the prompt.
        what: what to call it in an error.

    Returns:
        The sections between BREAKs, at least one, each with its fragments, neighbours of equal weight joined;
        a section without text has none.

    Raises:
        BadInputError: when a weight is not in 0..10 after all brackets around it, or for too many brackets
            or BREAKs.
    """
    sections: list[list[Fragment]] = [[]]
    for part, weight in _weighed(text, what):
        if part is None:
            sections.append([])
            continue
        if not part:
            continue
        if not 0 <= weight <= MAX_WEIGHT:  # false for NaN as well
            raise BadInputError(
                f"The {what} gives {part.strip()[:60]!r} the weight {weight:.6g}; "
                f"with all brackets around it, it may be 0 to {MAX_WEIGHT:g}."
            )
        section = sections[-1]
        if section and section[-1].weight == weight:
            section.append(Fragment(section.pop().text + part, weight))
        else:
            section.append(Fragment(part, weight))
    if len(sections) > MAX_CHUNKS:
        raise BadInputError(
            f"The {what} has {len(sections) - 1} BREAKs; it may have at most {MAX_CHUNKS - 1}."
        )
    return sections


def escape(text: str) -> str:
    """Write any text so that it is read as itself, with weight 1."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text).replace("BREAK", "BREA\\K")


def _weighed(text: str, what: str) -> Iterator[tuple[str | None, float]]:
    """Yield what the text consists of, None for a BREAK, each with the product of the weights around it."""
    parts: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    partner = {")": "(", "]": "["}

    def weigh(first: int, weight: float) -> None:
        for place in range(first, len(weights)):
            weights[place] *= weight

    for match in _PIECE.finditer(text):
        piece, weight = match[0], match["weight"]
        if piece in opened:
            opened[piece].append(len(parts))
            if len(opened["("]) + len(opened["["]) > MAX_NESTING:
                raise BadInputError(
                    f"The {what} has more than {MAX_NESTING} brackets open at once; close them, or "
                    f"escape those that are text, as \\(."
                )
        elif weight is not None and opened["("]:
            weigh(opened["("].pop(), float(weight))
        elif piece in partner and opened[partner[piece]]:
            weigh(opened[partner[piece]].pop(), _BRACKET if piece == ")" else 1 / _BRACKET)
        else:
            parts += [piece[1:]] if piece.startswith("\\") else _sections(piece)
            weights += [1.0] * (len(parts) - len(weights))
    for first in opened["("]:
        weigh(first, _BRACKET)
    for first in opened["["]:
        weigh(first, 1 / _BRACKET)
    # An infinite weight times 0 is NaN, which is refused where there is text.
    return zip(parts, (weight if math.isfinite(weight) else math.nan for weight in weights), strict=True)


def _sections(text: str) -> list[str | None]:
    """Split text at each BREAK, which takes the white space around it with it."""
    first, *others = _BREAK.split(text)
    parts: list[str | None] = [first.rstrip() if others else first]
    for number, other in enumerate(others, 1):
        parts += [None, other.strip() if number < len(others) else other.lstrip()]
    return parts
