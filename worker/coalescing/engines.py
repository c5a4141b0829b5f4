"""All that renders with one model: its engine for prompts, and engines for jobs that begin with a picture.

These are made when the first such job comes: most workers never meet one. All share the model's weights, and
take turns on its device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import structlog

from storage.errors import BadInputError
from storage.inputs import INPUTS, shown_input
from storage.parameters import JobParameters
from worker.coalescing.image_pipelines import image_pipeline, other_architecture, possible_kinds
from worker.coalescing.pictures import Kind, Pictures, kind_of
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.device_turns import DeviceTurns
from worker.engine.engine import Engine
from worker.engine.errors import EngineDeadError, Released
from worker.engine.faults import has_no_room
from worker.engine.ticket import Ticket
from worker.engine.watchdog import Watchdog
from worker.models.controlnet import ControlNet
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline

log = structlog.get_logger()
MakeEngine = Callable[[LoadedPipeline, Kind], PipelineEngine]


class Engines:
    """The engines of one worker; to its users as `Engine` is.

    Attributes:
        main: renders jobs from prompts alone.
        model, lanes, lanes_per_job, numerics: the main engine's.
    """

    def __init__(
        self,
        main: Engine | PipelineEngine,
        *,
        make: MakeEngine,
        turns: DeviceTurns,
        controlnet: ControlNet | None = None,
        alone: bool = True,
        make_room: Callable[[], bool] = has_no_room,
        on_death: Callable[[BaseException], None] | None = None,
        stall: float = 1800.0,
    ) -> None:
        """Begin with the main engine.

        Args:
            main: not started yet.
            make: makes the engine of another kind, on the main engine's device.
            turns: of the device, which `main` and all that `make` makes take.
            controlnet: the worker's.
            alone: whether this is the worker's only model, which its ControlNet has to fit.
            make_room: see `Engine`.
            on_death: likewise.
            stall: likewise, while another engine is made.

        Raises:
            BadInputError: for a ControlNet that this model's pipeline cannot be steered by.
        """
        self.main = main
        self.model: LoadedModel | LoadedPipeline = main.model
        self.lanes, self.lanes_per_job, self.numerics = main.lanes, main.lanes_per_job, main.numerics
        self._make, self._turns, self._controlnet = make, turns, controlnet
        self._make_room, self._on_death, self._stall = make_room, on_death, stall
        self._kinds = possible_kinds(self.model, controlnet)
        if controlnet and alone:
            _check_controlnet(self.model, controlnet, self._kinds)
        elif controlnet and other_architecture(self.model, controlnet):
            self._kinds = possible_kinds(self.model, None)  # it is for another model of this worker
        self._making = threading.Lock()
        self._others: dict[Kind, PipelineEngine] = {}
        self._closed = False

    @property
    def takes(self) -> list[str]:
        """Which of `storage.inputs.INPUTS` jobs can begin with."""
        needed = {name for kind in self._kinds for name in kind.needs}
        return [name for name in INPUTS if name in needed]

    def start(self) -> None:
        """Start the main engine; the others start when they are made."""
        self.main.start()

    def submit(
        self, parameters: JobParameters, *, priority: int = 0, pictures: Pictures | None = None
    ) -> Ticket:
        """Hand in a job; see `Engine.submit`.

        Args:
            parameters: fields that are None get the model's defaults.
            priority: higher goes first, among jobs of one engine.
            pictures: what it begins with, decoded, by their name in INPUTS.

        Raises:
            BadInputError: when the job cannot be rendered with this model or this worker.
            Released, EngineDeadError: likewise.
        """
        kind = kind_of(parameters.options)
        if kind is Kind.TEXT:
            return self.main.submit(parameters, priority=priority)
        return self._engine(kind).submit(parameters, priority=priority, pictures=pictures or {})

    def numerics_of(self, parameters: JobParameters) -> dict[str, Any]:
        """Return the record that a job's picture gets if it is rendered now; see `Engine.numerics_of`."""
        kind = kind_of(parameters.options)
        engine = self.main if kind is Kind.TEXT else self._engine(kind)
        return engine.numerics_of(parameters)

    def release_waiting(self) -> int:
        """Drain: give back every request that has not begun (Released) and take no new ones."""
        self._closed = True
        return sum(engine.release_waiting() for engine in self._all())

    def close(self, *, timeout: float | None = None) -> None:
        """Stop after the current step; what is left is given back (Released)."""
        self._closed = True
        for engine in self._all():
            engine.close(timeout=timeout)

    @property
    def lanes_used(self) -> int:
        """How many of R lanes requests take: engines take turns, so those of the one that uses most."""
        return min(self.lanes, max(engine.lanes_used for engine in self._all()))

    def _all(self) -> list[Engine | PipelineEngine]:
        return [self.main, *list(self._others.values())]

    def _engine(self, kind: Kind) -> PipelineEngine:
        """Return the engine of a kind; the first one who asks makes it."""
        with self._making:
            if kind not in self._others:
                if self._closed:
                    raise Released("The engine takes no new requests, because it drains.")
                self._others[kind] = self._made(kind)
            return self._others[kind]

    def _made(self, kind: Kind) -> PipelineEngine:
        if kind not in self._kinds:
            raise BadInputError(self._refusal(kind))
        log.info("preparing for jobs with pictures", action="prepare", kind=kind.name.lower())
        while True:
            try:
                with self._turns:
                    pipeline = self._pipeline(kind)
                    with self._watching(pipeline):
                        engine = self._make(pipeline, kind)
                break
            except Exception as error:
                if is_device_fault(error):
                    self._die(error)
                if not is_out_of_memory(error):
                    raise
            if not self._make_room():  # outside of the except, where the failed one would hold its memory
                raise BadInputError(f"There is no memory left for {self._words(kind)} beside the model.")
        if self._closed:  # meanwhile
            engine.close()
            raise Released("The engine takes no new requests, because it drains.")
        engine.start()
        return engine

    @contextmanager
    def _watching(self, pipeline: LoadedPipeline) -> Iterator[None]:
        """Watch the device, on which a pipeline is tried out that no engine's own watchdog knows yet."""
        watchdog = Watchdog(self._stall, self._tell_of_death)
        beats = pipeline.denoiser.register_forward_pre_hook(lambda *_: watchdog.beat())
        watchdog.start()
        try:
            with watchdog.watching():
                yield
        finally:
            watchdog.stop()
            beats.remove()

    def _pipeline(self, kind: Kind) -> LoadedPipeline:
        try:
            return image_pipeline(self.model, kind, self._controlnet)
        except (TypeError, ValueError) as error:
            # A class of diffusers that wants parts which this model does not have.
            raise BadInputError(f"{self._refusal(kind)} ({error})") from error

    def _die(self, error: Exception) -> NoReturn:
        """After a device fault nothing that is on the device can be trusted."""
        self._tell_of_death(error)
        raise EngineDeadError(str(error)) from error

    def _tell_of_death(self, error: BaseException) -> None:
        if self._on_death is not None:
            self._on_death(error)

    def _refusal(self, kind: Kind) -> str:
        if "control_image" in kind.needs:
            if self._controlnet is None:
                return (
                    "This worker has no ControlNet, so it cannot render a job with a control image; start "
                    "one with --controlnet NAME=REPO_OR_PATH."
                )
            if other_architecture(self.model, self._controlnet):
                return (
                    f"This worker's ControlNet {self._controlnet.name} was made for another model than "
                    f"{self.model.name}; leave the control image out, or start another worker for it."
                )
        words = self._words(kind)
        return f"A {self.model.family} takes no {words}, as diffusers has no pipeline for that; leave it out."

    @staticmethod
    def _words(kind: Kind) -> str:
        return " and ".join(shown_input(name) for name in kind.needs)


def _check_controlnet(
    model: LoadedModel | LoadedPipeline, controlnet: ControlNet, kinds: Collection[Kind]
) -> None:
    """Refuse a ControlNet at the start that would fail every job."""
    if not any("control_image" in kind.needs for kind in kinds):
        raise BadInputError(
            f"--controlnet cannot be used with a {model.family}, for which diffusers has no such pipeline; "
            f"leave it out."
        )
    other = other_architecture(model, controlnet)
    if other:
        raise BadInputError(
            f"ControlNet {controlnet.name} was made for another model than {model.name} ({other}); take one "
            f"that was made for a {model.family}, or leave --controlnet out."
        )
