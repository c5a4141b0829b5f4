"""The training loop: two processes, seeded, resumable."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from training.errors import TrainingError
from training.fit import BatchLoss, Recipe, fit, learning_rate, losses

RECIPE = Recipe(
    name="line", steps=85, learning_rate=0.2, warmup=5, ema=0.9, weight_decay=0.0, seed=7, save_seconds=0
)


@dataclass(frozen=True)
class LineTask:
    """Fit y = 3x + 1; break off, or count beyond numbers, at a call if told to; sleep in each.

    With `crashes_at`, a process dies at that call, as often as the file `crashes` has letters.
    """

    breaks_at: int | None = None
    crashes_at: int | None = None
    crashes: Path | None = None
    nan_at: int | None = None
    pause: float = 0.0

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build a network of two numbers and its loss."""
        calls = 0

        def batch_loss(network: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == self.breaks_at:
                raise RuntimeError("the power went out")
            if calls == self.crashes_at:
                self._crash()
            time.sleep(self.pause)
            factor = float("nan") if calls == self.nan_at else 1.0
            x = torch.from_numpy(rng.standard_normal((16, 1), dtype=np.float32))
            return factor * ((network(x) - (3 * x + 1)) ** 2).mean()

        return nn.Linear(1, 1), batch_loss

    def _crash(self) -> None:
        assert self.crashes is not None
        if dist.get_rank() == 1 and (left := self.crashes.read_text()):
            self.crashes.write_text(left[1:])
            os.abort()


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
    first, *_, last = log = losses(whole, "line")
    assert [line["step"] for line in log] == [20, 40, 60, 80, 85]  # the last steps too
    assert last["loss"] < first["loss"] / 2


def test_an_interrupted_fit_goes_on_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """Broken off after a checkpoint and started again, it ends at the weights and the log of one piece.

    Lines past the checkpoint, and one that was torn, leave the log when their steps are taken again.
    """
    with pytest.raises(TrainingError, match=r"^line stopped: RuntimeError: the power went out$"):
        fit(LineTask(breaks_at=30), RECIPE, tmp_path)
    assert (tmp_path / "line.checkpoint.pt").exists()
    with (tmp_path / "line.jsonl").open("a") as file:
        file.write('{"step": 40, "loss": 9.0, "seconds": 9.0}\n{"step": 6')
    path = fit(LineTask(), RECIPE, tmp_path)
    assert torch.equal(weights(path), weights(whole / "line.pt"))
    assert not (tmp_path / "line.checkpoint.pt").exists()
    logs = [[(line["step"], line["loss"]) for line in losses(folder, "line")] for folder in (whole, tmp_path)]
    assert logs[0] == logs[1]


def test_a_crash_below_python_goes_on_from_the_checkpoint(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twice, to the weights of one piece, and says so."""
    crashes = tmp_path / "crashes"
    crashes.write_text("xx")
    path = fit(LineTask(crashes_at=30, crashes=crashes), RECIPE, tmp_path)
    assert torch.equal(weights(path), weights(whole / "line.pt"))
    said = "line: process 1 terminated with signal SIGABRT; going on from the last checkpoint."
    assert capfd.readouterr().err.count(said) == 2


def test_the_third_crash_is_the_last(tmp_path: Path) -> None:
    """What crashes again and again is no chance; the checkpoint stays."""
    crashes = tmp_path / "crashes"
    crashes.write_text("xxxx")
    with pytest.raises(TrainingError, match=r"^line stopped: process 1 .* SIGABRT; start again to go on\.$"):
        fit(LineTask(crashes_at=20, crashes=crashes), RECIPE, tmp_path)
    assert crashes.read_text() == "x"
    assert (tmp_path / "line.checkpoint.pt").exists()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    """It says which training and which step; no weights are written."""
    with pytest.raises(TrainingError, match=r"line stopped: .*the loss of step 20 is nan"):
        fit(LineTask(nan_at=12), RECIPE, tmp_path)
    assert not (tmp_path / "line.pt").exists()


def test_processes_whose_parent_was_killed_end_by_themselves(tmp_path: Path) -> None:
    """They would train on, and write into the files of the run that goes on."""
    code = (
        "import sys; from pathlib import Path; from training.fit import fit; "
        "from tests.unit.training.test_fit import LineTask, RECIPE\n"
        "if __name__ == '__main__': fit(LineTask(pause=0.05), RECIPE, Path(sys.argv[1]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    parent = subprocess.Popen(
        # As under nohup: torch's own death signal to its children is SIGINT, which they then ignore.
        ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(script), str(tmp_path)],
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    _wait((tmp_path / "line.checkpoint.pt").exists)
    parent.kill()
    parent.wait()
    _wait(lambda: not _any_left(parent.pid))
    assert not (tmp_path / "line.pt").exists()


def _any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_learning_rate_warms_up_and_falls() -> None:
    """It starts small, peaks after the warm-up and ends at 2 %."""
    rates = [learning_rate(RECIPE, step) for step in range(RECIPE.steps + 1)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[5] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.004)
