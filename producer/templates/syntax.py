r"""The grammar of templates, read by recursive descent.

- template: any of text, escape, variants, wildcard, one after another
- variants: `{` [count `$$` [separator `$$`]] option (`|` option)… `}`
- count: `N`, `N-M`, `N-` or `-M`
- option: [weight `::`] template
- wildcard: `__name__`
- escape: a backslash and one of `{ } | $ _ # % :` or another backslash
"""

from __future__ import annotations

import re
from typing import Protocol, TypeVar

from producer.templates.errors import TemplateError
from producer.templates.nodes import Choice, Node, Series, make_choice, make_series, make_text

MAX_DEPTH = 50  # choices within each other, through wildcard files too: Python's stack bears ten times that
MAX_TAKEN = 100  # options that one pair of braces takes
MAX_WORK = 1_000_000  # see Node.work: wildcards that multiply each other would else write for ever
MAX_WEIGHT = 1_000_000.0
DEFAULT_SEPARATOR = ","

# Possessive throughout, so that no text can make them slow. Only a group with a look-ahead is not: where that
# is possessive, it never matches in Python 3.11.2, which is Debian 12's.
_PLAIN = re.compile(r"[^\\{}|$%_]++")
_ESCAPE = re.compile(r"\\([{}|$_#%:\\])")
_COUNT = re.compile(r"\s*+([0-9]*+)\s*+(-?+)\s*+([0-9]*+)\s*+\$\$")
_SEPARATOR = re.compile(r"((?:\\.|[^\\${}])*+)\$\$", re.DOTALL)
_WEIGHT = re.compile(r"\s*+([-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)\s*+::")
_SAMPLER = re.compile(r"\s*+[~!@]")
_WILDCARD = re.compile(r"__((?:(?!__)[^{}|$\r\n])+)__")

_AnyNode = TypeVar("_AnyNode", bound=Node)


class WildcardSource(Protocol):
    """Where a parser finds what wildcards stand for."""

    def choice(self, name: str, depth: int) -> Choice:
        """Return the lines of `name`, which stands within `depth` choices; TemplateError without column."""


