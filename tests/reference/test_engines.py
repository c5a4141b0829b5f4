"""The engines of one worker: what each turns on in the networks that they share."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import BadInputError
from storage.lora_files import parse_lora_file
from storage.models import ModelReference
from storage.parameters import JobParameters
from tests.device import DEVICE
from tests.loras import write_lora
from tests.pipelines import clip_tokenizer, load_tiny, stable_diffusion_xl
from tests.reference.test_image_inputs import alone, engines_of, jobs_of, pictures_of, pixels_of, rendered
from tests.reference.test_loras import fresh
from worker.coalescing.engines import Engines
from worker.coalescing.image_pipelines import image_pipeline
from worker.coalescing.pictures import Kind
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.device_faults import is_device_fault
from worker.engine.device_turns import DeviceTurns
from worker.engine.engine import Engine
from worker.engine.errors import EngineDeadError
from worker.engine.forward import Lanes, predict_noise
from worker.engine.trial import native_group, random_lanes
from worker.models.choice import load
from worker.models.controlnet import ControlNet
from worker.models.load import LoadedModel
from worker.models.loras import load_loras

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


@pytest.fixture(scope="module")
def attach(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """Return a function that loads two LoRAs into a model."""
    folder: Path = tmp_path_factory.mktemp("loras")
    files = {name: write_lora(pipeline, folder / f"{name}.safetensors", seed=ord(name)) for name in "ab"}
    references = {name: parse_lora_file(f"{name}={path}") for name, path in files.items()}
    return lambda model: load_loras(model, references, asked=references)


@pytest.fixture
def xl(tmp_path: Path) -> LoadedModel:
    """A tiny random Stable Diffusion XL, as a worker loads it."""
    stable_diffusion_xl((clip_tokenizer(), clip_tokenizer())).save_pretrained(tmp_path / "xl")
    loaded = load(ModelReference(name="xl", source=str(tmp_path / "xl")), device=DEVICE, dtype=torch.float32)
    assert isinstance(loaded, LoadedModel)
    return loaded


def with_lora(job: JobParameters, *names: str) -> JobParameters:
    """Return a job that asks for these LoRAs."""
    return replace(job, options=job.options | ({"loras": [[name, 1.0] for name in names]} if names else {}))


def test_engines_that_share_networks_know_what_is_on_in_them(attach: Callable[[Any], Any]) -> None:
    """Jobs with and without pictures and LoRAs, side by side, have the bytes that each has alone."""
    text, begun = (jobs_of(kind, ("euler",))[0] for kind in (Kind.TEXT, Kind.IMG2IMG))
    jobs = [with_lora(job, *names) for names in (("a",), (), ("b",)) for job in (text, begun)]
    model = attach(fresh())
    together, each = (pixels_of(engines_of(model), groups) for groups in ([jobs], [[job] for job in jobs]))
    assert together == each
    assert len(set(each)) == len(each), "the LoRAs change nothing"
    assert together[2:4] == pixels_of(engines_of(fresh()), [[text], [begun]])


def test_a_model_that_knows_no_pictures_has_a_pipeline_that_does(xl: LoadedModel) -> None:
    """Stable Diffusion XL of the vectorised loop, by diffusers' own code over its parts."""
    engine = PipelineEngine(image_pipeline(xl, Kind.IMG2IMG, None), lanes=8, kind=Kind.IMG2IMG)
    jobs = [replace(job, negative_prompt="") for job in jobs_of(Kind.IMG2IMG, ("default",))]
    for job, picture in zip(jobs, rendered(engine, jobs), strict=True):
        twin = image_pipeline(xl, Kind.IMG2IMG, None).pipeline
        twin.scheduler = type(twin.scheduler).from_config(twin.scheduler.config)
        difference = np.abs(picture.astype(int) - alone(twin, job, Kind.IMG2IMG).astype(int)).max()
        assert difference <= 1, job


