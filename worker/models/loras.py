"""LoRAs of a loaded model: read once at the start by diffusers' own loader, then switched without reading.

peft puts a layer around each one that a LoRA changes. Where none of its LoRAs is on, such a layer calls the
one inside and nothing else, so that a model without active LoRAs computes the very bytes that it does without
any. Switching calls what `set_adapters` of diffusers calls, on layers that are listed once.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
import weakref
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import structlog
import torch
from safetensors import SafetensorError, safe_open

from storage.errors import BadInputError, ModelLoadError
from storage.lora_files import LoraReference, check_lora_file, lora_facts
from storage.loras import OPTION, LoraSet, lora_set
from storage.parameters import JobParameters
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.models.threads import in_passing_thread

log = structlog.get_logger()

M = TypeVar("M", LoadedModel, LoadedPipeline)
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class UnfitLoraError(ModelLoadError):
    """A LoRA was made for another model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedLora:
    """A LoRA in a model.

    Attributes:
        adapter: its name inside peft, which takes no dots.
        sha256, short_hash: of its file, see `storage.lora_files.LoraFacts`.
    """

    adapter: str
    sha256: str
    short_hash: str


# What is on in a network, for which its first layer with LoRAs stands: wrappers may hide the network itself.
_on: MutableMapping[torch.nn.Module, LoraSet] = weakref.WeakKeyDictionary()


class LoraSwitch:
    """Turns a model's LoRAs on and off; only the thread that may run the model may call it.

    Several engines may have a switch for the same network: what is on is known of the network.

    Attributes:
        switches, seconds: how often the set was changed, and how long that took altogether.
    """

    def __init__(self, parts: Iterable[torch.nn.Module], loras: Mapping[str, LoadedLora]) -> None:
        """List the layers of `parts`, networks of a model, that its `loras` change."""
        networks = [list(_layers([part])) for part in parts] if loras else []
        self._networks = [layers for layers in networks if layers]
        self._loras = loras
        self.switches = 0
        self.seconds = 0.0

    def forget(self) -> None:
        """Take nothing for known: the next call turns everything anew."""
        for layers in self._networks:
            _on.pop(layers[0], None)

    def __call__(self, loras: LoraSet) -> None:
        """Turn on these LoRAs, with their weights, and no others."""
        networks = [layers for layers in self._networks if _on.get(layers[0]) != loras]
        if not networks:
            return
        began = time.perf_counter()
        weights = {self._loras[name].adapter: weight for name, weight in loras}
        for layers in networks:
            _on.pop(layers[0], None)  # while it is neither
            for layer in layers:
                own = {name: weight for name, weight in weights.items() if name in layer.scaling}
                _switch_layer(layer, own)
            _on[layers[0]] = loras
        self.switches += 1
        self.seconds += time.perf_counter() - began


def _switch_layer(layer: Any, weights: Mapping[str, float]) -> None:
    if not weights:
        layer.enable_adapters(enabled=False)
        return
    if layer.disable_adapters:
        layer.enable_adapters(enabled=True)
    layer.set_adapter(list(weights), inference_mode=True)
    for adapter, weight in weights.items():
        layer.set_scale(adapter, weight)


def _layers(parts: Iterable[Any]) -> Iterable[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - slow, and only LoRAs need it

    return (layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer))


def denoiser_of(model: LoadedModel | LoadedPipeline) -> Any:
    """Return the network that is called at every step."""
    return model.denoiser if isinstance(model, LoadedPipeline) else model.unet


def text_encoders_of(model: LoadedModel | LoadedPipeline) -> list[Any]:
    """Return the networks that read prompts and that LoRAs may change."""
    home = model.pipeline if isinstance(model, LoadedPipeline) else model
    found = [getattr(home, name, None) for name in _TEXT_ENCODERS]
    return [part for part in found if isinstance(part, torch.nn.Module)]


def loras_of(model: LoadedModel | LoadedPipeline, job: JobParameters) -> LoraSet:
    """Return the LoRAs that a job asks for.

    Raises:
        BadInputError: when the model was loaded without one of them.
    """
    asked = lora_set(job.options)
    missing = [name for name, _ in asked if name not in model.loras]
    if missing:
        has = f"has {', '.join(sorted(model.loras))}" if model.loras else "has none"
        raise BadInputError(
            f"There is no LoRA {', '.join(missing)} in this worker, which {has}; start every worker of model "
            f"{model.name} with --lora {missing[0]}=PATH, then `promptmill retry` the submission."
        )
    return asked


