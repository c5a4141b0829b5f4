"""Whose jobs are let in, with real threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from worker.gate import Gate

PATIENCE = 10.0


def enter(gate: Gate, model: str, pool: ThreadPoolExecutor, leave: threading.Event) -> Future[bool]:
    """Try to get in, in a thread that stays there until `leave`; the future says whether it was let in."""
    found: Future[bool] = Future()

    def try_it() -> None:
        with gate.passing(model) as let_in:
            found.set_result(let_in)
            leave.wait(PATIENCE)

    pool.submit(try_it)
    return found


def test_a_gate_lets_one_model_in_at_a_time() -> None:
    """Who comes for another model waits until the turn has ended and all of it have left."""
    gate, leave, stopping = Gate(), threading.Event(), threading.Event()
    gate.open("a", places=2)
    with ThreadPoolExecutor(8) as pool:
        inside = [enter(gate, "a", pool, leave) for _ in range(2)]
        assert [found.result(PATIENCE) for found in inside] == [True, True]
        crowd, other = enter(gate, "a", pool, leave), enter(gate, "b", pool, leave)
        shut = pool.submit(gate.shut, stopping)
        assert (crowd.done(), other.done(), shut.done()) == (False, False, False)
        leave.set()
        assert shut.result(PATIENCE)
        assert (crowd.done(), gate.inside) == (False, 0)  # it came too late for this turn
        gate.open("b", places=1)
        assert other.result(PATIENCE)
        gate.open("a", places=1)
        assert crowd.result(PATIENCE)


def test_a_closed_gate_sends_everybody_away() -> None:
    """A process that ends leaves nobody waiting, and does not wait for a turn to end either."""
    gate, leave, stopping = Gate("a"), threading.Event(), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        assert enter(gate, "a", pool, leave).result(PATIENCE)
        outside = enter(gate, "b", pool, leave)
        shut = pool.submit(gate.shut, stopping)
        gate.close()
        assert not outside.result(PATIENCE)
        stopping.set()
        assert not shut.result(PATIENCE)
        leave.set()
