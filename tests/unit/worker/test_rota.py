"""Whose turn it is, with a clock under control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest

from worker.rota import LINGER, NOTHING_COMES, RETRY_BASE, Rota

PATIENCE = 60.0


def ask(rota: Rota, *working: str, holding: int = 1, elsewhere: Collection[str] = ()) -> str | None:
    """Ask whose turn is to begin."""
    return rota.next(working=set(working), holding=holding, elsewhere=lambda: elsewhere)


@pytest.fixture
def rota(clock: Any) -> Rota:
    """The rota of two models, the first of which has its turn."""
    rota = Rota(["a", "b"], patience=PATIENCE, clock=clock)
    rota.begin("a")
    return rota


def test_a_turn_lasts_while_nobody_else_has_work(rota: Rota, clock: Any) -> None:
    """Whatever time passes, an only model goes on, and an idle one keeps its turn."""
    for _ in range(10):
        clock.advance(PATIENCE)
        assert ask(rota, "a") is None
        assert ask(rota, holding=0) is None


def test_a_turn_ends_once_its_model_has_nothing_left(rota: Rota, clock: Any) -> None:
    """A pause between two jobs is no end; what is held is finished meanwhile."""
    assert ask(rota, "a", "b") is None
    clock.advance(LINGER / 2)
    assert ask(rota, "b") is None
    clock.advance(LINGER)
    assert ask(rota, "b") == "b"


def test_an_idle_worker_turns_at_once(rota: Rota, clock: Any) -> None:
    """Nobody waits for a model that has had nothing to do for long."""
    clock.advance(100)
    assert ask(rota, holding=0) is None
    assert ask(rota, "b", holding=0) == "b"


def test_affinity_ends_with_patience(rota: Rota, clock: Any) -> None:
    """While both have work the active model keeps its turn, until the other one has waited long enough."""
    assert ask(rota, "a", "b") is None
    clock.advance(PATIENCE - 1)
    assert ask(rota, "a", "b") is None
    clock.advance(2)
    assert ask(rota, "a", "b") == "b"


def test_who_comes_late_in_a_turn_waits_as_well(rota: Rota, clock: Any) -> None:
    """A job that arrives now and then does not end a turn each time that it does."""
    clock.advance(10 * PATIENCE)
    assert ask(rota, "a", "b") is None
    clock.advance(PATIENCE)
    assert ask(rota, "a", "b") == "b"


def test_work_whose_messages_are_lost_holds_nobody_up(rota: Rota, clock: Any) -> None:
    """A model that has jobs by its rows, of which none arrives, gives way to another one."""
    ask(rota, "a", "b", holding=0)
    clock.advance(NOTHING_COMES + 1)
    assert ask(rota, "a", "b", holding=0) == "b"


def test_what_another_worker_renders_waits_for_nobody(rota: Rota, clock: Any) -> None:
    """Two workers do not both turn to the same model; one that is idle helps all the same."""
    for _ in range(5):
        clock.advance(PATIENCE)
        assert ask(rota, "a", "b", elsewhere={"b"}) is None
    clock.advance(1)
    ask(rota, "a", "b", elsewhere={"b"})
    clock.advance(LINGER)
    assert ask(rota, "b", elsewhere={"b"}) == "b"


def test_a_model_that_cannot_be_loaded_is_left_alone_for_a_while(rota: Rota, clock: Any) -> None:
    """It is tried again, each time later, and a turn of its own ends that."""
    assert [rota.put_off("b"), rota.put_off("b")] == [RETRY_BASE, 2 * RETRY_BASE]
    clock.advance(RETRY_BASE)
    assert rota.available() == ["a"]
    assert ask(rota, "b", holding=0) is None
    clock.advance(RETRY_BASE)
    assert ask(rota, "b", holding=0) == "b"
    rota.begin("b")
    assert rota.put_off("b") == RETRY_BASE


@pytest.mark.parametrize("count", [2, 3, 5])
def test_nobody_starves(count: int, clock: Any) -> None:
    """With work for all of them without end, each has its turn within the patience, and turns are long."""
    names = [f"m{number}" for number in range(count)]
    rota = Rota(names, patience=PATIENCE, clock=clock)
    rota.begin(names[0])
    last, longest, turns = dict.fromkeys(names, clock()), 0.0, Counter({names[0]: 1})
    for _ in range(4000):
        clock.advance(0.25)
        last[str(rota.active)] = clock()
        longest = max(longest, *(clock() - moment for moment in last.values()))
        chosen = ask(rota, *names)
        if chosen is not None:
            rota.begin(chosen)
            turns[chosen] += 1
    assert longest <= PATIENCE + 1
    assert turns.total() <= 1000 / (PATIENCE / (count - 1)) + 1
    assert max(turns.values()) - min(turns.values()) <= 1


def test_a_model_that_has_to_be_loaded_is_worth_some_waiting(rota: Rota, clock: Any) -> None:
    """The turn lingers for as long as loading takes, in case more comes; an idle worker does not wait."""
    ask(rota, "a", "b")
    clock.advance(LINGER + 1)
    assert rota.next(working={"b"}, holding=0, elsewhere=set, loading=lambda _model: 20.0) is None
    clock.advance(20)
    assert rota.next(working={"b"}, holding=0, elsewhere=set, loading=lambda _model: 20.0) == "b"


@pytest.mark.parametrize("apart", [0.0, 0.1, 0.25])
def test_a_hundred_alternating_jobs_take_a_handful_of_turns(apart: float, clock: Any) -> None:
    """They arrive alternately for two models, all at once or over some time, and are rendered one by one."""
    rota = Rota(["a", "b"], patience=10, clock=clock)
    rota.begin("a")
    began, switches, longest, last = clock(), 0, 0.0, {"a": 0.0, "b": 0.0}
    left = {"a": [apart * n for n in range(0, 100, 2)], "b": [apart * n for n in range(1, 100, 2)]}
    while any(left.values()):
        clock.advance(0.5)
        now, active = clock() - began, str(rota.active)
        if left[active] and left[active][0] <= now:
            left[active].pop(0)
            longest, last[active] = max(longest, now - last[active]), now
        chosen = ask(rota, *(name for name, moments in left.items() if moments and moments[0] <= now))
        if chosen is not None:
            rota.begin(chosen)
            switches += 1
    assert 1 <= switches <= 6
    assert longest <= 10 + 2 * LINGER
