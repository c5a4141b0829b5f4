"""Whose calls run in the next forward pass."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from worker.coalescing.turns import Turns
from worker.engine.group_turns import TURNS_A_ROUND


@dataclass(eq=False)
class Call:
    """What turns look at in a call."""

    name: str
    key: Hashable
    lanes: int = 1
    rank: tuple[int, int] = (0, 0)
    since: int | None = None
    loras: tuple[tuple[str, float], ...] = ()


def names(turns: Turns, calls: list[Call], *, width: int = 4) -> str:
    """Return the names of the chosen calls, in order."""
    return "".join(call.name for call in turns.choose(calls, width=lambda _key: width))


def test_calls_of_one_key_go_together() -> None:
    """One forward pass takes all calls that agree, and no other."""
    calls = [Call("a", "x"), Call("b", "y", rank=(0, 1)), Call("c", "x", rank=(0, 2))]
    assert names(Turns(), calls) == "ac"


def test_what_does_not_fit_sits_the_step_out() -> None:
    """The oldest calls have the lanes, and a smaller one may use what a larger one cannot."""
    calls = [
        Call(name, "x", lanes=lanes, rank=(0, i))
        for i, (name, lanes) in enumerate(zip("abc", (2, 3, 1), strict=True))
    ]
    assert names(Turns(), calls) == "ac"


def test_wide_calls_stand_first() -> None:
    """A call of two lanes stands at an even place, whoever came first."""
    calls = [Call("a", "x", lanes=1), Call("b", "x", lanes=2, rank=(0, 1))]
    assert names(Turns(), calls) == "ba"


def test_a_call_wider_than_the_pass_runs_alone() -> None:
    """A call that takes more lanes than there are is not left waiting for ever."""
    assert names(Turns(), [Call("a", "x", lanes=9), Call("b", "x", rank=(0, 1))]) == "a"


def test_groups_take_turns_though_one_is_crowded() -> None:
    """Whom a crowded group left out does not keep another group waiting."""
    turns = Turns()
    left_out, other = Call("b", "x", lanes=4, rank=(0, 1)), Call("c", "y", rank=(0, 2))
    assert names(turns, [Call("a", "x", lanes=4), left_out, other]) == "a"
    assert names(turns, [Call("a", "x", lanes=4), left_out, other]) == "c"


def test_a_second_call_waits_for_others_first_ones() -> None:
    """Jobs that call with their own prompts and then with one negative prompt meet at the second."""
    turns = Turns()
    other = Call("b", "otter", rank=(0, 1))
    assert names(turns, [Call("a", "fox"), other]) == "a"
    negative = Call("A", "negative")
    assert names(turns, [negative, other]) == "b"
    assert names(turns, [negative, Call("B", "negative", rank=(0, 1))]) == "AB"


def test_groups_go_by_priority_but_for_one_turn_in_each_round() -> None:
    """One urgent call is enough, though others of its group have waited longer or are not urgent."""
    turns = Turns()
    low, late = Call("a", "x"), Call("c", "y", lanes=4, rank=(0, 1))
    assert names(turns, [low, late]) == "a"
    calls = [low, Call("b", "y", rank=(-9, 2)), late]
    assert "".join(names(turns, calls) for _ in range(TURNS_A_ROUND)) == "b" * (TURNS_A_ROUND - 2) + "ab"


def test_priority_goes_first() -> None:
    """Of two groups that wait equally long, the one with the more urgent job runs."""
    assert names(Turns(), [Call("a", "x", rank=(0, 1)), Call("b", "y", rank=(-5, 2))]) == "b"
