"""Forward passes of the denoiser: which calls may share one, how wide it is, and what comes out for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import structlog
import torch

from worker.coalescing.axes import Axes, NotAlikeError
from worker.coalescing.call import Call, run
from worker.coalescing.drawing import masks_of
from worker.coalescing.joining import place
from worker.coalescing.proof import Recording, Sharing
from worker.coalescing.trying import Trials, run_in_parts
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import Parts
from worker.engine.faults import has_no_room
from worker.engine.planning import fewer_lanes
from worker.engine.trial import Beat, nothing
from worker.models.loras import LoraSwitch
from worker.models.pipeline import LoadedPipeline

log = structlog.get_logger()


class RestartError(Exception):
    """A request has to begin again, because its lanes were changed."""


class Tried(NamedTuple):
    """What a trial of a key showed.

    Attributes:
        unit: lanes that its calls are multiples of.
        parts: layers to be called for fewer lanes at a time; None where calls have to run alone.
    """

    unit: int = 1
    parts: Parts | None = None


class Passes:
    """The denoiser of one engine, and what is known of its calls.

    Attributes:
        widest: lanes of the widest call that was recorded.
        lora_switch: what turns the denoiser's LoRAs on and off.
        steps, lanes_run: forward passes so far, and the lanes of calls in them.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        sharing: Sharing,
        *,
        lanes: int,
        exact: bool,
        shared: bool,
        make_room: Callable[[], bool] = has_no_room,
        beat: Beat = nothing,
    ) -> None:
        """Begin with R `lanes` for every key; `exact` pads to them, where that keeps a call's bytes."""
        self._model, self._sharing, self._make_room = model, sharing, make_room
        self._lanes, self._exact, self._shared, self._beat = lanes, exact, shared, beat
        self.widest = widest_call(sharing)
        self.lora_switch = LoraSwitch([model.denoiser], model.loras)
        self.steps = self.lanes_run = 0
        self._widths: dict[Hashable, int] = {}
        self._tried: dict[Hashable, Tried] = {}
        self._refused: set[Hashable] = set()
        self._dtypes = {
            name: part.dtype
            for name, part in model.pipeline.components.items()
            if isinstance(part, torch.nn.Module) and hasattr(part, "dtype")
        }

    def place(self, call: Call) -> None:
        """Give a call its key and its lanes: one of its own if it can share with nobody."""
        if call.key is not None:
            return
        home = place(call.inputs, call.modes, self._sharing.axes) if self._shared else None
        if home is not None:
            call.axes, call.lanes = home.axes, home.lanes
            key: Hashable = (home.key, call.loras) if call.loras else home.key
            call.key = self._exact_key(call, home.axes, key) if self._exact else key
            if call.key in self._refused:
                call.key = None
        elif self._shared:
            log.info("a call of no known form runs alone", action="place", request=call.owner.arrival)
        if call.key is None:
            call.key, call.axes = ("alone", call.owner.arrival), None
        call.owner.lanes = call.lanes
        call.owner.keys.add(call.key)

    def width(self, key: Hashable) -> int:
        """Return R of a key."""
        return self._widths.get(key, self._lanes)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run calls of one key in one forward pass, and return what each would have got alone.

        Raises:
            Exception: what the denoiser raises.
        """
        first = calls[0]
        parts: Parts
        self.lora_switch(first.loras)
        if first.axes is None:
            results, width, parts = [run(self._model.denoiser, first.inputs, first.modes)], first.lanes, ()
        else:
            width = self.width(first.key)  # what is recorded: how many there were does not change a picture
            lanes = width if self._exact else sum(call.lanes for call in calls)
            parts = self._parts(first.key)
            try:
                results = self._run_joined(calls, lanes, parts)
            except (NotAlikeError, RuntimeError, ValueError, TypeError, IndexError) as error:
                if len(calls) > 1 or is_device_fault(error) or is_out_of_memory(error):
                    raise
                results, width, parts = [self._run_apart(first, error)], first.lanes, ()
        self.steps += 1
        self.lanes_run += sum(call.lanes for call in calls)
        for call in calls:
            call.owner.width = max(call.owner.width, width)
            call.owner.parts.update(parts)
        return results

    def shrink(self, calls: Sequence[Call]) -> int | None:
        """Plan a key that ran out of memory with fewer lanes; None when there are no fewer."""
        key, before = calls[0].key, self.width(calls[0].key)
        self._free_memory()
        needed = max(call.lanes for call in calls)
        fewer = max(needed, fewer_lanes(before))
        if calls[0].axes is None or fewer >= before:
            return None
        log.warning("out of memory", action="shrink", lanes=fewer, before=before)
        self._widths[key] = fewer
        self._tried.pop(key, None)
        return fewer

    def mend(self) -> None:
        """After a failed pipeline: undo what it may have left, like a VAE that was moved to float32."""
        for name, dtype in self._dtypes.items():
            part = self._model.pipeline.components[name]
            if part.dtype != dtype:
                part.to(dtype)
        self._free_memory()

    def _run_joined(self, calls: Sequence[Call], width: int, parts: Parts) -> list[Any]:
        axes = calls[0].axes
        if axes is None:
            raise NotAlikeError("a call of no known form cannot be joined")
        inputs = [call.inputs for call in calls]
        return run_in_parts(self._model.denoiser, inputs, axes, calls[0].modes, width=width, parts=parts)

    def _run_apart(self, call: Call, error: Exception) -> Any:
        """Run a call as it is that failed when joined; if that goes well, what was learned is wrong."""
        outputs = run(self._model.denoiser, call.inputs, call.modes)
        self._refused.add(call.key)
        log.warning("calls of this form run alone from here on", action="refuse", reason=str(error))
        return outputs

    def _exact_key(self, call: Call, axes: Axes, key: Hashable) -> Hashable:
        """Find out, once per key, in whose company a call has its bytes; None for nobody's."""
        if key not in self._tried:
            self._tried[key] = self._try_out(call, axes, key)
        if self._tried[key].parts is None and (masks := self._masks(call, axes)):
            finer: Hashable = (key, masks)
            self._widths.setdefault(finer, self.width(key))
            if finer not in self._tried:
                self._tried[finer] = self._try_out(call, axes, finer, masks=False)
            key = finer
        tried = self._tried[key]
        fits = call.lanes % tried.unit == 0 and call.lanes <= self.width(key)
        return key if tried.parts is not None and fits else None

    def _parts(self, key: Hashable) -> Parts:
        return self._tried.get(key, Tried()).parts or ()

    def _try_out(self, call: Call, axes: Axes, key: Hashable, *, masks: bool = True) -> Tried:
        """Try a key at R lanes, or at fewer where memory is short; `masks` as in `Trials`."""
        self.lora_switch(call.loras)
        width = self.width(key)
        tried, failure = self._attempt(call, axes, width, masks=masks)
        while failure is not None and is_out_of_memory(failure):
            if not self._make_room():
                fewer = max(call.lanes, fewer_lanes(width))
                if fewer >= width:
                    break
                width = fewer
            self._free_memory()
            self._widths[key] = width
            tried, failure = self._attempt(call, axes, width, masks=masks)
        if tried.parts is None and masks and self._masks(call, axes):
            log.info("prompts of other lengths show", action="plan_shape", lanes=width)
        elif tried.parts is None:
            why = "places or company show" if failure is None else f"{type(failure).__name__}: {failure}"
            log.warning("size is rendered one job at a time", action="plan_shape", lanes=width, reason=why)
        return tried

    def _attempt(self, call: Call, axes: Axes, width: int, *, masks: bool) -> tuple[Tried, Exception | None]:
        """Try calls like this one at so many lanes; return what failed, if something did."""
        sample = Recording(inputs=call.inputs, modes=call.modes, outputs=None)
        try:
            trials = Trials(
                self._model.denoiser,
                sample,
                axes,
                width,
                learned=self._learned(axes),
                masks=masks,
                beat=self._beat,
            )
            return Tried(trials.unit, trials.exact_parts()), None
        except Exception as error:
            if is_device_fault(error):
                raise
            return Tried(), error.with_traceback(None)  # its frames hold what the failed pass took

    def _masks(self, call: Call, axes: Axes) -> tuple[Hashable, ...]:
        return masks_of(axes.inputs, call.inputs, self._learned(axes).inputs)

    def _learned(self, axes: Axes) -> Recording:
        """Return the call that these axes were learned from."""
        pairs = zip(self._sharing.axes, self._sharing.samples, strict=True)
        return next(sample for known, sample in pairs if known is axes)

    def _free_memory(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def widest_call(sharing: Sharing) -> int:
    """Return the lanes of the widest call that was recorded; 1 where nothing was learned."""
    pairs = zip(sharing.axes, sharing.samples, strict=True)
    return max((axes.lanes(sample.inputs) for axes, sample in pairs), default=1)