class Parser:
    """Reads one template, or one line of a wildcard file.

    Args:
        text: the template.
        wildcards: what its wildcards stand for.
        start: where in `text` it begins.
        depth: of the choices that it stands in.
    """

    def __init__(self, text: str, wildcards: WildcardSource, *, start: int = 0, depth: int = 0) -> None:
        self._text = text
        self._wildcards = wildcards
        self._at = start
        self._depth = depth

    def template(self) -> Node:
        """Read it to its end, or raise TemplateError."""
        return self._series(inside=False)

    def option(self) -> tuple[float, Node]:
        """Read it as one option: its weight and what it is."""
        if ":" not in self._text and _PLAIN.fullmatch(self._text, self._at):  # most lines of long files
            return 1.0, make_text(self._text[self._at :])
        return self._weight(), self.template()

    def _fail(self, at: int, reason: str) -> TemplateError:
        return TemplateError(reason, at + 1)

    def _series(self, *, inside: bool) -> Node:
        """Read up to the end, or inside of braces up to the option's end."""
        start = self._at
        parts: list[Node] = []
        written: list[str] = []
        while self._at < len(self._text) and not (inside and self._text[self._at] in "|}"):
            if (plain := self._plain(inside=inside)) is not None:
                written.append(plain)
                continue
            if written:
                parts.append(make_text("".join(written)))
                written = []
            parts.append(self._variants() if self._text[self._at] == "{" else self._wildcard())
        if written or not parts:
            parts.append(make_text("".join(written)))
        return self._affordable(start, make_series(parts))

    def _plain(self, *, inside: bool) -> str | None:
        """Take text as it stands or an escape; None where a choice begins."""
        if match := _PLAIN.match(self._text, self._at) or _ESCAPE.match(self._text, self._at):
            self._at = match.end()
            return match[1] if match.re is _ESCAPE else match[0]
        two = self._text[self._at : self._at + 2]
        if two[0] == "{" or two == "__":
            return None
        if two[0] == "}":
            raise self._fail(self._at, r"} closes no brace; remove it, or write \} for one in the text.")
        if two in ("${", "%{"):
            what = "variables (${…})" if two == "${" else "wraps (%{…})"
            raise self._fail(self._at, f"{what} are not supported; write \\{two} for the signs themselves.")
        if inside and two == "$$":
            raise self._fail(
                self._at,
                r"what stands before $$ is no count; write {2$$…} or {1-3$$…}, or \$\$ for the signs.",
            )
        self._at += 1
        return two[0]

    def _variants(self) -> Choice:
        opened = self._at
        self._at += 1
        if _SAMPLER.match(self._text, self._at):
            raise self._fail(
                self._at, "the sampler signs ~, ! and @ after { are not supported; remove the sign."
            )
        self._enter(opened)
        bounds = self._bounds()
        separator = self._separator() if bounds is not None else DEFAULT_SEPARATOR
        options, weights = self._options(opened)
        self._depth -= 1
        if bounds is not None and len(options) == 1 and (lines := _only_wildcard(options[0])):
            options, weights = list(lines.options), list(lines.weights)
        low, high = bounds or (1, 1)
        # As there: who asks for more than there are gets all.
        low, high = min(low, len(options)), min(len(options) if high is None else high, len(options))
        if high > MAX_TAKEN:
            raise self._fail(opened, f"{{ takes up to {high:,} options; take at most {MAX_TAKEN}.")
        return self._affordable(
            opened, make_choice(options, weights, low=low, high=high, separator=separator)
        )

    def _enter(self, opened: int) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fail(opened, f"choices are nested more than {MAX_DEPTH} deep; flatten them.")

    def _bounds(self) -> tuple[int, int | None] | None:
        """Read how many options are taken; None where nothing says it."""
        match = _COUNT.match(self._text, self._at)
        if match is None:
            return None
        first, dash, last = match[1], match[2], match[3]
        if not first and not last:
            raise self._fail(
                self._at, r"there is no count before $$; write {2$$…} or {1-3$$…}, or \$\$ for the signs."
            )
        low = _number(first) if first else 1
        high = _number(last) if last else None if dash else low
        if high == 0:
            raise self._fail(self._at, "a count of 0 takes nothing; take at least 1.")
        if high is not None and low > high:
            raise self._fail(self._at, f"{low}-{high} is no range; write the smaller number first.")
        self._at = match.end()
        return low, high

    def _separator(self) -> str:
        match = _SEPARATOR.match(self._text, self._at)
        if match is None:
            return DEFAULT_SEPARATOR
        self._at = match.end()
        return _ESCAPE.sub(r"\1", match[1])

    def _options(self, opened: int) -> tuple[list[Node], list[float]]:
        """Read the options and the closing brace."""
        begin = self._at
        options, weights = [], []
        while True:
            weight = self._weight()
            option = self._series(inside=True)
            if self._at == len(self._text):
                raise self._fail(
                    opened, r"{ is not closed; write } after its last option, or \{ for a brace in the text."
                )
            if weight:
                options.append(option)
                weights.append(weight)
            self._at += 1
            if self._text[self._at - 1] == "}":
                break
        if not self._text[begin : self._at - 1].strip():
            raise self._fail(opened, r"{} has no options; write some, or \{\} for braces in the text.")
        if not options:
            raise self._fail(opened, "every option has weight 0, so none can be taken; give one a weight.")
        return options, weights

    def _weight(self) -> float:
        match = _WEIGHT.match(self._text, self._at)
        if match is None:
            return 1.0
        weight = float(match[1])
        if not 0 <= weight <= MAX_WEIGHT:
            raise self._fail(
                match.start(1), f"weight {match[1][:20]} is out of range; choose 0 to {MAX_WEIGHT:,.0f}."
            )
        self._at = match.end()
        return weight

    def _wildcard(self) -> Choice:
        opened = self._at
        match = _WILDCARD.match(self._text, opened)
        name = match[1].strip() if match else ""
        if match is None or not name:
            raise self._fail(
                opened,
                r"__ begins a wildcard that is not closed; write __name__, or \_\_ for two underscores.",
            )
        if name[0] in "~!@" or ("(" in name and name.endswith(")")):
            raise self._fail(
                opened, f"sampler signs and parameters in __{name}__ are not supported; write the name alone."
            )
        self._at = match.end()
        try:
            choice = self._wildcards.choice(name, self._depth + 1)
        except TemplateError as error:
            error.column = opened + 1
            raise
        if self._depth + choice.depth > MAX_DEPTH:
            raise self._fail(opened, f"choices are nested more than {MAX_DEPTH} deep; flatten them.")
        return choice

    def _affordable(self, at: int, node: _AnyNode) -> _AnyNode:
        if node.work > MAX_WORK:
            raise self._fail(
                at, f"an expansion may take over {MAX_WORK:,} characters and choices; shorten it."
            )
        return node


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:9] or "0")  # past any limit, and short enough for int()


def _only_wildcard(option: Node) -> Choice | None:
    """Return the wildcard that an option consists of, besides white space."""
    parts = option.parts if isinstance(option, Series) else (option,)
    visible = [part for part in parts if not part.blank or isinstance(part, Choice)]
    only = visible[0] if len(visible) == 1 else None
    return only if isinstance(only, Choice) and only.wildcard else None
