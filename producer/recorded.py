"""From a numerics record to the worker that renders so: its flags, its threads, its model's commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from producer.models import resolve_model, serving
from producer.output import remark
from producer.worker_flags import check_worker_flags
from storage.errors import BadInputError
from storage.models import configured_models
from storage.records import WorkerState
from storage.served import served_model
from storage.worker_options import FEWEST_LANES

if TYPE_CHECKING:
    from producer.session import Session
    from storage.models import ModelReference
    from storage.records import Worker
    from storage.settings import Settings
    from storage.worker_options import WorkerOptions

_COMMIT = re.compile(r"[0-9a-f]{40}")
THREADS = "OMP_NUM_THREADS"
# What of a record a worker is started with; the rest is as it is on the machine.
_KIND = (
    "model_revision",
    "config_revision",
    "mode",
    "dtype",
    "vae_dtype",
    "layout",
    "launch",
    "device_type",
    "threads",
    "lanes",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the user says of the worker, which beats what is recorded.

    Attributes:
        flags: of the command line, all of them, as `producer.worker_flags` declares them.
        typed: names of those that the user typed.
        model: what `--model` says.
    """

    flags: Mapping[str, Any]
    typed: frozenset[str] = frozenset()
    model: str | None = None


def kind_of(model: str, numerics: Mapping[str, Any]) -> str:
    """Return a key that is the same for pictures that one worker can render as they were rendered."""
    return json.dumps([model, *(numerics.get(name) for name in _KIND)])


def recorded_flags(numerics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the worker flags that make a worker run as a numerics record says.

    Where the UNet's dtype or layout came out of a measurement, which no flag can ask for, nothing is pinned:
    the database still has the tuning.
    """
    flags: dict[str, Any] = {}
    mode = numerics.get("mode")
    if mode is not None:
        flags["mode"] = mode
    if numerics.get("device_type") == "cpu":
        flags["devices"] = "cpu"
    if mode == "reference":
        return flags
    flags |= {"compile": numerics.get("launch") == "compiled"}
    flags |= {"cuda_graphs": numerics.get("launch") == "cuda_graphs"}
    # float16 is only ever asked for, and Stable Diffusion XL decodes in float32 beside it.
    asked = ("float16", numerics.get("vae_dtype"))
    measured = numerics.get("layout") != "contiguous" or numerics.get("dtype") not in asked
    lanes = numerics.get("lanes")
    if not measured and lanes:
        flags["dtype"] = numerics["dtype"]
        # What a pipeline renders alone takes the lanes that it needs, whatever the worker has.
        if numerics.get("way") != "alone" and lanes >= FEWEST_LANES:
            flags["lanes"] = str(lanes)
    return flags


def recorded_environment(numerics: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that gives a worker as many threads as recorded; the user's own beats it."""
    threads = numerics.get("threads")
    if not isinstance(threads, int) or numerics.get("device_type") != "cpu" or os.environ.get(THREADS):
        return {}
    return {THREADS: str(threads)}


def worker_options(reference: ModelReference, numerics: Mapping[str, Any], wishes: Wishes) -> WorkerOptions:
    """Return the options of a worker that renders as recorded, but for what the user typed.

    Raises:
        BadInputError: when that cannot be used together, or here.
    """
    recorded = recorded_flags(numerics)
    if "mode" in wishes.typed and wishes.flags["mode"] != recorded.get("mode"):
        # Another mode takes other lanes; what was recorded for the old one would only stand in its way.
        recorded = {name: recorded[name] for name in ("devices",) if name in recorded}
    if wishes.typed & {"compile", "cuda_graphs"}:
        recorded = {name: flag for name, flag in recorded.items() if name not in ("compile", "cuda_graphs")}
    typed = {name: value for name, value in wishes.flags.items() if name in wishes.typed}
    return check_worker_flags(reference, **{**wishes.flags, **recorded, **typed}, parent_pipe=True)


def reference_of(
    settings: Settings, model: str, numerics: Mapping[str, Any], wishes: Wishes
) -> ModelReference | None:
    """Return where a model's files are; None where nobody has said it.

    A repo whose revision nobody pinned is taken at the recorded commit.

    Raises:
        BadInputError: when `--model` names another model.
        ModelLoadError: when it names a folder that is not there.
    """
    if wishes.model is not None:
        asked = resolve_model(settings, wishes.model)
        if asked.name != model:
            raise BadInputError(
                f"The picture is of model {model}, not {asked.name}; write --model {model}=REPO_OR_PATH."
            )
        return asked
    reference = configured_models(settings.models).get(model)
    if reference is None or reference.revision or os.path.isabs(reference.source):  # noqa: PTH117  (a repo is no path)
        return reference
    revision = str(numerics.get("model_revision") or "")
    return replace(reference, revision=revision) if _COMMIT.fullmatch(revision) else reference


def unlike(worker: Worker, model: str, numerics: Mapping[str, Any]) -> list[str]:
    """Say in what a running worker differs with one of its models from what is recorded: `lanes 4, not 8`.

    What a model is run with is not known before the worker has loaded it once.
    """
    running: dict[str, Any] = {"mode": worker.mode}
    served = served_model(worker, model)
    if served is not None and served.revision is not None:
        running |= {"model_revision": served.revision, "dtype": served.dtype, "lanes": served.lanes}
    return [
        f"{name.replace('_', ' ')} {running[name]}, not {numerics[name]}"
        for name in running
        if running[name] is not None and numerics.get(name) not in (None, running[name])
    ]


def check_all_named(models: Iterable[str], wishes: Wishes) -> None:
    """Refuse `--model` where the pictures are of several models: it can name only one."""
    names = sorted(set(models))
    if wishes.model is not None and len(names) > 1:
        raise BadInputError(
            f"The pictures are of models {', '.join(names)}; reproduce them one after another, or configure "
            f"them in PROMPTMILL_MODELS and leave --model out."
        )


def warn_of_unlike(session: Session, model: str, numerics: Mapping[str, Any]) -> None:
    """Say so where a worker that is ready will render otherwise than recorded."""
    others = serving(session.jobs.workers(alive_only=True), model, lease=session.settings.lease)
    ready = next((worker for worker in others if worker.state is WorkerState.READY), None)
    if ready and (differs := unlike(ready, model, numerics)):
        remark(
            f"Worker {ready.name} is not as recorded: {'; '.join(differs)}. Without it "
            f"(`promptmill worker drain {ready.name}`) one is started that is."
        )
