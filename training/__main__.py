"""Make the model: `make model`, or `python -m training`; goes on where an earlier run was stopped."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training import data
from training.card import commit, write_card
from training.classifier import judge, train_classifier
from training.diffusion import encode_latents, train_diffusion
from training.errors import TrainingError
from training.evaluate import Cell, as_rows, contact_sheet, evaluate, seconds_per_picture, vae_psnr
from training.export import DEFAULTS, export
from training.fit import RANKS, losses
from training.tokenizer import write_tokenizer
from training.vae import train_vae
from training.vocabulary import caption_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much of everything.

    Attributes:
        variants: pictures of each training triple.
        limit: triples to draw, None for all.
        crop_steps, whole_steps, diffusion_steps, judge_steps: optimiser steps of each stage.
        crops, latents: in a step of one process.
        prompts: for each line of the table.
        steps: of the sampler, in the evaluation.
    """

    variants: int
    limit: int | None
    crop_steps: int
    whole_steps: int
    diffusion_steps: int
    judge_steps: int
    crops: int
    latents: int
    prompts: int
    steps: int


FULL = Plan(
    variants=6,
    limit=None,
    crop_steps=700,
    whole_steps=150,
    diffusion_steps=5200,
    judge_steps=800,
    crops=48,
    latents=32,
    prompts=200,
    steps=30,
)
QUICK = Plan(
    variants=1,
    limit=200,
    crop_steps=60,
    whole_steps=120,
    diffusion_steps=60,
    judge_steps=60,
    crops=16,
    latents=16,
    prompts=2,
    steps=3,
)
# The trainings in each stage, as their logs are called.
TRAININGS = {"vae": ("vae_crops", "vae"), "diffusion": ("diffusion",), "judge": ("classifier",)}


