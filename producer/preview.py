"""What a submit would do: `--dry-run` counts the jobs, shows some, and estimates how long they take."""

from __future__ import annotations

from collections.abc import Iterator

import click

from producer.jobs import build_jobs
from producer.models import serving
from producer.output import cell, count_of, duration, print_table, remark, shorten
from producer.session import Session
from producer.submitting import Order
from storage.loras import told_options
from storage.parameters import JobParameters, estimate_cost

SHOWN = 12  # jobs, spread over the list
PRICED = ("num_inference_steps", "guidance_scale", "width", "height")
TITLES = ["index", "prompt", "seed", "sampler", "schedule", "steps", "guidance", "size", "more"]


def preview(session: Session, order: Order) -> None:
    """Print a sample of the jobs, and say how many they are and how long they may take; write nothing."""
    total, cost = order.total, 0.0
    wanted = {round(i * (total - 1) / (SHOWN - 1)) for i in range(SHOWN)}
    rows = []
    for index, job in enumerate(_jobs(order)):
        cost += estimate_cost({name: getattr(job, name) for name in PRICED})
        if index in wanted:
            rows.append(_row(index, job))
    print_table(TITLES, rows)
    click.echo(f"{count_of(total, 'job')} of {count_of(order.prompts.count, 'prompt')} for {order.model}")
    workers = serving(session.jobs.workers(), order.model, lease=session.settings.lease)
    remark(_how_long(cost, session.jobs.speed(order.model), len(workers)))
    if order.reuse:
        remark("What --reuse takes over costs no time; how much that is, only a worker can tell.")
    if order.draws_seeds:
        remark("Seeds that are not given are drawn anew when the jobs are submitted.")
    remark("Nothing was submitted: --dry-run.")


def _jobs(order: Order) -> Iterator[JobParameters]:
    return build_jobs(order.prompts, order.options, order.defaults)


def _row(index: int, job: JobParameters) -> list[str]:
    size = f"{job.width}x{job.height}" if job.width and job.height else ""
    more = told_options(job.options)
    more |= {"negative": shorten(job.negative_prompt)} if job.negative_prompt else {}
    cells = (
        index, shorten(job.prompt), job.seed, job.sampler, job.schedule, job.num_inference_steps,
        job.guidance_scale, size, more,
    )  # fmt: skip
    return [cell(value) for value in cells]


def _how_long(cost: float, speed: float | None, live_workers: int) -> str:
    if speed is None:
        return "How long it takes is not known: no worker has rendered with this model yet."
    workers = f"{count_of(live_workers, 'worker')} now" if live_workers else "no worker is running now"
    return f"About {duration(cost / speed)} at the speed of the model's latest pictures; {workers}."
