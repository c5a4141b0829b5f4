"""Who may render beside whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.company import Company

PATIENCE = 10.0  # seconds until a test that hangs fails


def test_many_are_together_and_one_is_alone() -> None:
    """Over many rounds nobody ever shares the process with someone who is alone."""
    company = Company()
    inside: set[str] = set()
    lock = threading.Lock()
    seen_together = 0

    def visit(number: int) -> None:
        nonlocal seen_together
        alone = number % 5 == 0
        name = f"{'alone' if alone else 'together'}-{number}"
        with company.alone() if alone else company.together():
            with lock:
                inside.add(name)
                others = {other for other in inside if other != name}
                assert not (alone and others), others
                assert not any(other.startswith("alone") for other in others)
                seen_together += bool(others)
            threading.Event().wait(0.001)
            with lock:
                inside.remove(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(100)))
    assert seen_together
    assert not inside


def test_who_wants_to_be_alone_goes_first() -> None:
    """A waiting suspect lets no newcomer in, so that it cannot wait for ever."""
    company = Company()
    order: list[str] = []

    def alone() -> None:
        with company.alone():
            order.append("alone")

    def together() -> None:
        with company.together():
            order.append("together")

    with company.together():
        suspect = threading.Thread(target=alone)
        suspect.start()
        wait_until(lambda: bool(company._waiting_alone))
        newcomer = threading.Thread(target=together)
        newcomer.start()
        newcomer.join(0.05)
        assert order == []
    suspect.join(PATIENCE)
    newcomer.join(PATIENCE)
    assert order == ["alone", "together"]


def test_an_error_inside_frees_the_place() -> None:
    """Whatever happens to a job, the next one gets its turn."""
    company = Company()
    for enter in (company.together, company.alone):
        with pytest.raises(ValueError, match="x"), enter():
            raise ValueError("x")
    with company.alone():
        pass
    with company.together(), company.together():
        pass


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("the other thread did not get there")
