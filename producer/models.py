"""Which models can be asked for: the built-in one, configured ones, and those that workers load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import BadInputError, ModelLoadError
from storage.inputs import TAKES
from storage.lora_files import lora_files
from storage.loras import published_loras
from storage.model_defaults import read_defaults, read_native_size
from storage.models import BUILTIN_MODEL, ModelReference, configured_models, is_single_file, parse_model
from storage.pipeline_limits import LIMITS
from storage.records import Worker, WorkerState
from storage.scheduler_limits import Limits, read_limits
from storage.served import ServedModel, served_by, served_model

if TYPE_CHECKING:
    from storage.settings import Settings  # slow to import

ALIVE = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING)
SERVING = (WorkerState.STARTING, WorkerState.READY)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A model by name, with what is known of it.

    Attributes:
        reference: where its files come from; None when only workers know it.
        revision: the commit or folder hash that the newest worker loaded.
        live_workers: how many serve it now.
        takes: which of `storage.inputs.INPUTS` the newest worker can begin with; None where none has said it.
        published: the newest worker's defaults: recommended settings, width and height; empty before any.
        limits: what it can do, as the newest live worker says: jobs are refused for it, and what another one
            said may be of other files; None where none does.
        loras: those that its workers have, or that are configured, each with what tells its file from others.
    """

    name: str
    reference: ModelReference | None
    revision: str | None
    live_workers: int
    published: dict[str, Any]
    loras: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] | None = None
    limits: Limits | None = None

    @property
    def origin(self) -> str:
        """Where its files come from, and for a folder also their sizes and times: another one differs."""
        if self.reference is None:
            return ""
        source, folder = Path(self.reference.source), self.reference.folder
        if not source.is_absolute():
            return str(self.reference)
        found = [] if folder is None else sorted(folder.rglob("*"))
        files = [(folder, path) for path in found if path.suffix in (".safetensors", ".json")]
        files += [(source, source)] if source.is_file() else []
        facts = [
            (str(path.relative_to(root or path)), path.stat().st_size, path.stat().st_mtime_ns)
            for root, path in files
        ]
        return f"{self.reference} {facts}"

    def defaults(self) -> dict[str, Any]:
        """Return what a job gets that names no settings; empty where nobody on this machine can know it yet.

        A folder is read as it is now, for a single file that of its configs; of any other model we know what
        its newest worker published.

        Raises:
            ModelLoadError: when the folder's `promptmill.json` cannot be used.
        """
        folder = None if self.reference is None else self.reference.folder
        if folder is None or not os.path.isfile(folder / "model_index.json"):  # noqa: PTH113  (never raises)
            return self.published
        return self.published | read_defaults(folder, size=read_native_size(folder))


