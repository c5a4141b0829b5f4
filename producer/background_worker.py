"""A worker that `render` starts in the background, and stops again.

The two hold on to each other by pipes: the worker's standard input closes when `render` goes, however it
goes, and the worker reports on its standard output as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from storage.errors import BadInputError, ModelLoadError, PromptmillError, UnreachableError

if TYPE_CHECKING:
    from storage.settings import Settings  # slow to import
    from storage.worker_options import WorkerOptions

STOP_PATIENCE = 20.0  # seconds to release jobs, stop the child and Redis
KILL_PATIENCE = 5.0
LOG_TAIL = 4096  # bytes
_ERRORS: dict[int, type[PromptmillError]] = {
    error.exit_code: error for error in (BadInputError, UnreachableError, ModelLoadError)
}


def check_worker_extra() -> None:
    """Raise ModelLoadError if the packages that a worker needs are not installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise ModelLoadError(
            f"Rendering needs {', '.join(missing)}, which the bare install leaves out; "
            f"run `pip install 'promptmill[worker]'`."
        )


class BackgroundWorker:
    """One supervisor with its processes.

    Args:
        options: what it is started with.
        settings: where its log goes.
        environment: what it gets besides ours.

    Raises:
        UnreachableError: when its log cannot be written or it cannot be started.
    """

    def __init__(
        self, options: WorkerOptions, settings: Settings, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = _new_log(settings)
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and options)
                    options.command(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **(environment or {})},
                    # Ctrl-C on the terminal is for us; we stop the worker in order.
                    start_new_session=True,
                )
        except OSError as error:
            raise UnreachableError(f"The worker cannot be started: {error}.") from error
        self._reader = threading.Thread(target=self._read, daemon=True, name="worker-events")
        self._reader.start()

    @property
    def pid(self) -> int:
        """The supervisor's process id, which is also its process group."""
        return self._process.pid

    def check(self) -> None:
        """Raise the error that the worker has reported, or that its end amounts to."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=1)
        for event in self._drain():
            if event.get("event") == "failed":
                kind = _ERRORS.get(int(event.get("exit_code", 1)), PromptmillError)
                raise kind(str(event.get("message", "The worker failed.")))
        if code is not None:
            kind = _ERRORS.get(code, PromptmillError)
            raise kind(f"The worker ended with exit code {code}{self._last_words()}; its log is {self.log}.")

    def ask_to_stop(self) -> None:
        """Close the pipe: the worker releases its jobs and ends. Returns at once."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def stop(self) -> None:
        """Ask it to stop and wait until no process of it is left."""
        self.ask_to_stop()
        with _uninterrupted():
            for patience, last_resort in (
                (STOP_PATIENCE, signal.SIGTERM),
                (KILL_PATIENCE, signal.SIGKILL),
                (KILL_PATIENCE, None),
            ):
                try:
                    self._process.wait(timeout=patience)
                    break
                except subprocess.TimeoutExpired:
                    if last_resort is not None:
                        self._signal(last_resort)
            self._reader.join(timeout=1)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _read(self) -> None:
        stdout: IO[bytes] | None = self._process.stdout
        for line in stdout or ():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.put(event)

    def _drain(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._events.get_nowait()

    def _last_words(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - LOG_TAIL))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f" ({lines[-1].strip()[:300]})" if lines else ""


def _new_log(settings: Settings) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        settings.logs_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(
            f"The worker's log folder {settings.logs_path} cannot be made: {error.strerror}; "
            f"free some space, or set PROMPTMILL_HOME elsewhere."
        ) from error
    return settings.logs_path / f"worker-{stamp}-{secrets.token_hex(2)}.log"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no second Ctrl-C leave a process behind; what happens inside takes bounded time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
