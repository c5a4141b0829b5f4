"""What the promise of equal bytes costs: exact against throughput mode, full and with a single job.

Exact mode runs R lanes, or fewer that agree with R bit for bit. Full, throughput mode runs as many; alone, a
job pays for idle lanes where nothing narrower agrees. Both modes are timed in turns. Both have kept the one
prompt from their warm-up: encoding it would add the same to either, and bring the ratios nearer to 1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from engines import demo_model, device_arguments, second_model
from report import median, seconds, show

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.models.load import LoadedModel

STEPS = 10
MODES = ("exact", "throughput")


def render(engine: Engine, count: int, size: int) -> None:
    """Render `count` equal jobs to their pictures."""
    job = JobParameters(
        prompt="a fox", seed=1, sampler="euler", num_inference_steps=STEPS, width=size, height=size
    )
    tickets = [engine.submit(replace(job, seed=seed)) for seed in range(count)]
    while engine.step():
        pass
    for ticket in tickets:
        ticket.future.result(timeout=0)


def row(
    name: str, model: LoadedModel, *, size: int, lanes: int, rounds: int, chosen: int
) -> dict[str, object]:
    """Time both modes at R lanes; a worker that is told nothing has `chosen`."""
    engines = {mode: Engine(model, lanes=lanes, mode=mode) for mode in MODES}
    taken: dict[tuple[str, int], list[float]] = {}
    full = lanes  # two requests for every pair of lanes, so that the queue matters too
    for number in range(rounds + 1):
        for count in (full, 1):
            for mode in MODES if number % 2 else reversed(MODES):
                time = seconds(partial(render, engines[mode], count, size))
                if number:  # the first round warms up
                    taken.setdefault((mode, count), []).append(time)
    best = {key: median(times) for key, times in taken.items()}

    def paired(one: str, other: str, count: int) -> float:
        """Compare what was timed one after the other: the machine's speed changes within seconds."""
        both = zip(taken[one, count], taken[other, count], strict=True)
        return median([mine / its for mine, its in both])

    return {
        "UNet": name,
        "R": lanes,
        "chosen": "by a worker here" if lanes == chosen else "",
        "full, exact images/s": full / best["exact", full],
        "full, throughput": full / best["throughput", full],
        "full, ratio": paired("throughput", "exact", full),
        "one job, exact s": best["exact", 1],
        "one job, throughput s": best["throughput", 1],
        "one job, ratio": paired("exact", "throughput", 1),
    }


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model(device=options.device)
    rounds = 2 if options.quick else 5
    chosen = Engine(model).lanes
    tried = (2, 8) if options.quick else (2, 4, 8, 16)
    rows = [row("demo, 64x64", model, size=64, lanes=lanes, rounds=rounds, chosen=chosen) for lanes in tried]
    if not options.quick:
        name, large, size = second_model(model)
        chosen = Engine(large).lanes
        rows += [row(name, large, size=size, lanes=lanes, rounds=4, chosen=chosen) for lanes in (2, 4, 8)]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
