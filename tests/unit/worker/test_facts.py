"""What `doctor` is told of torch: by the process that it asks, on this very machine."""

from __future__ import annotations

import json

import pytest
import torch

from worker import facts
from worker.models.device import DTYPES


def test_every_device_is_tried_in_every_dtype() -> None:
    """The CPU is always there, multiplies in float32, and all of it is JSON."""
    told = json.loads(json.dumps(facts.facts()))
    cpu = told["devices"][-1]
    assert told["torch"] == torch.__version__
    assert (cpu["type"], cpu["dtypes"]["float32"]) == ("cpu", {"works": True})
    assert cpu["dtypes"].keys() == DTYPES.keys()
    assert told["auto"].split()[0] in DTYPES


def test_a_device_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build does that was not made for a GPU."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile")

    monkeypatch.setattr(facts.torch, "ones", broken)
    assert facts._trial(torch.device("cpu"), torch.float32) == {
        "works": False,
        "reason": "CUDA error: no kernel image is available for execution on the device",
    }


def test_a_product_that_comes_out_wrong_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device says."""
    monkeypatch.setattr(facts, "SIZE", 5)
    right = torch.ones
    monkeypatch.setattr(facts.torch, "ones", lambda *size, **of: right(*size, **of) * 2)
    assert facts._trial(torch.device("cpu"), torch.float32)["reason"] == "a product came out wrong"
