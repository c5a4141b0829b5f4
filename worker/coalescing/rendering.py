"""A job's own copy of a pipeline, called as any user of diffusers would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from worker.coalescing.arguments import call_arguments, own_scheduler
from worker.coalescing.request import PipelineRequest
from worker.coalescing.standin import Post, StandIn
from worker.models.pipeline import LoadedPipeline


def own_copy(model: LoadedPipeline, standin: Any, scheduler: Any) -> Any:
    """Copy a pipeline for one job: models are shared, a stand-in for the denoiser, its own noise scheduler.

    Set past `DiffusionPipeline.__setattr__`, which would write them into the pipeline's config.
    """
    own = copy.copy(model.pipeline)
    own.__dict__[model.denoiser_name] = standin
    own.__dict__["scheduler"] = scheduler
    return own


def call_pipeline(
    model: LoadedPipeline, request: PipelineRequest, *, post: Post, go_on: Callable[[], None], shared: bool
) -> Any:
    """Run a request's pipeline from prompt to picture.

    Args:
        model: whose pipeline.
        request: hears of its progress.
        post: runs a call of the denoiser.
        go_on: called after each step; raises what is to end the pipeline.
        shared: whether other pipelines run at the same time.

    Returns:
        The picture, (1, height, width, 3) float32 in 0..1 for every pipeline that was met.
    """
    job = request.parameters
    steps = job.num_inference_steps or 1

    def on_step(done: int, of: int) -> None:
        request.note_step(done, of or steps)
        go_on()

    def post_and_count(inputs: dict[str, Any]) -> Any:
        outputs = post(inputs)
        if "callback_on_step_end" not in arguments:  # then calls are all that is seen of steps
            request.note_step(min(request.calls, steps), steps)
        return outputs

    standin = StandIn(model.denoiser, post_and_count, shared=shared)
    own = own_copy(model, standin, own_scheduler(model.pipeline, job))
    arguments = call_arguments(own, job, on_step=on_step, pictures=request.pictures)
    return own(**arguments).images