def test_a_record_of_a_job_with_pictures_tells_the_configs_of_a_single_file(model: LoadedModel) -> None:
    """The same file with other configs is another model, and no picture of it may be taken for this one's."""
    records = []
    for configs in ("a" * 64, "b" * 64):
        single = replace(model, config_revision=configs)
        records.append(PipelineEngine(image_pipeline(single, Kind.IMG2IMG, None), lanes=2).numerics)
    assert [record["config_revision"] for record in records] == ["a" * 64, "b" * 64]


def _engines(model: LoadedModel, failures: list[Exception], **rest: Any) -> Engines:
    turns = DeviceTurns()

    def make(pipeline: Any, kind: Kind) -> PipelineEngine:
        if failures:
            raise failures.pop()
        return PipelineEngine(pipeline, lanes=2, kind=kind, turns=turns)

    return Engines(Engine(model, lanes=2, turns=turns), make=make, turns=turns, **rest)


def test_an_engine_that_has_no_room_asks_for_it(model: LoadedModel) -> None:
    """What another model holds does not cost a job its picture; where nothing can go, it is one sentence."""
    (job, *_) = jobs_of(Kind.IMG2IMG, ("euler",))
    asked: list[bool] = []
    engines = _engines(model, [torch.OutOfMemoryError("full")], make_room=lambda: not asked.append(True))
    engines.start()
    assert engines.submit(job, pictures=pictures_of(job)).future.result(timeout=120).pixels.any()
    engines.close()
    assert asked == [True]
    full = _engines(model, [torch.OutOfMemoryError("full")])
    with pytest.raises(BadInputError, match="no memory left for init image"):
        full.submit(job, pictures=pictures_of(job))


def test_both_kinds_of_engines_hear_a_jobs_priority(model: LoadedModel) -> None:
    """A job with pictures is as urgent as one without."""
    engines = _engines(model, [])
    jobs = [jobs_of(kind, ("euler",))[0] for kind in (Kind.TEXT, Kind.IMG2IMG)]
    tickets = [engines.submit(job, priority=3, pictures=pictures_of(job)) for job in jobs]
    engines.close()
    assert [ticket._request.priority for ticket in tickets] == [3, 3]  # type: ignore[attr-defined]


def test_engines_that_take_turns_use_no_more_lanes_than_there_are(model: LoadedModel) -> None:
    """One of them steps at a time, and one for pictures may have more lanes than the main one."""
    engines = _engines(model, [])
    assert engines.lanes_used == 0
    engines._others[Kind.IMG2IMG] = SimpleNamespace(lanes_used=1)  # type: ignore[assignment]
    engines.main = SimpleNamespace(lanes_used=1)  # type: ignore[assignment]
    assert engines.lanes_used == 1
    engines._others[Kind.INPAINT] = SimpleNamespace(lanes_used=4)  # type: ignore[assignment]
    assert engines.lanes_used == 2


def test_a_device_that_fails_while_an_engine_is_made_ends_the_process(model: LoadedModel) -> None:
    """As it does at any other time: the job is not charged with it."""
    (job, *_) = jobs_of(Kind.IMG2IMG, ("euler",))
    heard: list[BaseException] = []
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert is_device_fault(fault)
    engines = _engines(model, [fault], on_death=heard.append)
    with pytest.raises(EngineDeadError):
        engines.submit(job, pictures=pictures_of(job))
    assert heard == [fault]


def test_a_controlnet_fits_the_only_model_or_is_left_out() -> None:
    """Of several models some may have no such pipeline, and render what they can."""
    net = ControlNet(name="net", revision="f" * 64, network=torch.nn.Identity())
    lumina = load_tiny("lumina2")
    main: Any = SimpleNamespace(model=lumina, lanes=2, lanes_per_job=2, numerics={})
    rest: Any = {"make": lambda *_: None, "turns": DeviceTurns(), "controlnet": net}
    with pytest.raises(BadInputError, match="--controlnet"):
        Engines(main, **rest)
    assert "control_image" not in Engines(main, alone=False, **rest).takes


