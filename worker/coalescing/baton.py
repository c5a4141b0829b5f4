"""Who may run pipeline code: one thread at a time, and the engine only while all of them wait.

Pipelines are not made for threads: tokenizers return wrong shapes, Stable Diffusion XL moves the shared VAE
to float32 and back, `maybe_free_model_hooks` resets what all share. So whichever thread runs pipeline code
holds the baton, and gives it away only while it waits for its call of the denoiser.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker.coalescing.call import Call
from worker.engine.device_turns import DeviceTurns


class Baton:
    """The lock, and the calls that wait for the engine.

    `busy` counts the threads that have something to run: when it is 0 no new call can come, and what waits is
    all there is. So a job that is alone waits for nobody, and many meet without a clock.
    """

    def __init__(self, turns: DeviceTurns | None = None) -> None:
        """Begin with no thread; `turns` is the lock, where other engines use the device, too."""
        self._lock = turns or DeviceTurns()
        self._changed = threading.Condition()
        self._busy = 0
        self._calls: list[Call] = []
        self._end: Exception | None = None

    def announce(self) -> None:
        """Count a thread that is about to be started."""
        with self._changed:
            self._busy += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the baton for a `with`, in a thread that was announced; afterwards it counts no longer."""
        try:
            with self._lock:
                yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def post(self, call: Call) -> Any:
        """Wait for a call's result, from a thread that holds the baton; others have it meanwhile.

        Raises:
            Exception: what the engine answered with.
        """
        with self._changed:
            if self._end is not None:
                raise self._end
            self._calls.append(call)
            self._busy -= 1
            self._changed.notify_all()
        self._lock.release()
        try:
            return call.wait()
        finally:
            self._lock.acquire()

    def calls(self) -> list[Call]:
        """Wait until every thread waits for the engine or has ended, and list their calls, oldest first."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            return list(self._calls)

    def answer(self, call: Call, outputs: Any = None, *, error: Exception | None = None) -> None:
        """Let a call's thread go on; nothing happens when it was answered before."""
        with self._changed:
            if call not in self._calls:
                return
            self._calls.remove(call)
            self._busy += 1
        call.answer(outputs, error=error)

    def end(self, error: Exception) -> None:
        """Answer every call, now and from now on, with an error."""
        with self._changed:
            self._end = error
            left, self._calls = self._calls, []
            self._busy += len(left)
        for call in left:
            call.answer(error=error)
