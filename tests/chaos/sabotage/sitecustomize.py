"""What goes wrong inside a process, put there from outside: Python imports this file by itself at its start.

The harness puts this folder on the PYTHONPATH of everything that it starts. What a marker in a prompt says
happens to that job, on its first attempt unless it is said otherwise:

    [poison]             its worker process dies while it is rendered, every time
    [raises]             its sampler raises, every time
    [die in the write]   kill -9 when half of its file is written
    [die in the gap]     kill -9 when its file is whole and its row is not
    [freeze in the gap]  SIGSTOP there; the harness lets it go on when its lease is long over
    [freeze together]    SIGSTOP as soon as three jobs of the process are there
    [plant fencing]      bug: whoever finishes last wins
    [plant key]          bug: the file's key lacks the attempt
    [plant row]          bug: the row is written before the file

PROMPTMILL_CHAOS_DIE=METHOD:COUNT kills a command with -9 as it calls a method of the job store for the
COUNTth time; its submissions are then inserted four jobs a commit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_now = threading.local()  # the claim that this thread works on
_together = threading.Barrier(3)
_writing = threading.Lock()  # held by whichever thread of this process writes to a SQLite database


def _marked(marker: str, *, first_only: bool = True) -> bool:
    claim = getattr(_now, "claim", None)
    if claim is None or (first_only and claim.attempt > 1):
        return False
    return f"[{marker}]" in claim.parameters.prompt


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # until it has come


def _gap() -> None:
    """Pass the moment between a file and its row."""
    if _marked("die in the gap"):
        _die()
    if _marked("freeze in the gap"):
        _freeze()
    elif _marked("freeze together"):
        if _together.wait():
            threading.Event().wait(2)  # until it is frozen: who goes on would take a lock along
        else:
            _freeze()


def _freeze() -> None:
    """Stop this process while none of its threads has the writer lock of SQLite: nobody could write then."""
    with _writing:
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait(0.2)  # until it has come, which may be a moment after the call returned


def _writer_lock(module: Any) -> None:
    held = module.WriterLock.held

    @contextlib.contextmanager
    def gated(self: Any) -> Iterator[None]:
        with _writing, held(self):
            yield

    module.WriterLock.held = gated


def _tasks(tasks: Any) -> None:
    render_claim, save, finish, picture_key = (
        tasks.render_claim, tasks.save, tasks.finish, tasks.picture_key,
    )  # fmt: skip

    def remembering(process: Any, claim: Any) -> None:
        _now.claim = claim
        try:
            render_claim(process, claim)
        finally:
            _now.claim = None

    def key(submission: str, index: int, attempt: int, **rest: Any) -> str:
        known = picture_key(
            submission, index, 1 if _marked("plant key", first_only=False) else attempt, **rest
        )
        return str(known)

    def keep(process: Any, claim: Any, result: Any) -> Any:
        if not _marked("plant row"):
            image = save(process, claim, result)
            _gap()
            return image
        kept: dict[str, bytes] = {}
        images = types.SimpleNamespace(write=kept.__setitem__)
        facade = types.SimpleNamespace(model=process.model, images=images, surroundings=process.surroundings)
        image = save(facade, claim, result)
        _now.late = kept
        return image

    def end(process: Any, claim: Any, image: Any, warnings: Any) -> None:
        if _marked("plant fencing", first_only=False):
            _finish_without_fencing(process, claim, image)
            return
        finish(process, claim, image, warnings)
        late = getattr(_now, "late", None)
        if late:
            _now.late = None
            _gap()
            for name, data in late.items():
                process.images.write(name, data)

    tasks.render_claim, tasks.save, tasks.finish, tasks.picture_key = remembering, keep, end, key


def _finish_without_fencing(process: Any, claim: Any, image: Any) -> None:
    from sqlalchemy import delete, insert, update  # noqa: PLC0415  (this file is read by every process)

    from storage.sqljobstore.base import IMAGES, JOBS, now  # noqa: PLC0415  (likewise)

    with process.jobs.database.write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == claim.job).values(status="succeeded"))
        connection.execute(delete(IMAGES).where(IMAGES.c.job == claim.job))
        row = {"job": claim.job, "created_at": now(), **dataclasses.asdict(image)}
        connection.execute(insert(IMAGES).values(row))


def _process(module: Any) -> None:
    worker_process = module.WorkerProcess
    render, stale = worker_process.render, worker_process.stale

    def poisoned(self: Any, claim: Any) -> Any:
        future = render(self, claim)
        if _marked("poison", first_only=False):
            threading.Timer(0.05, _die).start()
        return future

    def unaware(self: Any, error: Any) -> None:
        """A zombie of the bug `fencing` does not hear that it is one before it has done harm."""
        if any("[plant fencing]" in name for name in _planted):
            threading.Event().wait(3)
        stale(self, error)

    worker_process.render, worker_process.stale = poisoned, unaware
    claimed = worker_process._claim

    def noted(self: Any, job: int, *, alone: bool) -> Any:
        claim = claimed(self, job, alone=alone)
        if "[plant" in getattr(getattr(claim, "parameters", None), "prompt", ""):
            _planted.add(claim.parameters.prompt)
        return claim

    worker_process._claim = noted


_planted: set[str] = set()


def _request(module: Any) -> None:
    schedule = module._schedule

    def raising(model: Any, job: Any, *rest: Any) -> Any:
        if "[raises]" in job.prompt:
            raise RuntimeError("this sampler raises")
        return schedule(model, job, *rest)

    module._schedule = raising


def _imagestore(module: Any) -> None:
    write = module.write_file

    def half(path: Path, data: bytes) -> None:
        if _marked("die in the write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.{os.getpid()}-0badcafe.part").write_bytes(data[: len(data) // 2])
            _die()
        write(path, data)

    module.write_file = half


def _jobstore(module: Any) -> None:
    order = os.environ.get("PROMPTMILL_CHAOS_DIE")
    if not order:
        return
    method, _, count = order.partition(":")
    left = [int(count)]
    original = getattr(module.SqlJobStore, method)

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            _die()
        return original(self, *args, **kwargs)

    setattr(module.SqlJobStore, method, dying)
    sys.modules["storage.sqljobstore.submitting"].ADD_CHUNK = 4  # type: ignore[attr-defined]


PATCHES: dict[str, Callable[[Any], None]] = {
    "storage.writer_lock": _writer_lock,
    "worker.tasks": _tasks,
    "worker.process": _process,
    "worker.engine.request": _request,
    "storage.imagestore": _imagestore,
    "storage.sqljobstore": _jobstore,
}


class _Patching(importlib.abc.MetaPathFinder):
    """Changes a module right after it was imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module that is to be changed, once."""
        patch = PATCHES.pop(name, None)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            raise ImportError(f"there is no module {name} to sabotage")
        run = spec.loader.exec_module

        def then_patch(module: types.ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = then_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Patching())

if "faketime" in os.environ.get("LD_PRELOAD", ""):
    # libfaketime 0.9.10 breaks clock_nanosleep where it leaves the monotonic clock alone.
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None
