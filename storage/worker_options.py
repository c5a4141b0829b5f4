"""What `worker start` and `render` tell a worker process: one record, passed as JSON on its command line.

The command line starts `python -m worker` as a process of its own, so that it never imports torch itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import BadInputError

DEVICES = ("auto", "cpu", "mps", "all")
DTYPES = ("auto", "float32", "float16", "bfloat16")
MODES = ("exact", "throughput", "reference")
LAUNCHES = ("eager", "compiled", "cuda_graphs")
LOG_FORMATS = ("console", "json")
FEWEST_LANES, MAX_LANES = 2, 256
MODEL_PATIENCE = 60.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """Options of one `worker start`.

    Attributes:
        model: `NAME=REPO_OR_PATH[@REVISION]`, resolved (absolute path).
        devices: auto, cpu, mps, all, or GPU numbers joined by commas.
        dtype, mode: see `promptmill worker start --help`.
        lanes: rows of a forward pass; None for the worker's own choice.
        launch: how forward passes are launched, one of LAUNCHES.
        loras: `NAME=PATH`, resolved (absolute paths); they beat the configured ones.
        controlnet: `NAME=REPO_OR_PATH[@REVISION]` of what jobs with a control image are steered by, resolved;
            None for none.
        name: prefix of the worker's name; None derives it from model and host.
        drain_timeout: seconds that running jobs get to finish after the first signal.
        more_models: others that the worker serves too, written as `model` is; they take turns.
        model_patience: seconds that one of them may have to wait for its turn while others have work.
        max_loaded: how many are on the device at once; None for as many as its memory allows.
        metrics_host, metrics_port: where Prometheus may ask the supervisor; nowhere without a port.
        log_format: `console` or `json`; None for what PROMPTMILL_LOG_FORMAT says.
        hooks: whether its supervisor tells URLs of submissions that are done.
        parent_pipe: stop at once when standard input closes (started by `render`), and report as JSON lines
            on standard output.
    """

    model: str
    devices: str = "auto"
    dtype: str = "auto"
    lanes: int | None = None
    mode: str = "exact"
    launch: str = "eager"
    loras: tuple[str, ...] = ()
    controlnet: str | None = None
    name: str | None = None
    drain_timeout: float = 300.0
    more_models: tuple[str, ...] = ()
    model_patience: float = MODEL_PATIENCE
    max_loaded: int | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    log_format: str | None = None
    hooks: bool = True
    parent_pipe: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """All models that the worker serves, in the order in which they were given."""
        return (self.model, *self.more_models)

    def command(self) -> list[str]:
        """Return the command line that starts a supervisor with these options."""
        # -P: a folder `worker` where the user stands must not be taken for ours.
        return [sys.executable, "-P", "-m", "worker", "supervise", json.dumps(dataclasses.asdict(self))]


def check_devices(text: str) -> str:
    """Return `text` if it is auto, cpu, mps, all or numbers like `0,1`; else raise BadInputError."""
    if text not in DEVICES and not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", text):
        raise BadInputError(
            f"There is no device {text!r}; choose {', '.join(DEVICES)}, or GPU numbers like 0,1."
        )
    return text


def check_lanes(text: str) -> int | None:
    """Read `auto` (None) or a number of lanes from 1 to 256; else raise BadInputError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LANES:
        raise BadInputError(f"Lanes {text!r} is neither auto nor a number from 1 to {MAX_LANES}.")
    return int(text)


def check_together(*, mode: str, lanes: int | None, launch: str) -> None:
    """Refuse an unknown mode, or what does not go with it; the BadInputError says what to leave out."""
    if mode not in MODES:
        raise BadInputError(f"There is no mode {mode!r}; choose {', '.join(MODES)}.")
    if mode == "reference":
        if lanes not in (None, FEWEST_LANES):
            raise BadInputError(f"--mode reference runs 2 lanes, not {lanes}; leave --lanes out.")
        if launch != "eager":
            raise BadInputError("--mode reference takes neither --compile nor --cuda-graphs; leave them out.")
        return
    if lanes is not None and mode == "exact" and (lanes < FEWEST_LANES or lanes % 2):
        raise BadInputError(f"--mode exact needs an even number of lanes, 2 or more, not {lanes}.")
    if lanes is not None and lanes < FEWEST_LANES:
        raise BadInputError(f"--lanes {lanes} is too few: a guided picture takes 2 lanes.")


def check_loras_launch(launch: str) -> None:
    """Refuse LoRAs in a worker whose UNet is compiled or captured: what is fixed cannot be switched."""
    if launch != "eager":
        raise BadInputError(
            "LoRAs (--lora, PROMPTMILL_LORAS) go with neither --compile nor --cuda-graphs, since what is "
            "compiled cannot be switched; leave one of them out."
        )


def parse_options(text: str) -> WorkerOptions:
    """Read back what `WorkerOptions.command` wrote."""
    return read_options(json.loads(text))


def read_options(values: Mapping[str, Any]) -> WorkerOptions:
    """Make a record of what JSON has kept of one."""
    lists = {name: tuple(values.get(name, ())) for name in ("more_models", "loras")}
    return WorkerOptions(**{**values, **lists})
