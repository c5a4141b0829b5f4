"""From a worker's order to an engine that holds its model."""

from __future__ import annotations

from collections.abc import Callable

from storage.models import parse_model
from storage.settings import Settings
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.engine import Engine
from worker.engine.faults import has_no_room
from worker.engine.tuning import Tunings
from worker.models.choice import load
from worker.models.device import choose_device, choose_dtype, faster_dtypes, make_repeatable
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
) -> Engine | PipelineEngine:
    """Load the model onto its device, and choose how it is run.

    Args:
        order: what the supervisor asked for.
        settings: of this process.
        tunings: where the choice is looked up and kept.
        on_death: see `Engine`.
        make_room: likewise.

    Returns:
        The engine, not started yet.

    Raises:
        ModelLoadError: the model cannot be loaded.
        BadInputError: the options cannot be used with this device or model.
    """
    make_repeatable()
    options = order.options
    device = choose_device(order.device)
    dtype = choose_dtype(options.dtype, device, mode=options.mode)
    model = load(parse_model(options.model), device=device, dtype=dtype)
    if isinstance(model, LoadedPipeline):
        set_threads(model.denoiser, device)
        return PipelineEngine(
            model,
            lanes=options.lanes,
            mode=options.mode,
            launch=options.launch,
            tunings=tunings,
            on_death=on_death,
            make_room=make_room,
            stall=settings.stall,
            deadline=settings.deadline,
        )
    set_threads(model.unet, device)
    return Engine(
        model,
        lanes=options.lanes,
        mode=options.mode,
        dtypes=faster_dtypes(options.dtype, device, mode=options.mode),
        launch=options.launch,
        tunings=tunings,
        tables=Tables(settings.tables_path),
        on_death=on_death,
        make_room=make_room,
        stall=settings.stall,
        deadline=settings.deadline,
    )
