"""Weighted prompts are read as A1111 reads them."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInputError
from storage.prompt_syntax import MAX_CHUNKS, escape, parse_weighted


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        # The examples in the docstring of A1111's parse_prompt_attention, to the last digit.
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        # What its regular expression does besides.
        ("", []),
        ("((word))", [("word", 1.1 * 1.1)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("(a:0)(b:10)", [("a", 0.0), ("b", 10.0)]),
        ("( a : 1.5 )", [(" a ", 1.5)]),
        ("(a:.5) (b:2.)", [("a", 0.5), (" ", 1.0), ("b", 2.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1e3) (b:nan)", [("a:1e3", 1.1), (" ", 1.0), ("b:nan", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("never) opened] at 3:45 (or :2)", [("never) opened] at 3:45 ", 1.0), ("or ", 2.0)]),
        ("a:1.3) b", [("a:1.3) b", 1.0)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)]),
        (r"back\slash \\ \(\(", [(r"backslash \ ((", 1.0)]),
        (r"(a\)b:1.2)", [("a)b", 1.2)]),
        ("()[](:3)", []),
    ],
)
def test_text_is_read_as_a1111_reads_it(text: str, fragments: list[tuple[str, float]]) -> None:
    """One section, its fragments and their exact weights."""
    assert parse_weighted(text) == [fragments]


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a fox BREAK a cake", [[("a fox", 1.0)], [("a cake", 1.0)]]),
        ("a\nBREAK\n\nb BREAK c ", [[("a", 1.0)], [("b", 1.0)], [("c ", 1.0)]]),
        ("BREAK a BREAK", [[], [("a", 1.0)], []]),
        ("BREAKFAST at break, a OUTBREAK", [[("BREAKFAST at break, a OUTBREAK", 1.0)]]),
        ("(a BREAK b:1.5)", [[("a", 1.5)], [("b", 1.5)]]),
        ("(a)BREAK(a)", [[("a", 1.1)], [("a", 1.1)]]),
        (r"a BREA\K b", [[("a BREAK b", 1.0)]]),
    ],
)
def test_break_begins_a_section(text: str, sections: list[list[tuple[str, float]]]) -> None:
    """In capitals and as a word of its own; the white space around it goes."""
    assert parse_weighted(text) == sections


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(a fox:11)", "The prompt gives 'a fox' the weight 11"),
        ("(a:-1)", "the weight -1"),
        ("((a:5):3)", "the weight 15"),
        ("(" * 25 + "a", "the weight 10.8"),
        (f"((a:{'9' * 400}):0)", "the weight nan"),
        ("[" * 101 + "a", "more than 100 brackets open at once"),
        ("a BREAK " * MAX_CHUNKS, "32 BREAKs; it may have at most 31"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(text: str, said: str) -> None:
    """The sentence quotes the words, and says what would do."""
    with pytest.raises(BadInputError, match=said):
        parse_weighted(text)


def test_an_error_names_the_negative_prompt() -> None:
    """Whoever reads it sees which of the two texts to mend."""
    with pytest.raises(BadInputError, match="The negative prompt gives"):
        parse_weighted("(a:11)", what="negative prompt")


@given(st.text())
def test_what_is_escaped_is_read_as_itself(text: str) -> None:
    """Any text, its brackets, backslashes and BREAKs included, with weight 1."""
    assert parse_weighted(escape(text)) == [[(text, 1.0)] if text else []]


@given(st.text(alphabet="ab (:[])\\1.5,BREAK\n"))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but BadInputError, and every weight in range."""
    try:
        sections = parse_weighted(text)
    except BadInputError:
        return
    assert all(0 <= weight <= 10 for section in sections for _, weight in section)


@pytest.mark.parametrize(
    "unit",
    ["[" * 90 + "a" * 10, "(a:0)", "(a", "[a[b](c)", ": ", " ", "\\", "BREAK ", "(a:" + " " * 40, "9"],
)
def test_a_long_text_takes_no_time(unit: str) -> None:
    """The longest prompt there may be, of whatever it consists, within a second."""
    began = time.perf_counter()
    with contextlib.suppress(BadInputError):
        parse_weighted((unit * 10_000)[:10_000])
    assert time.perf_counter() - began < 1
