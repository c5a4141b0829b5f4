"""The engine: one thread, one device, one denoising loop that requests join and leave at any step.

Past 300 lines because it is one class that owns one thread: what a step does is read here from top to bottom,
and what can be understood without it (admission, batch, plans, roster, verdict, watchdog) has its own module.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import Admission, Group, LanePlan
from worker.engine.batch import Batch
from worker.engine.device_turns import DeviceTurns
from worker.engine.errors import Cancelled
from worker.engine.faults import explain, has_no_room, not_finite, too_late
from worker.engine.numerics import numerics_record
from worker.engine.planning import free_graphs
from worker.engine.plans import Plans
from worker.engine.request import RenderResult, Request, group_of, prepare_request
from worker.engine.roster import Roster
from worker.engine.ticket import Ticket
from worker.engine.tuning import Tunings, Wishes, tune
from worker.engine.verdict import Verdict
from worker.engine.watchdog import Watchdog
from worker.metrics import StepMeter
from worker.models.load import LoadedModel
from worker.models.loras import LoraSwitch, lora_numerics, text_encoders_of
from worker.models.threads import in_passing_thread
from worker.stages.decode import decode
from worker.stages.guidance import is_guided
from worker.stages.history import History
from worker.stages.tables import Tables
from worker.stages.text import TextStage

log = structlog.get_logger()
T = TypeVar("T")
POSTPONED = 256  # steps that a new latent shape waits for more urgent requests


class Engine:
    """Renders requests in shared forward passes.

    `submit` may be called from any thread; `step` belongs to the one that `start` makes, or a test's own.

    Attributes:
        model: the loaded model, as it is run.
        mode: `exact` (a picture's bytes do not depend on its company: R lanes, padded, or fewer that agree
            with R bit for bit), `throughput` (no padding) or `reference` (one request at a time, float32: the
            reference loop bit for bit).
        lanes: R.
        numerics: the record that goes into every result, but for the lanes of its group.
        steps: forward passes so far.
        lora_switch: what turns the model's LoRAs on and off.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        lanes: int | None = None,
        mode: str = "exact",
        precisions: tuple[str, ...] = (),
        launch: str = "eager",
        tunings: Tunings | None = None,
        tables: Tables | None = None,
        turns: DeviceTurns | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        make_room: Callable[[], bool] = has_no_room,
        crowded: bool = False,
        stall: float = 1800.0,
        deadline: float = math.inf,
    ) -> None:
        """Choose and verify how the model is run; nothing runs before `start`.

        Args:
            model: on its device.
            lanes: R; None lets the engine choose.
            mode: see above.
            precisions: what the UNet may compute in if that is faster, from `faster_precisions`.
            launch: how forward passes are launched, one of `storage.worker_options.LAUNCHES`.
            tunings: where the choice is looked up and kept; None measures anew.
            tables: where samplers' tables are kept; None keeps them for this engine only.
            turns: of the device, where other engines use it, too; those of one model must share it.
            on_death: called once, from the engine's or the watchdog's thread, after all futures were failed.
            make_room: called when memory runs out, before anything is given up: whether something else has
                left the device, so that it is worth another try.
            crowded: whether other models are on the device, which can leave it: then too little memory for
                what was tuned is an error.
            stall: seconds after which a forward pass, an encoding or a decode counts as a device that hangs.
            deadline: seconds that the steps of a request may take together, since it last began; then it
                fails, before the next.

        Raises:
            BadInputError: when the mode cannot run with these lanes, this dtype or this device.
            torch.OutOfMemoryError: when it does not fit beside the other models of a crowded device.
        """
        if mode == "reference" and model.dtype != torch.float32:
            raise BadInputError(f"--mode reference is float32 only, not {model.dtype}; leave --dtype out.")
        self.mode = mode
        wishes = Wishes(mode=mode, lanes=lanes, precisions=precisions, launch=launch, crowded=crowded)
        facts = numerics_record(model, mode=mode)
        tuned = in_passing_thread(lambda: tune(model, wishes, facts=facts, tunings=tunings))
        self.model, self.lanes, trial = tuned
        model = self.model
        self.numerics = numerics_record(model, mode=mode)
        self._meter = StepMeter(model.name)
        self.steps = 0
        self._on_death, self._make_room = on_death, make_room
        self._deadline = deadline
        self._turns = turns or DeviceTurns()
        self._tables = None if mode == "reference" else tables or Tables()
        self._text = TextStage(model.kind.prompt_encoder(model))
        self.lora_switch = LoraSwitch([model.unet, *text_encoders_of(model)], model.loras)
        self._watchdog = Watchdog(stall, self._die)
        self._plans = Plans(model, mode=mode, lanes=self.lanes, trial=trial, beat=self._watchdog.beat)
        self._admission = Admission(self._plans.__getitem__)
        self._roster: Roster[Request] = Roster()
        self._batches: dict[Group, Batch] = {}
        self._in_lanes: list[tuple[Request, int]] = []  # accepted, a request may need others
        self._verdict: Verdict | None = None
        self._closing = False
        self._new: dict[Group, int] = {}  # kinds that have no plan yet: `steps` when they were met
        self._thread: threading.Thread | None = None

    @property
    def lanes_per_job(self) -> int:
        """Lanes that most of the model's jobs take: those that are guided as it recommends."""
        cond_width = self.model.unet.config.time_cond_proj_dim
        return 2 if is_guided(self.model.defaults["guidance_scale"], cond_width) else 1

    def submit(
        self,
        parameters: JobParameters,
        *,
        on_progress: Callable[[float], None] | None = None,
        priority: int = 0,
        keep_latents: bool = False,
    ) -> Ticket:
        """Hand in a job; returns at once with a ticket whose future will hold the RenderResult.

        What needs no device is done here, in the caller's thread: the sampler's table and all noise. The text
        encoder runs in the engine's thread.

        Args:
            parameters: fields that are None get the model's defaults.
            on_progress: called from the engine's thread with the share done, 0 to 1; must be quick.
            priority: higher goes first.
            keep_latents: return the final latents too.

        Raises:
            BadInputError: when the job cannot be rendered with this model; one sentence says why.
            MemoryError, RuntimeError: when the host's memory ran out.
            Released: when the engine drains or is closed.
            EngineDeadError: when the engine has died.
        """
        request = prepare_request(
            self.model,
            parameters,
            priority=priority,
            keep_latents=keep_latents,
            on_progress=on_progress,
            tables=self._tables,
        )
        self._roster.add(request)
        return Ticket(request)

    def numerics_of(self, parameters: JobParameters) -> dict[str, Any]:
        """Return the record that a job's picture gets if it is rendered now; from any thread.

        Of a size that has not been met yet it is assumed that it runs at R lanes, as most do.

        Raises:
            BadInputError: as `submit` does.
        """
        group = group_of(self.model, parameters, tables=self._tables)
        return self._numerics(group, self._plans.record(group))

    def _numerics(self, group: Group, record: dict[str, int | str]) -> dict[str, Any]:
        return lora_numerics({**self.numerics, **record}, self.model, group.loras)

    def release_waiting(self) -> int:
        """Drain: give back every request that holds no lanes yet (Released) and take no new ones.

        Returns:
            How many were given back; the others are finished.
        """
        return self._roster.release("The engine drains, and this request had not begun.")

    def start(self) -> None:
        """Start the thread that owns the device."""
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self._thread.start()
        self._watchdog.start()

    def close(self, *, timeout: float | None = None) -> None:
        """Stop after the current step; what is left is given back (Released)."""
        self._closing = True
        self._roster.wake()
        self._watchdog.stop()
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
        """How many of R lanes are taken in the step that runs, or ran last, by requests that are not done."""
        return sum(lanes for each, lanes in self._in_lanes if not (each.denoised or each.future.done()))

    def run(self) -> None:
        """Step until closed or dead; sleep while there is nothing to do."""
        while self._roster.wait(until=lambda: self._closing):
            with self._turns, self._watchdog.watching():
                self.step()

    @torch.no_grad()
    def step(self) -> bool:
        """Run one forward pass for the requests whose turn it is, then finish pictures of those who are done.

        Nothing changes in a request until the forward pass has succeeded.

        Returns:
            Whether there was any request, so that it is worth another call; False once the engine is dead.
        """
        busy = bool(self._roster.snapshot())
        try:
            self._drop_unwanted()
            self._plan_next_group()
            chosen, plan = self._admit()
            self._in_lanes = [(request, request.lanes) for request in chosen]
            if plan is not None and chosen:
                self._advance(chosen, plan)
            self._finish_some()
        except Exception as error:  # noqa: BLE001 - whatever it is, every future has to hear of it
            self._die(error)
        return busy and not self.dead

    def _drop_unwanted(self) -> None:
        """Take out who was cancelled, and who has taken too long."""
        for request in self._roster.snapshot():
            if request.cancelled.is_set():
                self._roster.settle(request, Cancelled("The job was cancelled."))
            elif request.spent > self._deadline and not request.denoised:
                self._roster.settle(request, too_late(request, self._deadline))

    def _admit(self) -> tuple[list[Request], LanePlan | None]:
        """Choose who runs this step, and encode the prompts of those who join."""
        chosen: list[Request] = []
        plan: LanePlan | None = None

        def choose(requests: list[Request]) -> list[Request]:
            nonlocal chosen, plan
            candidates = [r for r in requests if not r.denoised and r.group in self._plans]
            chosen, plan = self._admission.choose(candidates)
            return chosen

        joining = self._roster.start_some(choose)
        if chosen:
            self._turn_on(chosen[0].group)
        stage = "encoding its prompt"
        refused = [r for r in joining if not self._attempt(r, stage, self._in_room, self._encode, r)]
        return [request for request in chosen if request not in refused], plan

    def _plan_next_group(self) -> None:
        """Find out for a new latent shape, or prompt length, whether it is exact at R lanes.

        That can take dozens of forward passes, so more urgent requests go first for a while.
        """
        requests = [request for request in self._roster.snapshot() if not request.denoised]
        new = [request for request in requests if request.group not in self._plans]
        self._new = {r.group.kind: self._new.get(r.group.kind, self.steps) for r in new}
        urgent = max((r.priority for r in requests if r.group in self._plans), default=-math.inf)
        due = [
            request
            for request in new
            if request.priority >= urgent
            or self._plans.takes_no_passes
            or self.steps - self._new[request.group.kind] >= POSTPONED
        ]
        if not due:
            return
        first = min(due, key=lambda request: (-request.priority, request.arrival))
        try:
            self._plan(first.group)
        except Exception as error:  # noqa: BLE001 - whatever it is, a future has to hear of it
            alike = [request for request in new if request.group.kind == first.group.kind]
            # What does not fit fits none of them; anything else may be a matter of the moment.
            hopeless = is_out_of_memory(error) and first.group not in self._plans
            for request in alike if hopeless else [first]:
                self._fail(request, error, stage="trying out its size")

    def _plan(self, group: Group) -> None:
        self._turn_on(group.kind)  # with the weights of its kind: a plan must not go by who comes first
        self._in_room(self._plans.add, group)
        while self._plans[group].short and self._make_room():
            self._plans.add(group)

    def _turn_on(self, group: Group) -> None:
        """Turn on the LoRAs of a group, whose texts have embeddings of their own."""
        self.lora_switch(group.loras)
        self._text.loras = group.loras

    def _encode(self, request: Request) -> bool:
        """Bring a joining request onto the device: its prompts and its noise."""
        self._watchdog.beat()
        began = time.perf_counter()
        heard = [self._text(text, what=what) for what, text in request.texts.items()]
        request.hear([condition for condition, _ in heard], self.model)
        request.warnings = [warning for _, warning in heard if warning]
        request.move_to(self.model.device)
        request.seconds["encode"] = time.perf_counter() - began
        return True

    def _advance(self, chosen: list[Request], plan: LanePlan) -> None:
        """Move the requests on by one forward pass; nothing in them changes before all is computed."""
        history, failure = None, None
        began = time.perf_counter()
        self._watchdog.beat()
        try:
            batch = self._batch_of(chosen, plan)
            history = batch.step(attempt=self._attempt)
            if history is not None:
                verdict = Verdict(batch.requests, history.latents[0][: len(batch.requests)])
                batch.accept(history)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold what the failed pass took
        self._watchdog.beat()
        if failure is not None:
            self._shrink(chosen, failure)
        elif history is not None:
            self.steps += 1
            lanes = sum(request.lanes for request in batch.requests)  # accepted, they may need others
            self._accept(verdict, history, plan)
            seconds = time.perf_counter() - began
            self._meter.note(lanes=lanes, room=plan.lanes, seconds=seconds)
            for request in chosen:
                request.spent += seconds

    def _shrink(self, chosen: list[Request], error: Exception) -> None:
        """Go on with fewer lanes after the device ran out of memory; fail who needs what there is not.

        A picture has one R in exact mode, so those who have begun start again. What another model holds is no
        reason for either.
        """
        self._batches.clear()
        if self._make_room():  # the next step tries again
            self._restart([request for request in chosen if request.schedule.table is None])
            return
        group = chosen[0].group
        before = self._plans[group].lanes
        self._turn_on(group.kind)
        plan = self._plans.shrink(group)
        if plan is None:
            for request in chosen:
                self._fail(request, error, stage="denoising")
            return
        begun = [r for r in self._roster.snapshot() if r.started and not r.denoised]
        touched = [request for request in begun if request.group.kind == group.kind]
        for request in touched:
            request.shrunk = f"The device ran out of memory with {before} lanes; rendered with {plan.lanes}."
        self._restart([r for r in touched if self.mode == "exact" or r.schedule.table is None])

    def _restart(self, requests: list[Request]) -> None:
        """Begin again: with other lanes, or because a noise scheduler that was called is a step ahead."""
        for request in requests:
            self._attempt(request, "starting again", request.restart, self.model, self._tables)

    def _batch_of(self, chosen: list[Request], plan: LanePlan) -> Batch:
        """Return the batch of these requests: the last one of their group, unless the company has changed."""
        left = {request.group for request in self._roster.snapshot()}
        self._batches = {group: batch for group, batch in self._batches.items() if group in left}
        batch = self._batches.get(chosen[0].group)
        if batch is None or not batch.fits(chosen):
            # Idle lanes keep the shape one of those that give every lane the same bits whatever its company;
            # and what is compiled or captured is so for one shape.
            fixed = self.mode == "exact" or self.model.launch != "eager"
            needed = sum(request.lanes for request in chosen)
            width = plan.width(needed) if fixed else needed
            full = plan.lanes if fixed else 0
            batch = Batch(chosen, self.model, width=width, full=full, parts=plan.parts)
            self._batches[chosen[0].group] = batch
        return batch

    def _accept(self, verdict: Verdict, history: History, plan: LanePlan) -> None:
        """Move every request on; whether its latents are finite was asked, and is read a step later."""
        for row, request in enumerate(verdict.requests):
            if request.future.done():
                continue  # its noise scheduler failed
            request.record = plan.record
            self._attempt(request, "reporting its progress", request.accept, history, row)
        self._hear()
        self._verdict = verdict

    def _hear(self) -> None:
        """Wait for the step that was asked about; fail the requests whose latents were not finite then."""
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            return
        for request, step in verdict.broken():
            self._roster.settle(request, not_finite(request, step))
        for request in verdict.requests:
            request.note_end()

    def _finish_some(self) -> None:
        """Decode the oldest of the denoised requests, up to half of them: so they do not pile up."""
        waiting = [r for r in self._roster.snapshot() if r.denoised and not r.cancelled.is_set()]
        if waiting:
            self._hear()
        for request in waiting[: (len(waiting) + 1) // 2]:
            if request.future.done() or self._closing:
                continue
            result = self._attempt(request, "decoding", self._in_room, self._picture, request)
            if result is not None:
                self._roster.settle(request, result)

    def _picture(self, request: Request) -> RenderResult:
        self._watchdog.beat()
        began = time.perf_counter()
        vae = self.model.vae
        pixels = decode(vae, self.model.kind.unscaled(vae, request.latents))
        request.seconds["decode"] = time.perf_counter() - began
        return RenderResult(
            pixels=pixels,
            latents=request.latents.cpu() if request.keep_latents else None,
            warnings=[*request.warnings, *([request.shrunk] if request.shrunk else [])],
            seconds=request.seconds,
            numerics=self._numerics(request.group, request.record),
        )

    def _attempt(self, request: Request, stage: str, action: Callable[..., T], *arguments: Any) -> T | None:
        """Run one request's part of a step; what it raises fails that request only, unless the device failed.

        Returns:
            What `action(*arguments)` returned, or None when it failed.
        """
        try:
            return action(*arguments)
        except Exception as error:  # noqa: BLE001 - any error of a sampler or a decoder is the request's own
            self._fail(request, error, stage=stage)
            return None

    def _in_room(self, action: Callable[..., T], *arguments: Any) -> T:
        """Run what may be repeated, again as long as it lacks memory that something else gives up."""
        while True:
            try:
                return action(*arguments)
            except Exception as error:
                if not (is_out_of_memory(error) and (self._make_room() or free_graphs(self.model))):
                    raise

    def _fail(self, request: Request, error: Exception, *, stage: str) -> None:
        if is_device_fault(error):
            raise error
        if is_out_of_memory(error) and self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self._roster.settle(
            request, explain(request, error, stage=stage, lanes=self._plans.lanes(request.group))
        )

    def _die(self, error: BaseException) -> None:
        """Fail every future: after a device fault nothing that is on the device can be trusted."""
        if self.dead:
            return  # the watchdog was faster
        cause = f"{type(error).__name__}: {error}"
        log.error("the engine died", action="engine_died", error=cause)
        self._roster.kill(f"The device or the engine failed ({cause}); the worker has to start again.")
        if self._on_death is not None:
            self._on_death(error)