def lora_numerics(
    numerics: Mapping[str, Any], model: LoadedModel | LoadedPipeline, loras: LoraSet
) -> dict[str, Any]:
    """Return a picture's numerics record: that of its model, with the files of its LoRAs if it has any."""
    if not loras:
        return dict(numerics)
    files = {name: model.loras[name].sha256 for name, _ in loras}
    versions = {**numerics["versions"], "peft": importlib.metadata.version("peft")}
    return {**numerics, OPTION: files, "versions": versions}


def load_loras(model: M, references: Mapping[str, LoraReference], *, asked: Collection[str]) -> M:
    """Load LoRAs into a model, all of them turned off.

    Args:
        model: on its device; its networks are changed in place.
        references: by name.
        asked: names of those that must fit; another that was made for another model is left out.

    Returns:
        The model, which knows its LoRAs.

    Raises:
        ModelLoadError: when one is missing, damaged or of an unsafe format, or does not fit.
    """
    if not references:
        return model
    if find_spec("peft") is None:
        raise ModelLoadError("LoRAs need the package peft; run `pip install 'promptmill[worker]'`.")
    return in_passing_thread(lambda: _load_loras(model, references, asked))


def _load_loras(model: M, references: Mapping[str, LoraReference], asked: Collection[str]) -> M:
    pipeline = _pipeline_of(model)
    parts = [denoiser_of(model), *text_encoders_of(model)]
    found: dict[str, LoadedLora] = {}
    for number, (name, reference) in enumerate(sorted(references.items())):
        _check_safetensors(reference)
        adapter = f"lora{number}"
        try:
            _load(pipeline, parts, reference, adapter, model=model.name)
        except UnfitLoraError as error:
            if name in asked:
                raise
            log.warning("LoRA is left out", action="lora", lora=name, reason=str(error))
            continue
        facts = lora_facts(Path(reference.path))
        found[name] = LoadedLora(adapter=adapter, sha256=facts.sha256, short_hash=facts.short_hash)
        log.info("LoRA loaded", action="lora", lora=name, revision=facts.sha256[:12])
    switch = LoraSwitch(parts, found)
    switch.forget()  # loading turns on what it loads
    switch(())
    return replace(model, loras=found)


def _pipeline_of(model: LoadedModel | LoadedPipeline) -> Any:
    """Return a pipeline of the model's own networks, to load LoRAs with."""
    if isinstance(model, LoadedPipeline):
        if not hasattr(model.pipeline, "load_lora_weights"):
            raise ModelLoadError(f"A {model.family} takes no LoRAs in diffusers; leave --lora out.")
        return model.pipeline
    library: Any = diffusers  # whose constructors have no types
    own = {
        "vae": model.vae,
        "text_encoder": model.text_encoder,
        "tokenizer": model.tokenizer,
        "unet": model.unet,
        "scheduler": library.DDIMScheduler(steps_offset=1, clip_sample=False),  # it runs nothing
    }
    if model.text_encoder_2 is not None:
        second = {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        return library.StableDiffusionXLPipeline(**own, **second, add_watermarker=False)
    return library.StableDiffusionPipeline(
        **own, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _check_safetensors(reference: LoraReference) -> None:
    check_lora_file(reference)
    try:
        with safe_open(reference.path, framework="np"):
            return
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"LoRA {reference.name}: {reference.path} is no complete safetensors file ({error}); download it "
            f"again."
        ) from error


def _load(pipeline: Any, parts: Sequence[Any], reference: LoraReference, adapter: str, *, model: str) -> None:
    """Load one LoRA by diffusers' own loader, which knows the formats of trainers."""
    reason, cause = "none of its weights has a place there", None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several is the point
            pipeline.load_lora_weights(
                reference.path, adapter_name=adapter, use_safetensors=True, local_files_only=True
            )
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"LoRA {reference.name} does not fit into the device's memory; load fewer."
        ) from error
    except Exception as error:  # noqa: BLE001 - the libraries raise almost anything for what does not fit
        reason, cause = " ".join(str(error).split())[:300] or type(error).__name__, error
        own = []
    else:
        own = [layer for layer in _layers(parts) if adapter in layer.scaling]
    if not own:
        for layer in _layers(parts):
            layer.delete_adapter(adapter)
        raise UnfitLoraError(
            f"LoRA {reference.name} ({reference.path}) does not fit model {model} ({reason.rstrip('.')}); "
            f"take one that was made for this kind of model, or leave it out."
        ) from cause
    for layer in own:
        _settle(layer, adapter)


def _settle(layer: Any, adapter: str) -> None:
    """Bring a LoRA's weights to where, and to what, the layer's own are."""
    weight = layer.get_base_layer().weight
    layer.eval()
    for name in layer.adapter_layer_names:
        weights = getattr(layer, name)
        if adapter in weights and isinstance(weights[adapter], torch.nn.Module):
            weights[adapter].to(device=weight.device, dtype=weight.dtype)
