"""From a worker's order to an engine that holds its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.lora_files import lora_files
from storage.models import parse_model
from storage.settings import Settings
from storage.worker_options import check_loras_launch
from worker.coalescing.engines import Engines
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.device_turns import DeviceTurns
from worker.engine.engine import Engine
from worker.engine.faults import has_no_room
from worker.engine.tuning import Tunings
from worker.models.choice import load
from worker.models.controlnet import load_controlnet
from worker.models.device import choose_device, choose_dtype, faster_precisions, make_repeatable
from worker.models.loras import load_loras
from worker.models.pipeline import LoadedPipeline
from worker.models.threads import set_threads
from worker.orders import ChildOrder
from worker.stages.tables import Tables


def open_engine(
    order: ChildOrder,
    settings: Settings,
    *,
    tunings: Tunings,
    on_death: Callable[[BaseException], None],
    make_room: Callable[[], bool] = has_no_room,
    alone: bool = True,
    crowded: bool = False,
) -> Engines:
    """Load the model onto its device, and choose how it is run.

    Args:
        order: what the supervisor asked for.
        settings: of this process.
        tunings: where the choice is looked up and kept.
        on_death: see `Engine`.
        make_room: likewise.
        alone: whether it is the worker's only model, which all LoRAs of its command line must fit.
        crowded: see `Engine`; the engines that are made later ask for room themselves.

    Returns:
        The engines, not started yet.

    Raises:
        ModelLoadError: the model cannot be loaded.
        BadInputError: the options cannot be used with this device or model.
        torch.OutOfMemoryError: it does not fit; on a crowded device another model may leave first.
    """
    make_repeatable()
    options = order.options
    device = choose_device(order.device)
    dtype = choose_dtype(options.dtype, device, mode=options.mode)
    loras = lora_files(settings.loras, options.loras)
    if loras:
        check_loras_launch(options.launch)
    asked = lora_files((), options.loras) if alone else {}
    model = load(parse_model(options.model), device=device, dtype=dtype)
    given = options.controlnet and parse_model(options.controlnet)
    controlnet = load_controlnet(given, device=device, dtype=dtype) if given else None
    turns = DeviceTurns()
    shared: dict[str, Any] = {
        "mode": options.mode,
        "tunings": tunings,
        "turns": turns,
        "on_death": on_death,
        "make_room": make_room,
        "stall": settings.stall,
        "deadline": settings.deadline,
    }
    main: Engine | PipelineEngine
    if isinstance(model, LoadedPipeline):
        set_threads(model.denoiser, device)  # ahead of LoRAs, whose weights must not count
        model = load_loras(model, loras, asked=asked)
        main = PipelineEngine(model, lanes=options.lanes, launch=options.launch, crowded=crowded, **shared)
    else:
        set_threads(model.unet, device)
        model = load_loras(model, loras, asked=asked)
        main = Engine(
            model,
            lanes=options.lanes,
            precisions=faster_precisions(options.dtype, device, mode=options.mode),
            launch=options.launch,
            tables=Tables(settings.tables_path),
            crowded=crowded,
            **shared,
        )
    # R is the main engine's: it was measured on the same denoiser, and one flag pins both.
    return Engines(
        main,
        make=lambda pipeline, kind: PipelineEngine(pipeline, lanes=main.lanes, kind=kind, **shared),
        turns=turns,
        controlnet=controlnet,
        alone=alone,
        make_room=make_room,
        on_death=on_death,
        stall=settings.stall,
    )
