"""`promptmill worker start`, `worker list`, `worker drain` and `worker retune`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from producer.background_worker import check_worker_extra
from producer.cli import LazyGroup
from producer.described import worker_fields
from producer.models import default_model, is_alive, resolve_model
from producer.output import count_of, listing, remark
from producer.session import Session, pass_session
from producer.worker_flags import (
    check_drain_timeout,
    check_several_models,
    check_worker_flags,
    observing_flags,
    several_models_flags,
    worker_flags,
)
from storage.errors import BadInputError
from storage.models import BUILTIN_MODEL, check_model_name

_COMMANDS = {
    "start": ("producer.commands.worker:start", "Start a worker in the foreground."),
    "list": ("producer.commands.worker:list_workers", "List the workers."),
    "drain": ("producer.commands.worker:drain", "Let a worker finish, and end."),
    "retune": ("producer.commands.worker:retune", "Forget what workers have measured."),
}


RATE_WINDOW = 30.0  # seconds over which a worker's images/s are counted

drain_timeout = click.option(
    "--drain-timeout",
    type=float,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="What running jobs get to finish when the worker is asked to end.",
)


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def worker() -> None:
    """Start, list and drain workers: the processes that hold a model and render."""


@click.command(
    epilog="""\b
Examples:
  promptmill worker start
  promptmill worker start --model sd15=stable-diffusion-v1-5/stable-diffusion-v1-5
  promptmill worker start --model mine=./my-model --devices 0,1 --dtype float16
  promptmill worker start --model other=./other.safetensors@./sdxl-configs
  promptmill worker start --model mine=./my-model --lora style=./style.safetensors --lora a=./a.safetensors
  promptmill worker start --model sd15 --model xl --model-patience 120 --max-loaded 2
  promptmill worker start --metrics-port 9464 --log-format json
"""
)
@click.option(
    "--model",
    multiple=True,
    metavar="NAME=REPO_OR_PATH[@REVISION]",
    help="A known name, a repo, a folder, or FILE.safetensors[@CONFIGS]. Several take turns in one process. "
    f"Default: the only configured one, else {BUILTIN_MODEL}.",
)
@several_models_flags
@worker_flags
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="NAME=PATH",
    help="The same as --lora-file.",
)
@click.option("--name", metavar="TEXT", help="Beginning of the worker's name. Default: model and host.")
@drain_timeout
@observing_flags
@pass_session
def start(
    session: Session,
    /,
    *,
    model: tuple[str, ...],
    name: str | None,
    loras: tuple[str, ...],
    model_patience: float | None,
    max_loaded: int | None,
    metrics_host: str,
    metrics_port: int | None,
    log_format: str | None,
    hooks: bool,
    **flags: Any,
) -> None:
    """Start a worker in the foreground, with one process for each device.

    The first Ctrl-C (or SIGTERM) takes no new jobs and finishes the running ones; the second gives them back
    and ends at once. With nothing configured, the first worker starts a private Redis and the last one
    stops it.

    With --model more than once, a process renders with one of the models at a time, and keeps as many loaded
    as memory allows. A turn lasts until its model has no more jobs, or until another one has waited for
    --model-patience (of three models, half of it). Pictures are the same as from a worker of one model.
    """
    asked = model or (default_model(session.settings),)
    references = [resolve_model(session.settings, text) for text in asked]
    if name is not None:
        _check_name(name)
    flags["lora_files"] += loras
    options = check_several_models(
        check_worker_flags(references[0], name=name, **flags),
        references,
        model_patience=model_patience,
        max_loaded=max_loaded,
    )
    options = replace(
        options,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        log_format=log_format,
        hooks=hooks,
    )
    check_worker_extra()
    session.close()
    sys.stdout.flush()
    command = options.command()
    # From here on signals and the exit code are the supervisor's own.
    os.execv(command[0], command)  # noqa: S606  (our own interpreter)


def _check_name(name: str) -> None:
    try:
        check_model_name(name)
    except BadInputError as error:
        raise BadInputError(
            f"--name {name!r} cannot name a worker; use lower case letters, digits, '.', '_' and '-', "
            f"at most 63."
        ) from error


@click.command(
    name="list",
    epilog="""\b
Examples:
  promptmill worker list
  promptmill worker list --all --json
""",
)
@click.option("--all", "everyone", is_flag=True, help="Also those that have stopped or died.")
@listing(
    "workers",
    {
        "name": "NAME",
        "serves": "MODEL",
        "device": "DEVICE",
        "dtype": "DTYPE",
        "mode": "MODE",
        "way": "WAY",
        "lanes": "LANES",
        "lanes_used": "IN USE",
        "loras": "LORAS",
        "images_per_second": "IMAGES/S",
        "state": "STATE",
        "heartbeat": "HEARTBEAT",
        "version": "VERSION",
    },
    empty="No worker is running; start one with `promptmill worker start`.",
)
@pass_session
def list_workers(session: Session, *, everyone: bool) -> Iterator[dict[str, Any]]:
    """List the workers, newest first."""
    rates = session.jobs.rates(over=RATE_WINDOW)
    for found in session.jobs.workers(alive_only=not everyone):
        alive = is_alive(found, lease=session.settings.lease)
        if alive or everyone:
            yield worker_fields(found, alive=alive, rate=rates.get(found.incarnation, 0.0))


@click.command(
    epilog="""\b
Examples:
  promptmill worker drain sd15@gpu7
  promptmill worker drain sd15@gpu7-0 --drain-timeout 60
"""
)
@click.argument("name")
@drain_timeout
@pass_session
def drain(session: Session, *, name: str, drain_timeout: float) -> None:
    """Let a worker finish what it renders and end, on whatever host it runs.

    NAME is as `promptmill worker list` shows it; the name of a worker of several devices stands for all of
    them. It takes no job from now on, gives back what has not begun, and is not started again. What is not
    finished in time is given back, too, and rendered elsewhere.
    """
    check_drain_timeout(drain_timeout)
    for found in session.jobs.drain_workers(name, timeout=drain_timeout):
        remark(f"Worker {found.name} drains: {count_of(len(found.progress), 'job')} to finish or give back.")


@click.command(
    epilog="""\b
Examples:
  promptmill worker retune
"""
)
@pass_session
def retune(session: Session) -> None:
    """Forget how many lanes, which dtype and which layout workers have chosen by measurement.

    The next worker of each kind measures anew when it starts, on a machine that is hopefully idle. Running
    workers go on as they are. With another choice a picture's bytes can differ: lanes show in the last bits,
    a dtype in more.
    """
    forgotten = session.jobs.forget_tunings()
    remark(f"Forgot {forgotten} tuning{'' if forgotten == 1 else 's'}; workers measure anew when they start.")
