"""The engine for pipelines: many threads run unmodified pipeline code, one runs their denoiser for all.

The same to its users as `worker.engine.engine.Engine`, which renders Stable Diffusion 1.x and 2.x faster by
rebuilding its loop. This one rebuilds nothing, so it renders whatever diffusers does.

Past 300 lines for the reason that the other one is: one class that owns one thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from worker.coalescing.baton import Baton
from worker.coalescing.call import Call, Modes
from worker.coalescing.lanes import choose_lanes
from worker.coalescing.passes import Passes, RestartError
from worker.coalescing.pictures import Kind, Pictures
from worker.coalescing.proof import Sharing
from worker.coalescing.recording import sharing_that_fits
from worker.coalescing.rendering import call_pipeline
from worker.coalescing.request import PipelineRequest, checked_pixels, explain, prepare_request
from worker.coalescing.turns import Turns
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import LanePlan
from worker.engine.device_turns import DeviceTurns
from worker.engine.errors import Cancelled, DeadlineError, EngineError, Released
from worker.engine.faults import has_no_room
from worker.engine.numerics import decoder_versions, numerics_record
from worker.engine.request import RenderResult
from worker.engine.roster import Roster
from worker.engine.ticket import Ticket
from worker.engine.tuning import Tunings
from worker.engine.watchdog import Watchdog
from worker.metrics import StepMeter
from worker.models.loras import LoraSwitch, lora_numerics, text_encoders_of
from worker.models.pipeline import LoadedPipeline
from worker.models.threads import in_passing_thread

log = structlog.get_logger()


class PipelineEngine:
    """Renders requests, each by its pipeline's own code, in shared forward passes of the denoiser.

    `submit` may be called from any thread; `step` belongs to the one that `start` makes, or a test's own.

    Attributes:
        model: the loaded pipeline.
        mode: as in `Engine`; in `reference` one request is rendered after the other, its calls as they are.
        lanes: R.
        numerics: the record that goes into every result.
        shared: whether requests share forward passes at all.
        steps, lanes_run: forward passes so far, and the lanes of requests in them.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        *,
        lanes: int | None = None,
        mode: str = "exact",
        launch: str = "eager",
        tunings: Tunings | None = None,
        kind: Kind = Kind.TEXT,
        turns: DeviceTurns | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        make_room: Callable[[], bool] = has_no_room,
        crowded: bool = False,
        stall: float = 1800.0,
        deadline: float = math.inf,
    ) -> None:
        """Find out what can be shared and with how many lanes; nothing runs before `start`.

        Args:
            model: on its device.
            lanes: R; None lets the engine choose.
            mode: see above.
            launch: `eager`; a pipeline is run as it is.
            tunings: where the choice of R is looked up and kept; None measures anew.
            kind: of its jobs.
            turns: of the device, where other engines use it, too.
            on_death: called once, from the engine's or the watchdog's thread, after all futures were failed.
            make_room: as in `Engine`.
            crowded: likewise.
            stall: seconds without a sign of life after which the device counts as hanging.
            deadline: seconds that the forward passes of a request may take together, since it last began.

        Raises:
            BadInputError: when the mode cannot run with these lanes, this dtype or this launch.
            torch.OutOfMemoryError: when it does not fit beside the other models of a crowded device.
        """
        if mode == "reference" and model.dtype != torch.float32:
            raise BadInputError(f"--mode reference is float32 only, not {model.dtype}; leave --dtype out.")
        if launch != "eager":
            raise BadInputError(
                f"A {model.family} is run as it is, without --compile and --cuda-graphs; leave them out."
            )
        self.model, self.mode = model, mode
        # In a thread that starts now: one of a pool has the number of threads that another model chose.
        facts = in_passing_thread(lambda: numerics_record(model, mode=mode))
        if kind is not Kind.TEXT:
            facts["versions"] |= decoder_versions()
        turn_on = LoraSwitch([model.denoiser, *text_encoders_of(model)], model.loras)
        turn_on(())  # whatever another engine had on: what is learned is the model's own
        self.shared = mode != "reference"
        sharing = Sharing(reason="it was asked for")
        if self.shared:
            sharing = sharing_that_fits(model, kind, None if crowded else make_room)
            self.shared = not sharing.reason
        self.lanes = in_passing_thread(
            lambda: choose_lanes(model, sharing, mode=mode, lanes=lanes, facts=facts, tunings=tunings)
        )
        self.numerics = facts | {"way": "coalescing" if self.shared else "alone"}
        if sharing.reason and mode != "reference":
            log.warning("model is rendered one job at a time", action="share", reason=sharing.reason)
        self._watchdog = Watchdog(stall, self._die)
        self._passes = Passes(
            model,
            sharing,
            lanes=self.lanes,
            exact=mode == "exact",
            shared=self.shared,
            make_room=make_room,
            beat=self._watchdog.beat,
        )
        self._meter = StepMeter(model.name)
        self._turns = Turns()
        self._in_lanes: list[tuple[PipelineRequest, int]] = []
        self._device = turns or DeviceTurns()
        self._baton = Baton(self._device)
        self._text_switch = LoraSwitch(text_encoders_of(model), model.loras)
        self._roster: Roster[PipelineRequest] = Roster()
        self._on_death, self._make_room = on_death, make_room
        self._deadline = deadline
        self._seen: dict[Hashable, LanePlan] = {}  # by form of job: how the last picture was rendered
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self._passes.steps

    @property
    def lanes_run(self) -> int:
        """Lanes of requests in them, idle ones left aside."""
        return self._passes.lanes_run

    @property
    def lora_switch(self) -> LoraSwitch:
        """What turns the denoiser's LoRAs on and off."""
        return self._passes.lora_switch

    @property
    def lanes_per_job(self) -> int:
        """Lanes that most of the model's jobs take."""
        guided = float(self.model.defaults.get("guidance_scale") or 0) > 1
        return self._passes.widest if guided else max(1, self._passes.widest // 2)

    def submit(
        self,
        parameters: JobParameters,
        *,
        on_progress: Callable[[float], None] | None = None,
        priority: int = 0,
        pictures: Pictures | None = None,
    ) -> Ticket:
        """Hand in a job; returns at once with a ticket whose future will hold the RenderResult.

        Args:
            parameters: fields that are None get the model's defaults.
            on_progress: called from the request's thread with the share done, 0 to 1; must be quick.
            priority: higher goes first.
            pictures: what it begins with, by their name in `storage.inputs.INPUTS`.

        Raises:
            BadInputError: when the job cannot be rendered with this model; one sentence says why.
            Released: when the engine drains or is closed.
            EngineDeadError: when the engine has died.
        """
        request = prepare_request(
            self.model,
            parameters,
            lanes=self._passes.widest,
            priority=priority,
            on_progress=on_progress,
            pictures=pictures or {},
        )
        self._roster.add(request)
        return Ticket(request)

    def numerics_of(self, parameters: JobParameters) -> dict[str, Any]:
        """Return the record that a job's picture gets if it is rendered now; from any thread.

        As the last picture of its size was; before the first, as most are: at R lanes, no layer in parts.

        Raises:
            BadInputError: as `submit` does.
        """
        request = prepare_request(self.model, parameters, lanes=self._passes.widest)
        plan = self._seen.get(_form(request))
        return self._numerics(request, plan or LanePlan(lanes=self.lanes if self.shared else request.lanes))

    def _numerics(self, request: PipelineRequest, plan: LanePlan) -> dict[str, Any]:
        return lora_numerics({**self.numerics, **plan.record}, self.model, request.loras)

    def release_waiting(self) -> int:
        """Drain: give back every request that has not begun (Released) and take no new ones.

        Returns:
            How many were given back; the others are finished.
        """
        return self._roster.release("The engine drains, and this request had not begun.")

    def start(self) -> None:
        """Start the thread that runs the denoiser."""
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self._thread.start()
        self._watchdog.start()

    def close(self, *, timeout: float | None = None) -> None:
        """Stop after the current step; what is left is given back (Released)."""
        self._closing = True
        self._roster.wake()
        self._watchdog.stop()
        # Threads in the middle of their pipeline find this at their next call of the denoiser.
        self._baton.end(Released("The engine was closed before this request was done."))
        if self._thread is not None:
            self._thread.join(timeout)
        self._roster.release("The engine was closed before this request was done.", started_too=True)

    @property
    def dead(self) -> bool:
        """Whether the device or the engine failed for good; the process has to be started again."""
        return self._roster.dead

    @property
    def load(self) -> tuple[int, int]:
        """Return how many requests wait and how many are started."""
        requests = self._roster.snapshot()
        started = sum(request.started for request in requests)
        return len(requests) - started, started

    @property
    def lanes_used(self) -> int:
        """How many lanes are taken in the step that runs, or ran last, by requests that are not done."""
        return sum(lanes for request, lanes in self._in_lanes if not request.future.done())

    def run(self) -> None:
        """Step until closed or dead; sleep while there is nothing to do."""
        while self._roster.wait(until=lambda: self._closing):
            with self._watchdog.watching():
                self.step()

    @torch.no_grad()
    def step(self) -> bool:
        """Let requests begin, wait until all of them wait, and run one forward pass for some of them.

        Returns:
            Whether there was anything to do.
        """
        try:
            self._drop_unwanted()
            self._start_some()
            calls = [call for call in self._baton.calls() if self._is_wanted(call)]
            self._watchdog.beat()
            if calls:
                with self._turn():
                    for call in calls:
                        self._passes.place(call)
                chosen = self._turns.choose(calls, width=self._passes.width)
                self._in_lanes = [(call.owner, call.lanes) for call in chosen]
                self._advance(chosen)
            return bool(calls or self._roster.snapshot())
        except Exception as error:  # noqa: BLE001 - whatever it is, every future has to hear of it
            self._die(error)
            return False

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the device, which is no sign that it hangs, and have it for a `with`."""
        self._watchdog.pause()
        with self._device:
            self._watchdog.beat()
            yield

    def _drop_unwanted(self) -> None:
        """Take out who was cancelled before it began; the others hear of it at their next call."""
        for request in self._roster.snapshot():
            if request.cancelled.is_set() and not request.started:
                self._roster.settle(request, Cancelled("The job was cancelled."))

    def _start_some(self) -> None:
        """Start the threads of requests for which there are lanes; one at a time where nothing is shared."""

        def choose(requests: list[PipelineRequest]) -> list[PipelineRequest]:
            active = [request for request in requests if request.started]
            joining: list[PipelineRequest] = []
            for request in sorted(requests, key=lambda request: request.rank):
                if not request.started and self._has_room(request, [*active, *joining]):
                    joining.append(request)
            return joining

        for request in self._roster.start_some(choose):
            self._baton.announce()
            name = f"request-{request.arrival}"
            threading.Thread(target=self._render, args=(request,), name=name, daemon=True).start()

    def _has_room(self, request: PipelineRequest, others: Sequence[PipelineRequest]) -> bool:
        if not others or not self.shared:
            return not others
        taken = sum(other.lanes for other in others if other.size == request.size)
        return taken + request.lanes <= max(self.lanes, request.lanes)

    def _is_wanted(self, call: Call) -> bool:
        """End a call whose request was cancelled or took too long; tell whether it is another."""
        error = self._end_of(call.owner)
        if error is not None:
            self._baton.answer(call, error=error)
        return error is None

    def _end_of(self, request: PipelineRequest) -> EngineError | None:
        if request.cancelled.is_set():
            return Cancelled("The job was cancelled.")
        if request.spent <= self._deadline:
            return None
        job = request.parameters
        return DeadlineError(
            f"The job was stopped after step {request.steps[0]} of {job.num_inference_steps}, since its "
            f"forward passes took more than {self._deadline:g} s at {job.width}x{job.height}; ask for fewer "
            f"steps or a smaller picture, or raise PROMPTMILL_DEADLINE.",
            permanent=True,
        )

    def _advance(self, calls: list[Call]) -> None:
        """Run calls in one forward pass, and let their requests go on; one that fails fails one of them."""
        try:
            with self._turn():
                began = time.perf_counter()
                results, failure = self._passes.run(calls), None
        except Exception as error:
            if is_device_fault(error):
                raise
            failure = error
        if failure is None:
            self._accept(calls, results, time.perf_counter() - began)
        elif is_out_of_memory(failure):
            self._shrink(calls, failure.with_traceback(None))  # its frames hold what the failed pass took
        elif len(calls) > 1:
            for call in calls:
                self._advance([call])
        else:
            self._baton.answer(calls[0], error=failure)

    def _accept(self, calls: list[Call], results: list[Any], seconds: float) -> None:
        lanes = sum(call.lanes for call in calls)
        self._meter.note(lanes=lanes, room=self._passes.width(calls[0].key), seconds=seconds)
        now = time.perf_counter()
        for call, outputs in zip(calls, results, strict=True):
            call.owner.spent += seconds
            call.owner.last_answer = now
            self._baton.answer(call, outputs)

    def _shrink(self, calls: list[Call], error: Exception) -> None:
        """Go on with fewer lanes after the device ran out of memory; fail who needs what there is not.

        A picture has one R in exact mode, so those who have begun with it start again.
        """
        if self._make_room():
            return  # the next step tries again: the calls still wait
        key, before = calls[0].key, self._passes.width(calls[0].key)
        fewer = self._passes.shrink(calls)
        if fewer is None:
            for call in calls:
                self._baton.answer(call, error=error)
            return
        for call in self._baton.calls():
            request: PipelineRequest = call.owner
            if key not in request.keys:
                continue
            request.shrunk = f"The device ran out of memory with {before} lanes; rendered with {fewer}."
            if self.mode == "exact":
                self._baton.answer(call, error=RestartError())

    def _render(self, request: PipelineRequest) -> None:
        """Be a request's thread: run its pipeline from prompt to picture, and resolve its future."""
        with self._baton.held():
            try:
                outcome: RenderResult | EngineError = self._picture(request)
            except Exception as error:  # noqa: BLE001 - a pipeline may raise anything
                if is_device_fault(error):
                    self._die(error)
                    return
                self._passes.mend()
                outcome = explain(request, error, family=self.model.family)
            self._roster.settle(request, outcome)

    def _picture(self, request: PipelineRequest) -> RenderResult:
        while True:
            self._text_switch(request.loras)
            try:
                images = call_pipeline(
                    self.model,
                    request,
                    post=lambda inputs: self._post(request, inputs),
                    go_on=lambda: self._stop_if_unwanted(request),
                    shared=self.shared,
                )
                break
            except RestartError:
                request.begin_again()
            except Exception as error:
                if not (is_out_of_memory(error) and self._make_room()):
                    raise
                self._passes.mend()  # it may have left off while the VAE was in another dtype
                request.begin_again()
        plan = LanePlan(lanes=request.width, parts=tuple(sorted(request.parts)))
        self._seen[_form(request)] = plan
        return RenderResult(
            pixels=checked_pixels(images, request),
            warnings=[request.shrunk] if request.shrunk else [],
            seconds=request.seconds(),
            numerics=self._numerics(request, plan),
        )

    def _post(self, request: PipelineRequest, inputs: dict[str, Any]) -> Any:
        """Wait for a forward pass that has this call's."""
        self._stop_if_unwanted(request)
        request.note_call()
        modes = Modes.here(self.model.device.type)
        try:
            return self._baton.post(Call(owner=request, inputs=inputs, modes=modes))
        finally:  # who had the baton meanwhile may have other LoRAs
            self._text_switch(request.loras)

    def _stop_if_unwanted(self, request: PipelineRequest) -> None:
        self._watchdog.beat()
        error = self._end_of(request)
        if error is not None:
            raise error

    def _die(self, error: BaseException) -> None:
        """Fail every future: after a device fault nothing that is on the device can be trusted."""
        if self.dead:
            return  # the watchdog was faster
        cause = f"{type(error).__name__}: {error}"
        log.error("the engine died", action="engine_died", error=cause)
        sentence = f"The device or the engine failed ({cause}); the worker has to start again."
        self._roster.kill(sentence)
        self._baton.end(Released(sentence))
        if self._on_death is not None:
            self._on_death(error)


def _form(request: PipelineRequest) -> Hashable:
    """Return what jobs have in common whose calls are of the same sizes, usually."""
    return request.size, (request.parameters.guidance_scale or 0) > 1
