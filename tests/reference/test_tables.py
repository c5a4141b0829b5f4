"""Tables are read out of diffusers' schedulers: which there are, and what happens where there is none."""

from __future__ import annotations

import threading
from typing import Any

import diffusers
import pytest
import torch

from storage.samplers import SAMPLERS
from worker.models.load import LoadedModel
from worker.stages import table as table_module
from worker.stages.history import History
from worker.stages.noise import job_generator
from worker.stages.sampler import SamplerSettings
from worker.stages.schedule import NoiseSchedule
from worker.stages.table import probe
from worker.stages.tables import Tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

CASES = [(name, schedule) for name, sampler in SAMPLERS.items() for schedule in sampler.schedules]


def _walk(schedule: NoiseSchedule) -> torch.Tensor:
    """Lead a schedule with a model whose output depends on its input to the last latents."""
    shape = (1, 4, 6, 6)
    outputs = torch.randn((len(schedule), *shape), generator=job_generator(1))
    latents = torch.randn(shape, generator=job_generator(2)) * schedule.init_noise_sigma
    schedule.draw_noise(shape, torch.device("cpu"))
    history = History.start(latents)
    for i in range(len(schedule)):
        if schedule.table is None:
            output = 0.3 * schedule.scale_input(latents, i) + outputs[i]
            latents = schedule.step(output, i, latents)
            continue
        output = 0.3 * latents * schedule.table.input_scale[i] + outputs[i]
        noise = schedule.noise(i)
        drawn = torch.zeros(shape) if noise is None else noise
        history = history.after(schedule.table.weights[i, :, :, None], output, drawn)
        latents = history.latents[0]
    return latents


def _both(config: dict[str, Any], **settings: Any) -> tuple[NoiseSchedule, NoiseSchedule]:
    """The same settings by table, and by scheduler."""
    ours, theirs = (
        NoiseSchedule(
            SamplerSettings(scheduler_config=config, **settings),
            seed=4,
            generator=job_generator(4),
            tables=tables,
        )
        for tables in (Tables(), None)
    )
    return ours, theirs


def test_want_of_memory_is_not_taken_for_a_sampler_without_a_table(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the job's failure, which is tried again; an answer would be kept as long as the process lives."""
    settings = SamplerSettings(
        scheduler_config=model.scheduler_config, sampler="lms", schedule="karras", num_inference_steps=7
    )
    tables = Tables()

    def fail(*_: object) -> bool:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(table_module, "_agrees", fail)
        with pytest.raises(RuntimeError, match="allocate memory"):
            tables[settings]
    assert tables[settings] is not None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_every_sampler_has_a_table_that_says_what_its_scheduler_does(
    name: str, schedule: str, prediction: str, model: LoadedModel
) -> None:
    """Latents agree within 1e-5, draws included; no sampler falls back unseen."""
    if name == "ipndm" and prediction != "epsilon":
        pytest.skip("IPNDM knows epsilon prediction only, and the job is refused")
    config = model.scheduler_config | {"prediction_type": prediction}
    ours, theirs = _both(config, sampler=name, schedule=schedule, num_inference_steps=7)
    assert ours.table is not None
    assert ours.timesteps == theirs.timesteps
    table, scheduler = _walk(ours), _walk(theirs)
    assert (table - scheduler).norm() / scheduler.norm() < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_every_spacing_of_a_models_own_is_in_the_tables(
    name: str, schedule: str, spacing: str, model: LoadedModel
) -> None:
    """Whatever the user asks for beside it, and for samplers that do not know it, as diffusers has it."""
    config = model.scheduler_config | {"timestep_spacing": spacing}
    ours, theirs = _both(config, sampler=name, schedule=schedule, num_inference_steps=6)
    assert ours.table is not None
    assert ours.timesteps == theirs.timesteps
    table, scheduler = _walk(ours), _walk(theirs)
    assert (table - scheduler).norm() / scheduler.norm() < 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ddim", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("ddim", {"timestep_spacing": "trailing"}),
        ("lms", {"timestep_spacing": "leading"}),
        ("pndm", {"timestep_spacing": "linspace"}),
        ("dpmpp_2m", {"timestep_spacing": "trailing", "use_lu_lambdas": True}),
    ],
)
def test_a_models_own_config_is_in_its_table(name: str, change: dict[str, Any], model: LoadedModel) -> None:
    """Spacing and zero terminal SNR come from the model."""
    ours, theirs = _both(
        model.scheduler_config | change, sampler=name, schedule="default", num_inference_steps=8
    )
    assert ours.table is not None
    table, scheduler = _walk(ours), _walk(theirs)
    assert (table - scheduler).norm() / scheduler.norm() < 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ddim", {"clip_sample": True, "clip_sample_range": 50.0}),
        ("dpmpp_2m", {"thresholding": True}),
        # Its first sigma is 4096: the scheduler's own rounding is larger than what a table may differ by.
        ("euler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
)
def test_what_has_no_table_calls_its_scheduler(name: str, change: dict[str, Any], model: LoadedModel) -> None:
    """Clipping too, even where the random tensors of the check would not have shown it."""
    config = model.scheduler_config | change
    ours, _ = _both(config, sampler=name, schedule="default", num_inference_steps=5)
    assert ours.table is None
    scheduler = getattr(diffusers, SAMPLERS[name].scheduler_class).from_config(
        config, **SAMPLERS[name].overrides
    )
    scheduler.set_timesteps(5)
    outputs = torch.randn((5, 1, 4, 6, 6), generator=job_generator(1))
    latents = torch.randn((1, 4, 6, 6), generator=job_generator(2)) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        output = 0.3 * scheduler.scale_model_input(latents, t) + outputs[i]
        latents = scheduler.step(output, t, latents).prev_sample
    assert torch.equal(_walk(ours), latents)


class Stubborn:
    """A noise scheduler that is not the recurrence that it looks like."""

    config: dict[str, Any] = {}  # noqa: RUF012 - as diffusers has it
    init_noise_sigma = 1.0

    def __init__(self, exponent: float = 1.0, *, fails: bool = False) -> None:
        self.timesteps = torch.tensor([3.0, 2.0, 1.0])
        self.exponent, self.fails = exponent, fails

    def scale_model_input(self, sample: torch.Tensor, _: Any) -> torch.Tensor:
        """Leave it."""
        return sample

    def step(self, output: torch.Tensor, _: Any, sample: torch.Tensor, **__: Any) -> tuple[torch.Tensor]:
        """Be linear, or not."""
        if self.fails:
            raise IndexError("too few dimensions")
        return (sample - 0.1 * output.sign() * output.abs() ** self.exponent,)


def test_a_table_is_held_against_its_scheduler() -> None:
    """One-hot vectors cannot see a square of ones; random tensors can."""
    assert probe(Stubborn, lambda _: {}) is not None
    assert probe(lambda: Stubborn(2.0), lambda _: {}) is None
    assert probe(lambda: Stubborn(fails=True), lambda _: {}) is None


def test_reading_a_table_draws_nothing_of_other_threads(model: LoadedModel) -> None:
    """Noise is answered in the reading thread only."""
    expected = torch.randn(8, generator=job_generator(1))
    wrong: list[bool] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            wrong.append(not torch.equal(torch.randn(8, generator=job_generator(1)), expected))

    thread = threading.Thread(target=draw)
    thread.start()
    table = Tables()[
        SamplerSettings(sampler="euler_a", num_inference_steps=20, scheduler_config=model.scheduler_config)
    ]
    stop.set()
    thread.join()
    assert table is not None
    assert all(table.draws)
    assert len(wrong) > 3
    assert not any(wrong)
