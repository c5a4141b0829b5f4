"""Promise 2 at full length: many random jobs, rendered again and again in other company, the same each time.

Jobs of any sampler, step count, guidance, negative prompt and seed, many with eta, rescaled guidance or a
guidance interval, are rendered three times in one process, each time in another order of arrival, then one
after the other, and once more divided between two processes at once; for each number of threads and each
precision that exact mode accepts. Not a measurement of speed: the table says whether all pictures and latents
are equal, how full the lanes were in company, how many of them were in use, and how wide the passes were.
Ends with 1 where a picture differs, or the company was no test: lanes 70 % full or less, or one never in use.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from engines import demo_model
from report import arguments, show

from storage.errors import BadInputError
from storage.parameters import JobParameters, telling
from storage.samplers import SAMPLERS
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.device import MIXED
from worker.models.variant import Variant, run_as
from worker.stages.picture import encode_png

LANES = 8
HELD = LANES + 2  # jobs in an engine: those in lanes, if none is guided, and two that wait
OCCUPANCY = 0.7  # in less company than that equal bytes say little
NOT_ELIGIBLE = "not eligible"
CONFIGURATIONS = [(dtype, threads) for dtype in ("float32", MIXED, "bfloat16") for threads in (1, 2, 3)]


@dataclass(frozen=True, kw_only=True)
class Company:
    """One rendering of some jobs.

    Attributes:
        digests: of PNG and latents, by seed.
        occupancy: share of R lanes that were in use, over all passes, narrower ones too.
        positions: how many of the lanes were in use at least once.
        widths: of the passes.
    """

    digests: dict[int, str]
    occupancy: float
    positions: int
    widths: set[int]


class Watched:
    """A UNet that counts which of its lanes are in use: idle ones are zeros."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.used = unet, torch.zeros(LANES)
        self.widths: Counter[int] = Counter()  # passes of each

    def __getattr__(self, name: str) -> Any:
        """Answer for the UNet."""
        return getattr(self.unet, name)

    def __call__(self, sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Count, then run."""
        self.used[: len(sample)] += sample.flatten(1).any(dim=1).float()
        self.widths[len(sample)] += 1
        return self.unet(sample, *rest, **named)


def random_jobs(count: int) -> list[JobParameters]:
    """Make jobs of one size that differ in everything else."""
    draw = random.Random(1)  # noqa: S311 - test data
    samplers = [draw.choice(sorted(SAMPLERS)) for _ in range(count)]
    return [
        JobParameters(
            prompt=f"a watercolor painting of an otter, number {draw.randrange(100)}",
            negative_prompt=draw.choice(["", "blurry", "red background"]),
            seed=seed,
            sampler=sampler,
            schedule=draw.choice(SAMPLERS[sampler].schedules),
            num_inference_steps=draw.randint(3, 20),
            guidance_scale=draw.choice([1.0, 3.0, 5.0, 7.5]),
            width=64,
            height=64,
            options=_random_options(sampler, draw),
        )
        for seed, sampler in enumerate(samplers)
    ]


def _random_options(sampler: str, draw: random.Random) -> dict[str, Any]:
    return telling(
        {
            "eta": draw.choice([0.0, 0.5, 1.0]) if SAMPLERS[sampler].takes_eta else None,
            "guidance_rescale": draw.choice([0.0, 0.7]),
            "guidance_interval": draw.choice([None, [0.3, 0.9], [0.0, 0.5]]),
        }
    )


def render(jobs: list[JobParameters], dtype: str, threads: int, most: int = HELD) -> Company:
    """Render jobs in the order given, in an engine that holds at most so many at once."""
    torch.set_num_threads(threads)
    model = (
        run_as(demo_model(), Variant(dtype=MIXED, layout="contiguous"))
        if dtype == MIXED
        else demo_model(dtype)
    )
    engine = Engine(model, lanes=LANES)
    watched = Watched(engine.model.unet)
    engine.model = replace(engine.model, unet=watched)
    waiting, held, digests = list(reversed(jobs)), {}, {}
    while waiting or held:
        while waiting and len(held) < most:
            job = waiting.pop()
            held[job.seed] = engine.submit(job, keep_latents=True)
        engine.step()
        for seed in [seed for seed, ticket in held.items() if ticket.future.done()]:
            digests[seed] = _digest(held.pop(seed).future.result(timeout=0))
    return Company(
        digests=digests,
        occupancy=float(watched.used.sum()) / (LANES * watched.widths.total()),
        positions=int((watched.used > 0).sum()),
        widths=set(watched.widths),
    )


def _digest(result: RenderResult) -> str:
    content = encode_png(result.pixels, {"promptmill": str(result.numerics)})
    latents = b"" if result.latents is None else result.latents.numpy().tobytes()
    return hashlib.sha256(content + latents).hexdigest()


def in_processes(*shares: list[tuple[Any, ...]]) -> list[list[Company]]:
    """Render each share of the work in a new process, all at once; within a share one after the other."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in shares]
        begun = [
            [pool.submit(render, *each) for each in share] for pool, share in zip(pools, shares, strict=True)
        ]
        return [[future.result() for future in futures] for futures in begun]


def row(jobs: list[JobParameters], dtype: str, threads: int) -> dict[str, Any]:
    """Compare five renderings of the same jobs."""
    head = {"dtype": dtype, "threads": threads, "jobs": len(jobs)}
    draw = random.Random(threads)  # noqa: S311 - test data
    orders = [jobs, jobs[::-1], draw.sample(jobs, len(jobs))]
    try:
        (companies,) = in_processes([(order, dtype, threads) for order in orders])
    except BadInputError as error:
        if "exact is not possible" not in str(error):
            raise
        return head | {"equal": NOT_ELIGIBLE, "occupancy": 0.0, "positions": 0, "widths": ""}
    shuffled = draw.sample(jobs, len(jobs))
    ((lonely,),) = in_processes([(shuffled, dtype, threads, 1)])
    halves = (shuffled[::2], shuffled[1::2])
    (one,), (other,) = in_processes(*([(half, dtype, threads)] for half in halves))
    all_digests = [company.digests for company in (*companies, lonely)] + [one.digests | other.digests]
    equal = sum(len({digests[job.seed] for digests in all_digests}) == 1 for job in jobs)
    return head | {
        "equal": f"{equal} of {len(jobs)}",
        "occupancy": min(company.occupancy for company in companies),
        "positions": min(company.positions for company in companies),
        "widths": ", ".join(
            map(str, sorted(set().union(*(each.widths for each in (*companies, lonely, one, other)))))
        ),
    }


def shortfalls(rows: list[dict[str, Any]]) -> list[str]:
    """Say in a sentence each what of the promise, or of its test, a row does not show."""
    said = []
    for each in rows:
        if each["equal"] == NOT_ELIGIBLE:
            continue
        where = f"{each['dtype']}, {each['threads']} threads"
        if each["equal"] != f"{each['jobs']} of {each['jobs']}":
            said.append(f"{where}: some pictures depended on their company, only {each['equal']} did not.")
        if each["occupancy"] <= OCCUPANCY:
            said.append(f"{where}: lanes were {each['occupancy']:.0%} full, not more than {OCCUPANCY:.0%}.")
        if each["positions"] < LANES:
            said.append(f"{where}: only {each['positions']} of {LANES} lanes were in use.")
    return said


def main() -> None:
    """Print the table; end with 1 where it falls short of the promise."""
    options = arguments(__doc__ or "").parse_args()
    jobs = random_jobs(10 if options.quick else 200)
    configurations = CONFIGURATIONS[:1] if options.quick else CONFIGURATIONS
    rows = [row(jobs, dtype, threads) for dtype, threads in configurations]
    show(rows, as_json=options.json)
    if said := shortfalls(rows):
        sys.exit("\n".join(said))


if __name__ == "__main__":
    main()
