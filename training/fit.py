"""Train one network: seeded, resumable, in two processes of one thread each that average their gradients.

Two single-threaded processes beat one with two threads here: small convolutions do not fill a second thread,
and on a busy machine spinning OpenMP threads wait for each other. The two are part of the recipe, so the
result does not depend on how many cores there are.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from training.errors import TrainingError

RANKS = 2
# glibc gives large blocks back to the kernel and fetches them anew in every step, page by page; keeping them
# made a step 5 to 8 % faster. Read when a process starts; other C libraries do not look.
# (The largest threshold that older versions of it take.)
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32 - 1)}

# What a process dies of when a library under it crashes, as one did once in some hundred runs on a busy
# machine (SIGABRT; not seen again in 9,000 meetings of two processes). Such a run goes on from its checkpoint
# by itself.
_CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}
_STARTS = 3

# A network's loss of one batch, which it draws from the generator. Returns a scalar tensor.
BatchLoss = Callable[[nn.Module, np.random.Generator], torch.Tensor]
# Builds the network and its loss inside each process.
Task = Callable[[], tuple[nn.Module, BatchLoss]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one network is trained.

    Attributes:
        name: of the checkpoint and the log.
        steps: optimiser steps; the learning rate warms up, then falls along a cosine to 2 % at the last.
        learning_rate: the highest.
        betas, weight_decay: of AdamW.
        warmup: steps.
        ema: decay of the moving average of the weights, which is what is kept.
        seed: of every draw: step s of process r draws from a generator of (seed, s, r).
        save_seconds: between two checkpoints.
    """

    name: str
    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.998
    seed: int = 32
    save_seconds: float = 60.0


def fit(task: Task, recipe: Recipe, folder: Path) -> Path:
    """Train to the end, from the last checkpoint if there is one, and return the weights' path.

    Args:
        task: a picklable function that returns the network and its loss.
        recipe: how.
        folder: gets `NAME.pt` (averaged weights), `NAME.jsonl` (loss and seconds by step) and, meanwhile,
            `NAME.checkpoint.pt`.

    Returns:
        The path of `NAME.pt`, a state dict.

    Raises:
        TrainingError: when a process ended before the last step (after a crash below Python it goes
            on from the checkpoint, twice), or the loss is no number any more.
    """
    path = folder / f"{recipe.name}.pt"
    starts = 0
    while not path.exists():
        starts += 1
        try:
            _start(task, recipe, folder)
        except ProcessRaisedException as error:
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(f"{recipe.name} stopped: {reason}") from error
        except ProcessExitedException as error:
            if error.exit_code not in _CRASHES or starts == _STARTS:
                raise TrainingError(f"{recipe.name} stopped: {error}; start again to go on.") from error
            print(f"{recipe.name}: {error}; going on from the last checkpoint.", file=sys.stderr, flush=True)
    return path


def losses(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read a training log: step, loss (mean over both processes since the line before), seconds so far."""
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]  # a kill may tear the last


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to 2 % at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))


def _start(task: Task, recipe: Recipe, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as meeting, _environment(_ALLOCATOR):
        spawn(_rank, (task, recipe, folder, f"file://{meeting}/ranks", os.getpid()), nprocs=RANKS)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _rank(  # noqa: PLR0917 - spawn passes them by position
    rank: int, task: Task, recipe: Recipe, folder: Path, meeting: str, parent: int
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)  # the same initial weights everywhere
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    network, batch_loss = task()
    _Fit(network, batch_loss, recipe, folder, rank).run(parent)
    dist.destroy_process_group()


class _Fit:
    """One process' share of a training."""

    LOG_STEPS = 20

    def __init__(
        self, network: nn.Module, batch_loss: BatchLoss, recipe: Recipe, folder: Path, rank: int
    ) -> None:
        self.network, self.batch_loss, self.recipe = network, batch_loss, recipe
        self.folder, self.rank = folder, rank
        self.parameters: list[torch.Tensor] = [p for p in network.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.total, self.logged = 0.0, 0  # the sum of the losses since the log's last line, and its step
        self.log = folder / f"{recipe.name}.jsonl"
        self.checkpoint = folder / f"{recipe.name}.checkpoint.pt"
        if self.checkpoint.exists():
            self._load()
        if rank == 0:
            self._shorten_log()

    def run(self, parent: int) -> None:
        """Train to the last step; end when the process `parent` is gone."""
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        while self.step < self.recipe.steps:
            if os.getppid() != parent:
                raise SystemExit(1)  # an orphan would train on, and write into a second run's files
            self.total += self._train_step()
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % self.LOG_STEPS == 0 or self.step == self.recipe.steps:
                self._log()
            if self.rank:
                continue
            if time.monotonic() - saved > self.recipe.save_seconds:
                self._save()
                saved = time.monotonic()
        if self.rank == 0:
            self._finish()

    def _train_step(self) -> float:
        """One step of the optimiser; returns the loss, the mean over the processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        rng = np.random.default_rng((self.recipe.seed, self.step, self.rank))
        torch.manual_seed(int(rng.integers(2**62)))  # dropout draws from torch's own generator
        loss = self.batch_loss(self.network, rng)
        loss.backward()
        mean = _average(self.parameters, loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            # A young average follows the weights more closely, else it would remember the random start.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return mean

    def _log(self) -> None:
        loss = self.total / (self.step - self.logged)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of step {self.step} is {loss}")
        if self.rank == 0:
            line = {"step": self.step, "loss": round(loss, 5), "seconds": round(self.seconds, 1)}
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.total, self.logged = 0.0, self.step

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "total": self.total,
            "logged": self.logged,
            "weights": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        _write(state, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.total, self.logged = state["total"], state["logged"]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, state["weights"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])

    def _shorten_log(self) -> None:
        """Drop the lines of steps that a kill lost, which will be taken again."""
        if not self.log.exists():
            return
        lines = losses(self.folder, self.recipe.name)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= self.step)
        if kept != self.log.read_text(encoding="utf-8"):
            temporary = self.log.with_suffix(".tmp")
            temporary.write_text(kept, encoding="utf-8")
            temporary.replace(self.log)

    def _finish(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        _write(self.network.state_dict(), self.folder / f"{self.recipe.name}.pt")
        self.checkpoint.unlink(missing_ok=True)


def _average(parameters: list[torch.Tensor], loss: torch.Tensor) -> float:
    """Replace each process' gradients by their mean; return the mean of the losses, a scalar each."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.flatten()])
    dist.all_reduce(flat)
    *means, mean = (flat / RANKS).split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, averaged in zip(gradients, means, strict=True):
        gradient.copy_(averaged.view_as(gradient))
    return float(mean)


def _write(state: Any, path: Path) -> None:
    """Replace a file as a whole: a kill leaves the old one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
