"""How many threads a forward pass gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worker.models import threads
from worker.models.threads import set_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _same_threads_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_unet_on_the_cpu_gets_one_thread() -> None:
    """Its parallel regions are too short to share."""
    assert set_threads(torch.nn.Linear(4, 4), CPU) == 1


def test_a_large_unet_keeps_the_threads_that_torch_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the limit on, nothing is changed."""
    monkeypatch.setattr(threads, "SMALL", 20)
    assert set_threads(torch.nn.Linear(4, 4), CPU) == 2


def test_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS overrules the rule."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set_threads(torch.nn.Linear(4, 4), CPU) == 2