def test_a_controlnet_of_another_architecture_is_refused_at_the_start(model: LoadedModel) -> None:
    """One for Stable Diffusion 2 beside 1.5, say: its jobs would all fail."""
    own = model.unet.config

    def net(**config: Any) -> ControlNet:
        return ControlNet(name="net", revision="f" * 64, network=SimpleNamespace(config=config))

    main: Any = SimpleNamespace(model=model, lanes=2, lanes_per_job=2, numerics={})
    rest: Any = {"make": lambda *_: None, "turns": DeviceTurns()}
    with pytest.raises(BadInputError, match=r"for another model than .*cross_attention_dim 1024, and not"):
        Engines(main, controlnet=net(cross_attention_dim=1024), **rest)
    with pytest.raises(BadInputError, match="block_out_channels"):
        Engines(main, controlnet=net(block_out_channels=[*own.block_out_channels, 8]), **rest)
    fits = net(block_out_channels=list(own.block_out_channels), cross_attention_dim=own.cross_attention_dim)
    assert "control_image" in Engines(main, controlnet=fits, **rest).takes
    assert "control_image" in Engines(main, controlnet=net(joint_attention_dim=None), **rest).takes
    one_of_several = Engines(main, controlnet=net(cross_attention_dim=1024), alone=False, **rest)
    assert "control_image" not in one_of_several.takes
    with pytest.raises(BadInputError, match="ControlNet net was made for another model than"):
        one_of_several.submit(replace(jobs_of(Kind.TEXT, ("euler",))[0], options={"control_image": "a" * 64}))


def test_a_device_that_hangs_while_an_engine_is_made_is_noticed(model: LoadedModel) -> None:
    """No engine's own watchdog looks there yet."""
    heard, (job, *_) = queue.Queue[BaseException](), jobs_of(Kind.IMG2IMG, ("euler",))

    def hang(_pipeline: Any, _kind: Kind) -> PipelineEngine:
        error = heard.get(timeout=60)
        heard.put(error)
        raise error

    turns = DeviceTurns()
    engines = Engines(
        Engine(model, lanes=2, turns=turns), make=hang, turns=turns, on_death=heard.put, stall=0.2
    )
    with pytest.raises(EngineDeadError, match=r"has not answered for 0\.2 s"):
        engines.submit(job, pictures=pictures_of(job))


def test_a_making_that_takes_long_but_goes_on_is_left_alone(model: LoadedModel) -> None:
    """Each forward pass is a sign of life: trying out a large model may take longer than one may."""
    heard: list[BaseException] = []
    (job, *_) = jobs_of(Kind.IMG2IMG, ("euler",))

    def slow(pipeline: Any, kind: Kind) -> PipelineEngine:
        engine = PipelineEngine(pipeline, lanes=2, kind=kind)
        lanes = Lanes.stack(random_lanes(model, 2, native_group(model)))
        until = time.monotonic() + 3
        while time.monotonic() < until and not heard:
            predict_noise(model, lanes, width=2)
        return engine

    engines = Engines(
        Engine(model, lanes=2), make=slow, turns=DeviceTurns(), on_death=heard.append, stall=1.5
    )
    ticket = engines.submit(job, pictures=pictures_of(job))
    engines.close()
    assert ticket is not None
    assert heard == []


def test_the_record_of_a_job_with_pictures_names_their_decoders(model: LoadedModel) -> None:
    """A JPEG decoder may round otherwise than the last one did."""
    makes = {
        kind: PipelineEngine(image_pipeline(model, Kind.IMG2IMG, None), lanes=2, kind=kind)
        for kind in (Kind.TEXT, Kind.IMG2IMG)
    }
    decoders = makes[Kind.IMG2IMG].numerics["versions"].keys() - makes[Kind.TEXT].numerics["versions"].keys()
    assert decoders == {"libjpeg", "webp"}


def test_an_engine_is_made_with_all_loras_off(attach: Callable[[Any], Any]) -> None:
    """Whatever the last job had on: what is learned and measured is the model's own."""
    model = attach(fresh())
    main = Engine(model, lanes=2)
    main.lora_switch((("a", 1.0),))
    layers = [layer for layer in model.unet.modules() if hasattr(layer, "disable_adapters")]
    assert not all(layer.disable_adapters for layer in layers)
    PipelineEngine(image_pipeline(model, Kind.IMG2IMG, None), lanes=2, kind=Kind.IMG2IMG)
    assert all(layer.disable_adapters for layer in layers)
