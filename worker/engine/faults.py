"""What an exception means to a request: the error for its future, in a sentence."""

from __future__ import annotations

from worker.device_faults import is_out_of_memory
from worker.engine.errors import DeadlineError, EngineError, OutOfMemoryError, RenderError
from worker.engine.request import Request


def has_no_room() -> bool:
    """Say that nothing on the device can make room: the engine's own model is all that is there."""
    return False


def explain(request: Request, error: Exception, *, stage: str, lanes: int) -> EngineError:
    """Turn what a stage raised for one request into the error for its future."""
    if isinstance(error, EngineError):
        return error
    job = request.parameters
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"The device ran out of memory while {stage} at {job.width}x{job.height} with {lanes} lanes; "
            f"start the worker with fewer --lanes, or ask for a smaller picture."
        )
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return RenderError(
        f"The job failed while {stage} at step {request.evaluation + 1} of {len(request.schedule)} with "
        f"sampler {job.sampler} ({type(error).__name__}: {reason}); try other settings.",
        permanent=True,
    )


def not_finite(request: Request, step: int) -> RenderError:
    """Name a request whose latents became infinite or not a number in a step, counted from 1."""
    job = request.parameters
    return RenderError(
        f"The latents are not finite after step {step} of {len(request.schedule)} (sampler "
        f"{job.sampler}, guidance {job.guidance_scale:g}); try lower guidance, another sampler, or "
        f"--dtype float32.",
        permanent=True,
    )


def too_late(request: Request, deadline: float) -> DeadlineError:
    """Name a request whose steps took longer than they may."""
    job = request.parameters
    return DeadlineError(
        f"The job was stopped after step {request.evaluation} of {len(request.schedule)}, since its steps "
        f"took more than {deadline:g} s at {job.width}x{job.height}; ask for fewer steps or a smaller "
        f"picture, or raise PROMPTMILL_DEADLINE.",
        permanent=True,
    )