def _published(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Tell apart what a worker's row recommends, and what it says its model can do."""
    takes = defaults.get(TAKES)
    return {
        "published": {name: value for name, value in defaults.items() if name not in (TAKES, LIMITS)},
        "takes": None if takes is None else tuple(takes),
    }


def is_alive(worker: Worker, *, lease: float) -> bool:
    """Whether a worker's heart beats, as far as one look can tell: for people, never for leases."""
    return worker.state in ALIVE and (datetime.now(UTC) - worker.beat_at).total_seconds() < lease


def serving(workers: Iterable[Worker], model: str, *, lease: float) -> list[Worker]:
    """Return the live workers that take new jobs of a model, or soon will."""
    return [
        worker
        for worker in workers
        if served_model(worker, model) and worker.state in SERVING and is_alive(worker, lease=lease)
    ]


def models_of(worker: Worker) -> str:
    """Say which models a worker serves, which of them it renders with now, and which are loaded besides."""
    if not worker.models:
        return worker.model
    return ", ".join(f"{model.name}{_how(worker, model)}" for model in worker.models)


def _how(worker: Worker, model: ServedModel) -> str:
    if model.problem:
        return " (cannot be loaded)"
    if model.name == worker.model:
        return " (active)"
    return " (loaded)" if model.loaded else ""


def known_models(
    settings: Settings, workers: Iterable[Worker], *named: ModelReference, loras: Iterable[str] = ()
) -> dict[str, KnownModel]:
    """Return all models by name: configured ones first, then those that only workers know.

    Args:
        settings: name models in `models`.
        workers: all incarnations, newest first.
        named: models of the command line; they beat the configured ones.
        loras: `NAME=PATH` of the command line, beside those that are configured.
    """
    ready = {name: found.origin for name, found in lora_files(settings.loras, loras).items()}
    configured = configured_models(settings.models)
    # Another source under a known name: what workers published under that name says nothing about it.
    renamed = {reference.name for reference in named if configured.get(reference.name) != reference}
    configured |= {reference.name: reference for reference in named}
    workers = list(workers)
    by_model: dict[str, list[ServedModel]] = {name: [] for name in configured}
    for model in (model for worker in workers for model in served_by(worker)):
        by_model.setdefault(model.name, []).append(model)
    told = {name: [] if name in renamed else loaded for name, loaded in by_model.items()}
    alive = [
        model for worker in workers if is_alive(worker, lease=settings.lease) for model in served_by(worker)
    ]
    return {
        name: KnownModel(
            name=name,
            reference=configured.get(name),
            revision=next((model.revision for model in told[name] if model.revision), None),
            live_workers=len(serving(workers, name, lease=settings.lease)),
            limits=next(
                (
                    read_limits(model.defaults.get(LIMITS))
                    for model in alive
                    if model.name == name and name not in renamed and model.defaults
                ),
                None,
            ),
            **_published(next((model.defaults for model in told[name] if model.defaults), {})),
            loras={
                lora: revision
                for model in reversed(told[name])
                for lora, revision in published_loras(model.defaults).items()
            }
            | ready,
        )
        for name in by_model
    }


def choose_model(known: dict[str, KnownModel], asked: str | None) -> KnownModel:
    """Return the model that `submit --model` names, or the only one there is.

    Raises:
        BadInputError: for an unknown name, or when several models leave the choice open.
    """
    names = ", ".join(known)
    if asked is None:
        if len(known) > 1:
            raise BadInputError(f"Several models are known; choose one with --model: {names}.")
        return next(iter(known.values()))
    if asked not in known:
        name = asked.partition("=")[0]
        if name in known:
            raise BadInputError(f"Submitted jobs name their model only; write --model {name}.")
        raise BadInputError(
            f"There is no model {asked!r} (known: {names}); configure it in PROMPTMILL_MODELS, or start "
            f"a worker with --model NAME=REPO_OR_PATH first."
        )
    return known[asked]


def named_model(listed: str | None, asked: str | None) -> str | None:
    """Return the model that the prompt list or `--model` names; None if neither does.

    Args:
        listed: the name in the list's model column.
        asked: what `--model` says, which may say too where the model comes from.

    Raises:
        BadInputError: when they differ.
    """
    if listed is not None and asked is not None and listed not in (asked, asked.partition("=")[0]):
        raise BadInputError(
            f"The prompts are for model {listed!r} and --model names {asked!r}; leave --model out, or change "
            f"the prompts' model column."
        )
    return asked if asked is not None else listed


def check_listed(settings: Settings, listed: str) -> None:
    """Refuse a prompt list that would say where a model is fetched from: it may only name one.

    Raises:
        BadInputError: when no model of that name is configured.
    """
    known = {BUILTIN_MODEL, *configured_models(settings.models)}
    if listed not in known:
        raise BadInputError(
            f"The prompts are for model {listed!r}, which is not configured (known: "
            f"{', '.join(sorted(known))}); write --model {listed}=REPO_OR_PATH."
        )


def default_model(settings: Settings) -> str:
    """Return the name of the model that `render` and `worker start` take without --model.

    That is the only configured one, and the one that comes with the project where none is configured.

    Raises:
        BadInputError: when several are configured.
    """
    configured = dict.fromkeys(parse_model(text).name for text in settings.models)
    if len(configured) > 1:
        raise BadInputError(
            f"Several models are configured; choose one with --model: {', '.join(configured)}."
        )
    return next(iter(configured), BUILTIN_MODEL)


def resolve_model(settings: Settings, text: str) -> ModelReference:
    """Turn what `--model` of `render` or `worker start` says into a reference.

    Raises:
        BadInputError: when it names neither a known model nor a repo or folder.
        ModelLoadError: when it names a folder that does not exist.
    """
    configured = configured_models(settings.models)
    if text in configured:
        reference = configured[text]
    elif "=" in text or "/" in text or is_single_file(text) or Path(text).exists():
        reference = parse_model(text)
    else:
        raise BadInputError(
            f"There is no model {text!r} (known: {', '.join(configured)}); "
            f"write NAME=REPO_OR_PATH[@REVISION]."
        )
    for path in map(Path, filter(None, (reference.source, reference.config))):
        if path.is_absolute() and not path.exists():
            raise ModelLoadError(f"Model {reference.name}: there is nothing at {path}; check the path.")
    return reference