class Maker:
    """The stages in their order; each writes into the work folder and is skipped when its files are there."""

    def __init__(self, work: Path, model: Path, plan: Plan, seed: int) -> None:
        """Take up the run whose notes are in `work`, if there is one.

        Raises:
            TrainingError: when that run had another plan or seed: its files are not ours.
        """
        self.work, self.model, self.plan, self.seed = work, model, plan, seed
        self.notes = work / "notes.json"
        self.figures: dict[str, Any] = {
            "seed": seed,
            "plan": asdict(plan),
            "commits": {},
            "seconds": {},
            "done": [],
        }
        if self.notes.exists():
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
            if (noted["seed"], noted["plan"]) != (seed, asdict(plan)):
                raise TrainingError(
                    f"{work} holds another plan's or seed's run; remove it, or name another --work."
                )
            self.figures = noted

    def make(self) -> None:
        """Run all stages."""
        plan, work, seed = self.plan, self.work, self.seed
        self._stage("draw", lambda: data.build(work, variants=plan.variants, seed=seed, limit=plan.limit))
        vae = self._stage(
            "vae",
            lambda: train_vae(
                work, crop_steps=plan.crop_steps, whole_steps=plan.whole_steps, batch=plan.crops, seed=seed
            ),
        )
        factor = self._stage("encode", lambda: encode_latents(work, vae))
        write_tokenizer(work / "tokenizer", caption_words())
        diffusion = self._stage(
            "diffusion",
            lambda: train_diffusion(
                work, work / "tokenizer", steps=plan.diffusion_steps, batch=plan.latents, seed=seed
            ),
        )
        self._stage("export", lambda: export(self.model, vae=vae, diffusion=diffusion, scaling_factor=factor))
        classifier = self._stage("judge", lambda: train_classifier(work, steps=plan.judge_steps, seed=seed))
        self._stage("evaluate", lambda: self._evaluate(classifier))
        self._finish()

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage or, where it is done, only find its files; note its commits and its time."""
        print(f"{name} ...", flush=True)
        seconds, done = self.figures["seconds"], self.figures["done"]
        if name not in done:
            # Before it begins: one that is killed and taken up later has two commits, and the card says so.
            commits = self.figures["commits"].setdefault(name, [])
            commits += [here] if (here := commit()) not in commits else []
            self._save()
        started = time.monotonic()
        result = work()
        if name not in done:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
            for training in TRAININGS.get(name, ()):
                seconds[training] = losses(self.work, training)[-1]["seconds"]  # over all runs
            done.append(name)
            self._save()
        print(f"{name}: {self._minutes(name):.1f} min", flush=True)
        return result

    def _minutes(self, name: str) -> float:
        """How long a stage took, the part before a kill included where it trained."""
        seconds = self.figures["seconds"]
        trained = sum(seconds[training] for training in TRAININGS.get(name, ()))
        return max(seconds[name], trained) / 60

    def _evaluate(self, classifier: Path) -> None:
        steps = self.plan.steps
        pictures = data.load(self.work, "held_out")
        right = judge(classifier, pictures.pixels, pictures.labels)
        self.figures |= {
            "judge": {"all": float(right.all(axis=1).mean()), "pictures": len(right)},
            "psnr": vae_psnr(self.model, self.work),
            "threads": torch.get_num_threads(),
            "seconds_per_picture": seconds_per_picture(self.model, steps=steps),
            "table": as_rows(evaluate(self.model, classifier, prompts=self.plan.prompts, steps=steps)),
        }
        for sampler, schedule in (("lms", "karras"), ("euler", "default")):
            cell = Cell(
                asked="sheet", sampler=sampler, schedule=schedule, guidance=DEFAULTS["guidance_scale"]
            )
            contact_sheet(self.model, self.model / f"contact-sheet-{sampler}.png", cell, steps=steps)

    def _finish(self) -> None:
        """Write the card, and the table to standard output."""
        self.figures |= {
            "defaults": DEFAULTS,
            "pictures": len(data.load(self.work, "train").labels),
            "stages": [self._training(name) for names in TRAININGS.values() for name in names],
            "minutes": sum(self._minutes(name) for name in self.figures["done"]),
            "parameters": self._parameters(),
            "bytes": sum(path.stat().st_size for path in self.model.rglob("*") if path.is_file()),
        }
        self._save()
        write_card(self.model, self.figures)
        card = (self.model / "README.md").read_text(encoding="utf-8")
        print("\n".join(line for line in card.splitlines() if line.startswith("|")))
        print(f"{self.model} is made; its card is {self.model / 'README.md'}")

    def _training(self, name: str) -> dict[str, Any]:
        first, *_, last = losses(self.work, name)
        if not last["loss"] < first["loss"]:
            raise TrainingError(
                f"{name} did not learn: its loss went from {first['loss']} to {last['loss']}."
            )
        return {
            "name": name,
            "steps": last["step"],
            "first_loss": first["loss"],
            "last_loss": last["loss"],
            "minutes": last["seconds"] / 60,
        }

    def _parameters(self) -> dict[str, int]:
        weights = torch.load(self.work / "diffusion.pt", weights_only=True)
        vae = torch.load(self.work / "vae.pt", weights_only=True)
        counts = {"UNet": 0, "text encoder": 0, "VAE": sum(value.numel() for value in vae.values())}
        for name, value in weights.items():
            counts["UNet" if name.startswith("unet.") else "text encoder"] += value.numel()
        return counts

    def _save(self) -> None:
        self.notes.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--work", type=Path, help="pictures, checkpoints and logs: out/model")
    parser.add_argument("--model", type=Path, help="where the model goes: models/demo")
    parser.add_argument("--seed", type=int, default=32)
    parser.add_argument(
        "--quick", action="store_true", help=f"a few minutes with {RANKS} cores: a test, no model"
    )
    options = parser.parse_args()
    # A quick run makes no model worth keeping, so it must not land on the one that is shipped.
    options.work = options.work or Path("out/model-quick" if options.quick else "out/model")
    options.model = options.model or (options.work / "demo" if options.quick else Path("models/demo"))
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        Maker(options.work, options.model, QUICK if options.quick else FULL, options.seed).make()
    except (TrainingError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
