"""The options of a worker, and what they become: `worker start` takes them, and `render` for its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from producer.options import stacked
from storage.devices import list_devices, nvidia_gpus
from storage.errors import BadInputError
from storage.lora_files import check_lora_file
from storage.lora_files import lora_files as read_lora_files
from storage.models import parse_model
from storage.worker_options import (
    DEVICES,
    DTYPES,
    LOG_FORMATS,
    MODEL_PATIENCE,
    MODES,
    WorkerOptions,
    check_devices,
    check_lanes,
    check_loras_launch,
    check_together,
)

if TYPE_CHECKING:
    from storage.models import ModelReference

MAX_DRAIN_TIMEOUT = 7 * 24 * 3600.0
MAX_PATIENCE = 24 * 3600.0

worker_flags = stacked(
    click.option(
        "--devices",
        default="auto",
        show_default=True,
        metavar="|".join((*DEVICES, "0,1")),
        help="What to render on; one process for each GPU.",
    ),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Precision."),
    click.option(
        "--lanes",
        default="auto",
        show_default=True,
        metavar="auto|N",
        help="R, the lanes of a forward pass. auto: measured once for each kind of worker, then kept.",
    ),
    click.option(
        "--compile",
        is_flag=True,
        help="Let torch compile the UNet: minutes for each new size, then faster steps. Needs a compiler.",
    ),
    click.option(
        "--cuda-graphs",
        is_flag=True,
        help="Launch a whole step at once, on NVIDIA GPUs; seen on one H100.",
    ),
    click.option(
        "--lora-file",
        "lora_files",
        multiple=True,
        metavar="NAME=PATH",
        help="A LoRA that jobs may name, a safetensors file; repeatable, beside those of PROMPTMILL_LORAS.",
    ),
    click.option(
        "--mode",
        type=click.Choice(MODES),
        default="exact",
        show_default=True,
        help="exact: same bytes in any company; throughput: faster; reference: one by one.",
    ),
    click.option(
        "--controlnet",
        metavar="NAME=REPO_OR_PATH[@REVISION]",
        help="What jobs with a --control-image are steered by.",
    ),
)


several_models_flags = stacked(
    click.option(
        "--model-patience",
        type=float,
        metavar="SECONDS",
        help="How long one of several models may have to wait for its turn while others have work. "
        f"Default: {MODEL_PATIENCE:g}.",
    ),
    click.option(
        "--max-loaded",
        type=click.IntRange(1),
        metavar="N",
        help="How many of several models are loaded at once. Default: as many as memory allows.",
    ),
)


observing_flags = stacked(
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        metavar="N",
        help="Serve metrics for Prometheus there, under /metrics; 0 takes a free port. Default: none.",
    ),
    click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Where they are served; there is no password.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(LOG_FORMATS),
        help="Of the log on standard error. Default: PROMPTMILL_LOG_FORMAT, else console.",
    ),
    click.option(
        "--hooks/--no-hooks",
        default=True,
        help="Tell the URLs of `submit --on-done` from this host. Default: yes.",
    ),
)


def check_several_models(
    options: WorkerOptions,
    references: Sequence[ModelReference],
    *,
    model_patience: float | None,
    max_loaded: int | None,
) -> WorkerOptions:
    """Let a worker serve all these models; BadInputError about what cannot be."""
    names = [reference.name for reference in references]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInputError(
            f"Model {twice} is given twice; give each --model a name of its own, NAME=REPO_OR_PATH."
        )
    if len(names) == 1:
        idle = [
            flag
            for flag, value in (("--model-patience", model_patience), ("--max-loaded", max_loaded))
            if value is not None
        ]
        if idle:
            raise BadInputError(
                f"{idle[0]} is for a worker of several models; repeat --model, or leave it out."
            )
        return options
    patience = MODEL_PATIENCE if model_patience is None else model_patience
    if not 0 <= patience <= MAX_PATIENCE:
        raise BadInputError(f"--model-patience {patience} is out of range; choose seconds from 0 to a day.")
    return replace(
        options,
        more_models=tuple(str(reference) for reference in references[1:]),
        model_patience=patience,
        max_loaded=max_loaded,
    )


def check_drain_timeout(seconds: float) -> None:
    """Refuse what is no time to wait, NaN included."""
    if not 0 <= seconds <= MAX_DRAIN_TIMEOUT:
        raise BadInputError(f"--drain-timeout {seconds} is out of range; choose seconds from 0 to a week.")


def check_worker_flags(
    model: ModelReference,
    *,
    devices: str,
    dtype: str,
    lanes: str,
    mode: str,
    compile: bool = False,  # noqa: A002 - the flag's own name
    cuda_graphs: bool = False,
    lora_files: Sequence[str] = (),
    controlnet: str | None = None,
    name: str | None = None,
    drain_timeout: float | None = None,
    parent_pipe: bool = False,
) -> WorkerOptions:
    """Make a worker's options of the flags; BadInputError about the first that cannot be used."""
    if drain_timeout is not None:
        check_drain_timeout(drain_timeout)
    if mode == "reference" and dtype not in ("auto", "float32"):
        raise BadInputError(f"--mode reference is float32 only, not {dtype}; leave --dtype out.")
    if compile and cuda_graphs:
        raise BadInputError("--compile and --cuda-graphs do not go together; leave one of them out.")
    launch = "compiled" if compile else "cuda_graphs" if cuda_graphs else "eager"
    pinned = check_lanes(lanes)
    loras = read_lora_files((), lora_files).values()
    if loras:
        check_loras_launch(launch)
    for lora in loras:  # one that is not here is better found before anything is written
        check_lora_file(lora)
    check_together(mode=mode, lanes=pinned, launch=launch)
    list_devices(check_devices(devices))  # a GPU that is not here is better found before anything is written
    if cuda_graphs and (devices in ("cpu", "mps") or (devices == "auto" and not nvidia_gpus())):
        raise BadInputError(
            f"--cuda-graphs needs an NVIDIA GPU, and --devices {devices} finds none; leave it out."
        )
    rest: dict[str, Any] = {} if drain_timeout is None else {"drain_timeout": drain_timeout}
    return WorkerOptions(
        model=str(model),
        devices=devices,
        dtype=dtype,
        lanes=pinned,
        mode=mode,
        launch=launch,
        loras=tuple(map(str, loras)),
        controlnet=None if controlnet is None else str(parse_model(controlnet)),
        name=name,
        parent_pipe=parent_pipe,
        **rest,
    )
