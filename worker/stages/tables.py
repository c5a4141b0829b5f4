"""Where tables of samplers are kept: each is read out of diffusers once, and then found.

Reading one takes 0.05 to 3 s at 20 steps, and longer with more: it is done in the submitter's thread, once,
whoever asks at the same time, and what was read is left in a folder for the processes that come after.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import threading
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import scipy
import structlog
import torch

from storage.samplers import SAMPLERS
from worker.models.device import device_name
from worker.stages import history, sampler, table
from worker.stages.sampler import SamplerSettings
from worker.stages.table import SamplerTable, probe

log = structlog.get_logger()


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
                kept = self._kept()
                self._answers = [kept or probe(settings.build, functools.partial(_arguments, settings))]
                if kept is None:
                    self._keep(self._answers[0])
            return self._answers[0]

    def _kept(self) -> SamplerTable | None:
        """Return what the folder has; None where it has nothing that can be used."""
        if self._path is None:
            return None
        try:
            return _unpacked(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning(
                "a kept table cannot be used and is read anew", file=str(self._path), error=str(error)
            )
            return None

    def _keep(self, answer: SamplerTable | None) -> None:
        # That there is none may be a matter of this process: a library that is missing, for example.
        if self._path is None or answer is None:
            return
        written = self._path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        content = answer.to_json()
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            packed = json.dumps({"sha256": _digest(content), "table": content})
            written.write_text(packed, encoding="utf-8")
            written.replace(self._path)
        except OSError as error:  # a full disk: the next process reads it again
            log.warning("a table of a sampler cannot be kept", file=str(self._path), error=str(error))
            with contextlib.suppress(OSError):
                written.unlink()


def _unpacked(kept: Any) -> SamplerTable:
    """Read a file's content; KeyError, TypeError or ValueError where it is not what was written."""
    if kept["sha256"] != _digest(kept["table"]):
        raise ValueError("its checksum is another")
    return SamplerTable.from_json(kept["table"])


def _arguments(settings: SamplerSettings, scheduler: Any) -> dict[str, Any]:
    return settings.step_arguments(scheduler, torch.Generator())


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _key(settings: SamplerSettings) -> str:
    """Name the table of these settings on this kind of host."""
    config = dict(settings.scheduler_config)
    if "_use_default_values" in config:  # diffusers makes a list of a set, in another order in every process
        config["_use_default_values"] = sorted(config["_use_default_values"])
    return _digest(
        [
            SAMPLERS[settings.sampler].scheduler_class,
            settings.overrides,
            config,
            settings.num_inference_steps,
            settings.eta,
            _SURROUNDINGS,
        ]
    )


def _surroundings() -> str:
    """Hash what else a table's last bits depend on: who reads it, out of what, on which instructions."""
    readers = [inspect.getsource(module) for module in (sampler, table, history)]
    versions = [module.__version__ for module in (torch, diffusers, np, scipy)]
    cpu = [device_name(torch.device("cpu")), torch.backends.cpu.get_cpu_capability()]
    return _digest([*readers, *versions, *cpu])


# Of what is loaded, so taken now: the files may be another version's by the time of the first job.
_SURROUNDINGS = _surroundings()
