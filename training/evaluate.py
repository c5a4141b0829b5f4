"""Ask the exported model for held-out combinations, through diffusers' pipeline, and let the judge count."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from training.classifier import judge
from training.data import load, to_labels
from training.export import DEFAULTS
from training.parallel import in_parallel
from training.vae import to_tensor
from training.vocabulary import BACKGROUNDS, NOUNS, STYLES, Triple, held_out, prompt

BATCH = 20  # pictures in a call
EULER, DPMPP, LMS = ("euler", "default"), ("dpmpp_2m", "default"), ("lms", "karras")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One line of the table: a sampler at a guidance scale, asked for one kind of held-out combination."""

    asked: str
    sampler: str
    schedule: str
    guidance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Shares of pictures, 0..1, in which the judge saw what was asked for."""

    prompts: int
    noun: float
    style: float
    background: float
    all: float


def cells() -> list[Cell]:
    """The table's lines."""
    wanted = [("triples", *sampler, guidance) for sampler in (EULER, DPMPP, LMS) for guidance in (4.0, 7.5)]
    wanted += [("pairs", *sampler, guidance) for sampler in (EULER, DPMPP, LMS) for guidance in (4.0, 7.5)]
    wanted += [("triples", "lms", "default", guidance) for guidance in (4.0, 7.5)]
    wanted += [("triples", *LMS, DEFAULTS["guidance_scale"]), ("triples", *EULER, 1.0)]
    return [Cell(asked=a, sampler=s, schedule=c, guidance=g) for a, s, c, g in wanted]


def evaluate(model: Path, judge_weights: Path, *, prompts: int, steps: int) -> list[tuple[Cell, Score]]:
    """Render and judge every cell, in as many processes as there are cores.

    Args:
        model: the exported folder.
        judge_weights: of the classifier.
        prompts: per cell; prompt i has seed i, the same in every cell.
        steps: of the sampler.
    """
    table = cells()
    work = [(model, judge_weights, cell, prompts, steps) for cell in table]
    return list(zip(table, in_parallel(score, work), strict=True))


def score(model: Path, judge_weights: Path, cell: Cell, prompts: int, steps: int) -> Score:
    """Render one cell's prompts and judge them."""
    torch.set_num_threads(1)
    triples = unseen(cell.asked, prompts)
    pixels = np.concatenate(list(render(load_pipeline(model), triples, cell, steps=steps)))
    right = judge(judge_weights, pixels, to_labels(triples))
    noun, style, background = right.mean(axis=0)
    return Score(
        prompts=len(triples),
        noun=float(noun),
        style=float(style),
        background=float(background),
        all=float(right.all(axis=1).mean()),
    )


def unseen(kind: str, count: int) -> list[Triple]:
    """Draw `count` combinations that training never saw: `triples`, or whole `pairs` on any background."""
    pairs, triples = held_out()
    pool = sorted(triples)
    if kind == "pairs":
        pool = [Triple(noun, style, ground) for noun, style in sorted(pairs) for ground in BACKGROUNDS]
    rng = random.Random(1)
    return rng.sample(pool, min(count, len(pool)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the number of cores must not show in what is measured or drawn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_pipeline(model: Path) -> Any:
    """Load the folder as any user of diffusers would, in float32."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render(
    pipeline: Any, triples: list[Triple], cell: Cell, *, steps: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield uint8 (n, 64, 64, 3), picture i with seed `seed + i`."""
    sampler = SAMPLERS[cell.sampler]
    overrides = dict(sampler.overrides)
    if cell.schedule in SCHEDULE_OPTIONS:
        overrides[SCHEDULE_OPTIONS[cell.schedule]] = True
    scheduler_class = getattr(diffusers, sampler.scheduler_class)
    for start in range(0, len(triples), BATCH):
        chunk = triples[start : start + BATCH]
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **overrides)
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        pictures = pipeline(
            [prompt(triple) for triple in chunk],
            num_inference_steps=steps,
            guidance_scale=cell.guidance,
            generator=generators,
            output_type="np",
        ).images
        yield np.round(pictures * 255).astype(np.uint8)


def vae_psnr(model: Path, folder: Path) -> dict[str, float]:
    """Measure the autoencoder on held-out pictures, in dB: mean, of the mean error, by style."""
    vae = load_pipeline(model).vae
    pictures = load(folder, "held_out")
    errors = []
    with torch.no_grad():
        for start in range(0, len(pictures.pixels), 50):
            batch = to_tensor(pictures.pixels[start : start + 50])
            decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
            errors.append((((decoded - batch) / 2) ** 2).mean(dim=(1, 2, 3)))
    error = torch.cat(errors).double()
    by_style = {
        style: float((-10 * error[pictures.labels[:, 1] == i].log10()).mean())
        for i, style in enumerate(STYLES)
    }
    return {
        "mean_of_pictures": float((-10 * error.log10()).mean()),
        "of_mean_error": float(-10 * error.mean().log10()),
    } | by_style


def seconds_per_picture(model: Path, *, steps: int, calls: int = 5) -> float:
    """Time four guided pictures a call, float32, with torch's own number of threads: the best call."""
    pipeline = load_pipeline(model)
    triples = [Triple(noun, "watercolor", "blue") for noun in list(NOUNS)[:4]]
    cell = Cell(asked="", sampler="lms", schedule="karras", guidance=DEFAULTS["guidance_scale"])
    taken = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        list(render(pipeline, triples, cell, steps=steps))
        taken.append(time.perf_counter() - started)
    return min(taken[1:]) / len(triples)


def contact_sheet(model: Path, path: Path, cell: Cell, *, steps: int) -> None:
    """Write 8 x 8 pictures: eight nouns down, the otter first, seven styles and a second colour across."""
    nouns = ["otter", "cat", "fox", "owl", "panda", "rose", "car", "castle"]
    across = [(style, colour) for style, colour in zip(STYLES, BACKGROUNDS, strict=False)] + [
        ("photo", "white")
    ]
    triples = [Triple(noun, style, colour) for noun in nouns for style, colour in across]
    pictures = np.concatenate(list(render(load_pipeline(model), triples, cell, steps=steps, seed=32)))
    rows = pictures.reshape(8, 8, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(512, 512, 3)
    Image.fromarray(rows).save(path, optimize=True)


def as_rows(results: Iterable[tuple[Cell, Score]]) -> list[dict[str, Any]]:
    """Flatten for JSON."""
    return [asdict(cell) | asdict(result) for cell, result in results]
