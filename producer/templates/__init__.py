"""Prompt templates in the grammar of dynamicprompts: `{red|blue} otter`, `{2$$a|b|c}`, `__animal__`.

The files in the order of a template's path: `syntax` reads it, with `wildcards` for the files that it names,
into `nodes`; `expansion` makes prompts of them. docs/templates.md has the grammar, and
docs/decisions/0012-an-own-parser-for-templates.md why it is not the library's.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

from producer.templates.errors import TemplateError
from producer.templates.expansion import draw, every
from producer.templates.nodes import MAX_COUNT, Node
from producer.templates.syntax import Parser
from producer.templates.wildcards import Wildcards
from storage.errors import BadInputError
from storage.parameters import check_prompt

__all__ = ["MAX_COUNT", "MAX_TEMPLATE", "TemplateError", "Templates", "template_rng"]

MAX_TEMPLATE = 100_000  # characters
_KEPT = 32  # templates that are kept as trees: all images of a line are of one


def template_rng(seed: int, line: int, image: int) -> random.Random:
    """Return the generator that expands one image's template: the same arguments give the same prompt.

    It is `random.Random(f"{seed}:{line}:{image}")`, of which only `random()` is used: the one method whose
    numbers Python promises to keep from version to version.

    Args:
        seed: recorded with the submission.
        line: the prompt's number in the submission, from 0.
        image: the image's number among those of the prompt, from 0.
    """
    return random.Random(f"{seed}:{line}:{image}")  # noqa: S311  (reproducible on purpose)


class Templates:
    """Expands templates; wildcard files are read once, when a template first names them.

    Every method raises `TemplateError`, a BadInputError of one sentence with the column, for a template that
    is wrong anywhere, also in an option that would not have been chosen: what expands once never fails later.

    Args:
        wildcards: the folder of wildcard files; None leaves templates without `__wildcards__`.

    Raises:
        BadInputError: when that is no folder.
    """

    def __init__(self, wildcards: Path | None = None) -> None:
        self._wildcards = Wildcards(wildcards)
        self._tree = functools.lru_cache(maxsize=_KEPT)(self._read)

    def expand_random(self, template: str, rng: random.Random) -> str:
        """Return one expansion, stripped, drawn by weight with `rng` (see `template_rng`)."""
        return _finished(draw(self._tree(template), rng), template)

    def expand_all(self, template: str) -> Iterator[str]:
        """Return every expansion that can be drawn, one by one as they are asked for.

        The choice that stands last changes fastest, as in `itertools.product`; a choice of several options
        goes through the smaller counts first, then through the options in the order they stand. Equal texts
        that are made in two ways come twice.
        """
        return (_finished(text, template) for text in every(self._tree(template)))

    def count(self, template: str) -> int:
        """Return how many expansions `expand_all` has, without making them; at most `MAX_COUNT`."""
        return self._tree(template).count

    def _read(self, template: str) -> Node:
        if len(template) > MAX_TEMPLATE:
            raise TemplateError(f"the template has over {MAX_TEMPLATE:,} characters; shorten it.")
        tree = Parser(template, self._wildcards).template()
        if tree.blank:
            raise TemplateError(
                f"the template {_short(template)} can come out empty; give it at least one word outside of "
                f"what may be left out."
            )
        return tree


def _finished(text: str, template: str) -> str:
    try:
        return check_prompt(text)
    except BadInputError as error:
        raise TemplateError(
            f"the template {_short(template)} makes a prompt that cannot be used: {error}"
        ) from error


def _short(template: str) -> str:
    shown = template.strip()
    return repr(shown if len(shown) <= 60 else f"{shown[:59]}…")  # noqa: PLR2004  (fits a terminal's line)
