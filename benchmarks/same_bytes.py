"""Promise 2 at full length: many random jobs, rendered again and again in other company, the same each time.

Jobs of any sampler, step count, guidance and seed are rendered three times in one process, each time in
another order of arrival, then one after the other, and once more divided between two processes; for each
number of threads and each dtype that exact mode accepts. Not a measurement of speed: the table says whether
all pictures and latents are equal, how full the lanes were in company, whether every lane was in use, and
how wide the passes were.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from engines import demo_model
from report import arguments, show

from storage.errors import BadInputError
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.stages.picture import encode_png

LANES = 8
HELD = LANES // 2 + 2  # jobs in an engine: those in lanes, if all are guided, and two that wait
CONFIGURATIONS = [(dtype, threads) for dtype in ("float32", "bfloat16") for threads in (1, 2, 3)]


@dataclass(frozen=True, kw_only=True)
class Company:
    """One rendering of some jobs.

    Attributes:
        digests: of PNG and latents, by seed.
        occupancy: share of the lanes that were in use, over all passes, which can be narrower than R.
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
    return [
        JobParameters(
            prompt=f"a watercolor painting of an otter, number {draw.randrange(100)}",
            seed=seed,
            sampler=draw.choice(sorted(SAMPLERS)),
            num_inference_steps=draw.randint(3, 20),
            guidance_scale=draw.choice([1.0, 3.0, 5.0, 7.5]),
            width=64,
            height=64,
        )
        for seed in range(count)
    ]


def render(jobs: list[JobParameters], dtype: str, threads: int, most: int = HELD) -> Company:
    """Render jobs in the order given, in an engine that holds at most so many at once."""
    torch.set_num_threads(threads)
    engine = Engine(demo_model(dtype), lanes=LANES)
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
        occupancy=float(watched.used.sum()) / sum(width * passes for width, passes in watched.widths.items()),
        positions=int((watched.used > 0).sum()),
        widths=set(watched.widths),
    )


def _digest(result: RenderResult) -> str:
    content = encode_png(result.pixels, {"promptmill": str(result.numerics)})
    latents = b"" if result.latents is None else result.latents.numpy().tobytes()
    return hashlib.sha256(content + latents).hexdigest()


def _in_one_process(work: list[tuple[Any, ...]]) -> list[Company]:
    """Do all in a new process, one after the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return [pool.submit(render, *each).result() for each in work]


def row(jobs: list[JobParameters], dtype: str, threads: int) -> dict[str, Any]:
    """Compare five renderings of the same jobs."""
    head = {"dtype": dtype, "threads": threads, "jobs": len(jobs)}
    draw = random.Random(threads)  # noqa: S311 - test data
    orders = [jobs, jobs[::-1], draw.sample(jobs, len(jobs))]
    try:
        companies = _in_one_process([(order, dtype, threads) for order in orders])
    except BadInputError as error:
        if "exact is not possible" not in str(error):
            raise
        return head | {"equal": "not eligible", "occupancy": 0.0, "positions": 0}
    shuffled = draw.sample(jobs, len(jobs))
    (lonely,) = _in_one_process([(shuffled, dtype, threads, 1)])
    both: dict[int, str] = {}
    for half in (shuffled[::2], shuffled[1::2]):
        both |= _in_one_process([(half, dtype, threads)])[0].digests
    all_digests = [company.digests for company in companies] + [lonely.digests, both]
    equal = sum(len({digests[job.seed] for digests in all_digests}) == 1 for job in jobs)
    return head | {
        "equal": f"{equal} of {len(jobs)}",
        "occupancy": min(company.occupancy for company in companies),
        "positions": min(company.positions for company in companies),
        "widths": ", ".join(
            map(str, sorted(set().union(lonely.widths, *(each.widths for each in companies))))
        ),
    }


def main() -> None:
    """Print the table; end with 1 if a picture differed."""
    options = arguments(__doc__ or "").parse_args()
    jobs = random_jobs(10 if options.quick else 200)
    configurations = CONFIGURATIONS[:1] if options.quick else CONFIGURATIONS
    rows = [row(jobs, dtype, threads) for dtype, threads in configurations]
    show(rows, as_json=options.json)
    if any(r["equal"] not in ("not eligible", f"{len(jobs)} of {len(jobs)}") for r in rows):
        sys.exit("some pictures depended on their company")


if __name__ == "__main__":
    main()
