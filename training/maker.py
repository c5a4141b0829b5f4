"""The stages of making the model, in their order: each is done once, and what follows from it after it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training import data
from training.calibrate import calibrate
from training.card import write_card
from training.classifier import judge, train_classifier
from training.diffusion import encode_latents, train_diffusion
from training.errors import TrainingError
from training.evaluate import (
    Cell,
    as_rows,
    contact_sheet,
    evaluate,
    one_thread,
    seconds_per_picture,
    vae_psnr,
)
from training.export import DEFAULTS, MAX_BYTES, count_parameters, export
from training.fit import losses
from training.place import alone, check_model, replace
from training.plan import Plan
from training.promises import promises
from training.provenance import commit, source_digest
from training.stage import Stage, summaries
from training.tokenizer import write_tokenizer
from training.vae import train_vae
from training.vocabulary import caption_words

JUDGING = ("judge", "evaluate")  # stages that make no weights


class Maker:
    """Makes a model in a work folder, and puts it in its place when it is whole."""

    def __init__(self, work: Path, model: Path, plan: Plan, seed: int) -> None:
        """Take up the run whose notes are in `work`, if there is one.

        Raises:
            TrainingError: when that run had another plan or seed: its files are not ours.
        """
        self.work, self.model, self.plan, self.seed = work, model, plan, seed
        self.exported = work / "export"
        self.notes = work / "notes.json"
        # Noted once, ahead of the first stage: the run itself must not make the checkout look changed.
        self.commit, self.source = commit(), source_digest()
        check_model(model, work)
        self.figures: dict[str, Any] = {
            "seed": seed,
            "plan": asdict(plan),
            "commits": {},
            "sources": {},
            "seconds": {},
            "done": [],
        }
        if self.notes.exists():
            self.figures = self._read_notes()

    def make(self) -> None:
        """Run every stage that is not done, write the card, and put the model in its place.

        Raises:
            TrainingError: when another process makes a model in the same work folder, the code changes while
                it runs, or a stage says that it failed.
        """
        with alone(self.work):
            stages = self._stages()
            for i, stage in enumerate(stages):
                if stage.name in self.figures["done"] and all(
                    (self.work / output).exists() for output in stage.outputs
                ):
                    print(f"{stage.name}: done before", flush=True)
                    continue
                # One that broke off goes on where it was; one that was whole is not whole any more.
                self._forget(stages[i if stage.name in self.figures["done"] else i + 1 :])
                self._run(stage)
            self._finish()

    def _stages(self) -> list[Stage]:
        work = self.work
        pictures = tuple(
            f"{name}{end}" for name in ("train", "held_out", "judge") for end in (".npy", "_labels.npy")
        )
        return [
            Stage(name="draw", run=self._draw, outputs=pictures),
            Stage(name="vae", run=self._train_vae, outputs=("vae.pt",), trainings=("vae_crops", "vae")),
            Stage(
                name="encode",
                run=lambda: encode_latents(work, work / "vae.pt"),
                outputs=("latents.npy",),
            ),
            Stage(
                name="diffusion",
                run=self._train_diffusion,
                outputs=("diffusion.pt", "tokenizer"),
                trainings=("diffusion",),
            ),
            Stage(
                name="judge",
                run=self._train_judge,
                outputs=("classifier.pt",),
                trainings=("classifier",),
            ),
            Stage(
                name="calibrate",
                run=self._calibrate,
                outputs=("calibrated.pt",),
                trainings=("calibrated",),
            ),
            Stage(name="export", run=self._export, outputs=("export",)),
            Stage(name="evaluate", run=self._evaluate, outputs=()),
        ]

    def _run(self, stage: Stage) -> None:
        print(f"{stage.name} ...", flush=True)
        seconds = self.figures["seconds"]
        # Before it begins: one that is killed and taken up later has two commits, and the card says so.
        commits = self.figures["commits"].setdefault(stage.name, [])
        commits += [self.commit] if self.commit not in commits else []
        self.figures["sources"][stage.name] = self.source
        self._save()
        began = time.monotonic()
        try:
            self._check_source()
            self.figures |= stage.run() or {}
            self._check_source()  # processes that it started have read the code since
            summaries(stage, self.work)
            self.figures["done"].append(stage.name)
        finally:
            seconds[stage.name] = seconds.get(stage.name, 0.0) + time.monotonic() - began
            self._save()
        print(f"{stage.name}: {self._minutes(stage):.1f} min", flush=True)

    def _check_source(self) -> None:
        if source_digest() != self.source:
            raise TrainingError(
                f"The code in training/ or a library has changed meanwhile; remove {self.work}, start again."
            )

    def _forget(self, stages: list[Stage]) -> None:
        """Remove what was made from something that is now made anew."""
        for stage in stages:
            paths = [self.work / output for output in stage.outputs]
            paths += [path for training in stage.trainings for path in self.work.glob(f"{training}.*")]
            for path in paths:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for noted in ("commits", "sources", "seconds"):
                self.figures[noted].pop(stage.name, None)
            self.figures["done"] = [name for name in self.figures["done"] if name != stage.name]

    def _draw(self) -> None:
        data.build(self.work, variants=self.plan.variants, seed=self.seed, limit=self.plan.limit)

    def _train_vae(self) -> None:
        plan = self.plan
        train_vae(
            self.work,
            crop_steps=plan.crop_steps,
            whole_steps=plan.whole_steps,
            batch=plan.crops,
            seed=self.seed,
        )

    def _train_diffusion(self) -> None:
        tokenizer = self.work / "tokenizer"
        write_tokenizer(tokenizer, caption_words())
        train_diffusion(
            self.work,
            tokenizer,
            steps=self.plan.diffusion_steps,
            batch=self.plan.latents,
            seed=self.seed,
        )

    def _calibrate(self) -> None:
        calibrate(
            self.work,
            self.work / "tokenizer",
            self.work / "diffusion.pt",
            steps=self.plan.calibration_steps,
            batch=self.plan.latents,
            seed=self.seed,
        )

    def _train_judge(self) -> None:
        train_classifier(self.work, steps=self.plan.judge_steps, seed=self.seed)

    def _export(self) -> dict[str, Any]:
        shutil.rmtree(self.exported, ignore_errors=True)
        weights: dict[str, Any] = {"vae": self.work / "vae.pt", "diffusion": self.work / "calibrated.pt"}
        latents = {name: self.figures[name] for name in ("latent_mean", "scaling_factor")}
        export(self.exported, **weights, **latents)
        return {"parameters": count_parameters(**weights)}

    def _evaluate(self) -> dict[str, Any]:
        steps, classifier = self.plan.steps, self.work / "classifier.pt"
        pictures = data.load(self.work, "held_out")
        with one_thread():
            right = judge(classifier, pictures.pixels, pictures.labels)
            psnr = vae_psnr(self.exported, self.work)
            for sampler, schedule in (("lms", "karras"), ("euler", "default")):
                cell = Cell(
                    asked="sheet", sampler=sampler, schedule=schedule, guidance=DEFAULTS["guidance_scale"]
                )
                sheet = self.exported / f"contact-sheet-{sampler}.png"
                contact_sheet(self.exported, sheet, cell, steps=steps)
        return {
            "judge": {"all": float(right.all(axis=1).mean()), "pictures": len(right)},
            "psnr": psnr,
            "threads": torch.get_num_threads(),
            "seconds_per_picture": seconds_per_picture(self.exported, steps=steps),
            "table": as_rows(evaluate(self.exported, classifier, prompts=self.plan.prompts, steps=steps)),
        }

    def _finish(self) -> None:
        """Write the card, put the model in its place, and print the card's tables."""
        stages = self._stages()
        self.figures |= {
            "defaults": DEFAULTS,
            "pictures": len(data.load(self.work, "train").labels),
            "stages": [training for stage in stages for training in summaries(stage, self.work)],
            "minutes": sum(self._minutes(stage) for stage in stages if stage.name not in JUDGING),
            "minutes_of_judging": sum(self._minutes(stage) for stage in stages if stage.name in JUDGING),
            "bytes": 0,
        }
        for _ in range(2):  # the card is a part of what it weighs
            write_card(self.exported, self.figures)
            files = [path for path in self.exported.rglob("*") if path.is_file()]
            self.figures["bytes"] = sum(path.stat().st_size for path in files)
        if self.figures["bytes"] > MAX_BYTES:
            raise TrainingError(
                f"{self.exported} holds {self.figures['bytes']} bytes, and the model may take {MAX_BYTES}; "
                "make it smaller."
            )
        self._save()
        replace(self.model, self.exported)
        card = (self.model / "README.md").read_text(encoding="utf-8")
        print("\n".join(line for line in card.splitlines() if line.startswith("|")))
        for promise in promises(self.figures):
            if not promise.kept:
                print(f"Not reached: {promise.what}: {promise.measured}, wanted {promise.wanted}.")
        print(f"{self.model} is made; its card is {self.model / 'README.md'}")

    def _minutes(self, stage: Stage) -> float:
        """How long a stage took, over all its runs; of one that was killed only what it logged is known."""
        trained = sum(losses(self.work, training)[-1]["seconds"] for training in stage.trainings)
        return float(max(self.figures["seconds"][stage.name], trained)) / 60

    def _read_notes(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = dict(json.loads(self.notes.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise TrainingError(f"{self.notes} cannot be read ({error}); remove {self.work}.") from error
        if (noted.get("seed"), noted.get("plan")) != (self.seed, asdict(self.plan)):
            raise TrainingError(
                f"{self.work} holds another plan's or seed's run; remove it, or name another --work."
            )
        if any(source != self.source for source in noted.setdefault("sources", {}).values()):
            raise TrainingError(
                f"{self.work} holds a run of other code or libraries; remove it, or name another --work."
            )
        return noted

    def _save(self) -> None:
        temporary = self.notes.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")
        temporary.replace(self.notes)
