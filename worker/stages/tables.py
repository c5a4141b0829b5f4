"""Where tables of samplers are kept: each is read out of diffusers once, and then found.

Reading one takes 0.05 to 3 s at 20 steps, and longer with more: it is done in the submitter's thread, once,
whoever asks at the same time, and what was read is left in a folder for the processes that come after.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import threading
from pathlib import Path
from typing import Any

import structlog
import torch

from storage.samplers import SAMPLERS
from worker.models.device import device_name
from worker.stages import history, table
from worker.stages.sampler import SamplerSettings
from worker.stages.table import SamplerTable, probe

log = structlog.get_logger()

_LIBRARIES = ("torch", "diffusers", "numpy", "scipy")


class Tables:
    """The tables of samplers that one engine uses; any thread may ask."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read nothing yet.

        Args:
            folder: where tables are kept for other processes on this host; None keeps them in this object.
        """
        self._folder = folder
        self._reader = functools.lru_cache(maxsize=256)(lambda key: _Reader(self._path(key)))

    def __getitem__(self, settings: SamplerSettings) -> SamplerTable | None:
        """Return the table of a sampler with these settings; None where it has none.

        Raises:
            BadInputError: when the combination cannot be rendered.
        """
        return self._reader(_key(settings)).read(settings)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{key}.json"


class _Reader:
    """Finds or reads one table when it is first asked for."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._answers: list[SamplerTable | None] = []  # one, once it is known; None is an answer too

    def read(self, settings: SamplerSettings) -> SamplerTable | None:
        """Return the table, or None."""
        with self._lock:
            if not self._answers:
                self._answers = self._kept()
            if not self._answers:
                self._answers = [probe(settings.build, functools.partial(_arguments, settings))]
                self._keep(self._answers[0])
            return self._answers[0]

    def _kept(self) -> list[SamplerTable | None]:
        """Return what the folder has; nothing where it has nothing that can be used."""
        if self._path is None:
            return []
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            return [None if kept is None else SamplerTable.from_json(kept)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning(
                "a kept table cannot be used and is read anew", file=str(self._path), error=str(error)
            )
            return []

    def _keep(self, answer: SamplerTable | None) -> None:
        if self._path is None:
            return
        written = self._path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            written.write_text(json.dumps(None if answer is None else answer.to_json()), encoding="utf-8")
            written.replace(self._path)
        except OSError as error:  # a full disk: the next process reads it again
            log.warning("a table of a sampler cannot be kept", file=str(self._path), error=str(error))
            with contextlib.suppress(OSError):
                written.unlink()


def _arguments(settings: SamplerSettings, scheduler: Any) -> dict[str, Any]:
    return settings.step_arguments(scheduler, torch.Generator())


def _key(settings: SamplerSettings) -> str:
    """Name the table of these settings on this kind of host."""
    sampler = SAMPLERS[settings.sampler]
    determines = [
        sampler.scheduler_class,
        settings.overrides,
        dict(settings.scheduler_config),
        settings.num_inference_steps,
        settings.eta,
        _surroundings(),
    ]
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()


@functools.cache
def _surroundings() -> list[str]:
    """Return what else a table's last bits depend on: who reads it, out of what, on which instructions."""
    readers = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in (table, history)]
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return [*readers, *versions, device_name(torch.device("cpu")), torch.backends.cpu.get_cpu_capability()]
