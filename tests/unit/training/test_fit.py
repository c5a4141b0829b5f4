"""The training loop: two processes, seeded, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.fit import BatchLoss, Recipe, fit, learning_rate, losses

RECIPE = Recipe(
    name="line", steps=80, learning_rate=0.2, warmup=5, ema=0.9, weight_decay=0.0, seed=7, save_seconds=0
)


@dataclass(frozen=True)
class LineTask:
    """Fit y = 3x + 1, and break off at a step if told to."""

    breaks_at: int | None = None

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build a network of two numbers and its loss."""
        calls = 0

        def batch_loss(network: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == self.breaks_at:
                raise RuntimeError("the power went out")
            x = torch.from_numpy(rng.standard_normal((16, 1), dtype=np.float32))
            return ((network(x) - (3 * x + 1)) ** 2).mean()

        return nn.Linear(1, 1), batch_loss


def weights(path: Path) -> torch.Tensor:
    """Both numbers of the fitted line."""
    state = torch.load(path, weights_only=True)
    return torch.cat([state["weight"].flatten(), state["bias"]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    fit(LineTask(), RECIPE, folder)
    return folder


def test_a_fit_learns_and_logs_it(whole: Path) -> None:
    """The averaged weights come close to the line, and the log shows a falling loss."""
    assert torch.allclose(weights(whole / "line.pt"), torch.tensor([3.0, 1.0]), atol=0.2)
    first, *_, last = losses(whole, "line")
    assert (first["step"], last["step"]) == (20, 80)
    assert last["loss"] < first["loss"] / 2


def test_an_interrupted_fit_goes_on_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """Killed after a checkpoint and started again, it ends at the weights of a run in one piece."""
    with pytest.raises(Exception, match="power went out"):
        fit(LineTask(breaks_at=17), RECIPE, tmp_path)
    assert (tmp_path / "line.checkpoint.pt").exists()
    path = fit(LineTask(), RECIPE, tmp_path)
    assert torch.equal(weights(path), weights(whole / "line.pt"))
    assert not (tmp_path / "line.checkpoint.pt").exists()


def test_the_learning_rate_warms_up_and_falls() -> None:
    """It starts small, peaks after the warm-up and ends at 2 %."""
    rates = [learning_rate(RECIPE, step) for step in range(RECIPE.steps + 1)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[5] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.004)
