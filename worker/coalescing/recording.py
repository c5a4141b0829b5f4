"""What calls a pipeline makes of its denoiser: recorded once, when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from storage.parameters import JobParameters
from storage.samplers import OWN_SAMPLER
from worker.coalescing.arguments import call_arguments, own_scheduler
from worker.coalescing.call import Modes, run
from worker.coalescing.learning import TIMES
from worker.coalescing.pictures import Kind, example
from worker.coalescing.proof import Recording, Sharing, learn_sharing
from worker.coalescing.rendering import own_copy
from worker.coalescing.standin import StandIn, changes_of
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.models.pipeline import LoadedPipeline
from worker.models.threads import in_passing_thread

STEPS = 2
GUIDED, UNGUIDED = 5.0, 1.0
_PROMPT = "a red fox in the snow"


@torch.no_grad()
def find_sharing(model: LoadedPipeline, kind: Kind = Kind.TEXT) -> Sharing:
    """Learn how a model's jobs can share forward passes, from a few steps with one prompt and with two.

    Whatever keeps the pipeline from being recorded is a reason not to share; its jobs will say it better.

    Raises:
        torch.OutOfMemoryError, RuntimeError: when two prompts at once do not fit into the device's memory, or
            the device failed.
    """
    try:
        reason = _marks(model.denoiser)
        pairs: list[tuple[Recording, Recording]] = []
        for guidance_scale in (GUIDED, UNGUIDED):
            one, changed = record(model, kind, prompts=1, guidance_scale=guidance_scale)
            reason = reason or changed
            if reason:
                return Sharing(reason=reason)
            two, _ = record(model, kind, prompts=TIMES, guidance_scale=guidance_scale)
            if len(one) != len(two):
                return Sharing(reason="it calls its denoiser more often for more prompts")
            pairs += zip(one, two, strict=True)
        return learn_sharing(model.denoiser, pairs)
    except Exception as error:
        # A pipeline may raise anything.
        if is_device_fault(error) or is_out_of_memory(error):
            raise
        return Sharing(reason=f"it could not be recorded ({type(error).__name__}: {error})")


def sharing_that_fits(model: LoadedPipeline, kind: Kind, make_room: Callable[[], bool] | None) -> Sharing:
    """Call `find_sharing`; where the memory is too small, make room and try again.

    Args:
        model: on its device.
        kind: of its jobs.
        make_room: see `Engine`; None lets the caller of the caller make it.

    Raises:
        torch.OutOfMemoryError, RuntimeError: as `find_sharing` does; for the memory only without `make_room`.
    """
    while True:
        try:
            # In a thread that starts now: one of a pool has the number of threads that another model chose.
            return in_passing_thread(lambda: find_sharing(model, kind))
        except Exception as error:
            if make_room is None or not is_out_of_memory(error):
                raise
        if not make_room():  # outside of the except, where the failed one would hold its memory
            return Sharing(reason="two prompts at once do not fit into the device's memory")


def record(
    model: LoadedPipeline, kind: Kind = Kind.TEXT, *, prompts: int, guidance_scale: float
) -> tuple[list[Recording], str]:
    """Run a pipeline for two steps, and record the calls of its denoiser.

    Returns:
        The calls, and what the pipeline changed in its denoiser ("" for nothing).
    """
    calls: list[Recording] = []
    changed = ""
    denoiser, device_type = model.denoiser, model.device.type
    processors = _processors(denoiser)

    def post(inputs: dict[str, Any]) -> Any:
        nonlocal changed
        if _processors(denoiser) != processors:
            changed = "it sets attention processors of its own for each job"
        modes = Modes.here(device_type)
        outputs = run(denoiser, inputs, modes)
        calls.append(Recording(inputs=inputs, modes=modes, outputs=outputs))
        return outputs

    standin = StandIn(denoiser, post)
    width, height = model.native_size
    options, pictures = example(kind, (width, height))
    job = JobParameters(
        prompt=_PROMPT,
        seed=0,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        width=width,
        height=height,
        sampler=OWN_SAMPLER,
        options=options,
    )
    own = own_copy(model, standin, own_scheduler(model.pipeline, job))
    arguments = call_arguments(own, job, on_step=lambda _step, _of: None, pictures=pictures)
    for name in ("prompt", "negative_prompt", "image", "mask_image", "control_image"):
        if name in arguments:
            arguments[name] = [arguments[name]] * prompts
    own(**arguments | {"output_type": "latent"})
    if changes_of(standin):
        changed = f"it sets {changes_of(standin)[0]} of its denoiser"
    return calls, changed


def _marks(denoiser: Any) -> str:
    """Say what about a denoiser remembers calls or moves weights between them; "" for nothing."""
    if getattr(denoiser, "is_cache_enabled", False):
        return "its denoiser has a cache"
    for module in denoiser.modules():
        if hasattr(module, "_hf_hook"):
            return "its denoiser is offloaded"
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if hooks:
            return f"its denoiser has hooks ({', '.join(hooks)})"
    return ""


def _processors(denoiser: Any) -> dict[str, int]:
    """Return which attention processors are set, by identity."""
    try:
        return {name: id(processor) for name, processor in denoiser.attn_processors.items()}
    except (AttributeError, TypeError):
        return {}
