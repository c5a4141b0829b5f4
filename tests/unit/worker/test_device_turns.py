"""Two engines in one process share the device fairly."""

from __future__ import annotations

import threading

from worker.engine.device_turns import DeviceTurns

PATIENCE = 10.0


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    """Whoever gives a turn away and asks at once for the next one goes behind those who wait."""
    turns, order = DeviceTurns(), list[str]()

    def other() -> None:
        with turns:
            order.append("other")

    turns.acquire()
    thread = threading.Thread(target=other)
    thread.start()
    while turns._asked < 2:  # until it waits
        assert thread.is_alive()
    turns.release()
    with turns:
        order.append("first again")
    thread.join(PATIENCE)
    assert order == ["other", "first again"]
