"""How the engine chooses to run a model, on a clock that only the fake UNet moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from worker.engine import trial, tuning
from worker.engine.engine import Engine
from worker.models.device import MIXED
from worker.models.load import LoadedModel


@dataclass
class Clock:
    """Seconds that pass while the UNet works.

    Attributes:
        cost: of so many lanes.
        factor: for the UNet as it is run.
    """

    cost: Callable[[int], float] = lambda lanes: 0.1 * lanes
    factor: Callable[[Any], float] = lambda _: 1.0
    seconds: float = 0.0

    def __call__(self) -> float:
        """Answer as time.perf_counter does."""
        return self.seconds

    def work(self, named: dict[str, Any]) -> None:
        """Let a forward pass take its time."""
        self.seconds += self.cost(len(named["sample"])) * self.factor(named["unet"])


@dataclass
class Kept:
    """Tunings in memory."""

    rows: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Find by facts."""
        return next((kept for known, kept in self.rows if known == facts), None)

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the first."""
        if self.tuning(facts) is None:
            self.rows.append((dict(facts), dict(tuning)))
        return self.tuning(facts) or {}


@pytest.fixture
def clock(unet: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock, wound up."""
    clock = Clock()
    unet.saw = clock.work
    monkeypatch.setattr(trial, "perf_counter", clock)
    monkeypatch.setattr(tuning, "perf_counter", clock)
    return clock


@pytest.mark.parametrize(
    ("cost", "lanes"),
    [
        (lambda lanes: 0.1 * lanes, 2),  # a second lane takes as long as the first
        (lambda lanes: 0.1 * lanes + 0.02, 2),  # 16 lanes are 9 % faster than 2: not worth a job's waiting
        (lambda lanes: 0.1 * lanes + 0.1, 8),  # 16 lanes are 6 % faster than 8, and 8 are 11 % than 4
        (lambda lanes: 0.1, 16),  # noqa: ARG005 - any number takes as long as one
    ],
)
@pytest.mark.parametrize("mode", ["exact", "throughput"])
def test_the_fewest_lanes_that_are_nearly_as_fast(
    mode: str, cost: Callable[[int], float], lanes: int, clock: Clock, model: LoadedModel
) -> None:
    """The smallest count within 10 % of the best lanes/s."""
    clock.cost = cost
    assert Engine(model, mode=mode).lanes == lanes


def test_a_gpu_is_tried_with_more_lanes_than_a_cpu() -> None:
    """Twice as many: on an H100 32 lanes were a quarter faster than 16."""
    assert tuning.candidates(torch.device("cpu")) == (2, 4, 8, 16)
    assert tuning.candidates(torch.device("cuda")) == (2, 4, 8, 16, 32)


def test_only_exact_candidates_count_in_exact_mode(clock: Clock, model: LoadedModel, unet: Any) -> None:
    """A count whose results depend on the position is none for exact mode, however fast it is."""
    clock.cost = lambda _: 0.1

    def uneven_from_eight(sample: torch.Tensor) -> torch.Tensor:
        return sample * torch.linspace(1, 2, len(sample))[:, None, None, None] if len(sample) > 4 else sample

    unet.before = uneven_from_eight
    assert Engine(model).lanes == 4
    assert Engine(model, mode="throughput").lanes == 16


def test_a_position_dependent_unet_cannot_be_exact(model: LoadedModel, unet: Any) -> None:
    """When a lane's result depends on its position, exact mode is refused with the reason."""
    unet.before = lambda sample: sample * torch.linspace(1, 2, len(sample))[:, None, None, None]
    for lanes in (None, 4):
        with pytest.raises(BadInputError, match="depends on its position"):
            Engine(model, lanes=lanes)


def test_neighbours_that_show_make_a_count_inexact(model: LoadedModel, unet: Any) -> None:
    """When a lane's result depends on what is in the others, exact mode is refused too."""
    unet.before = lambda sample: sample + sample.mean(dim=0, keepdim=True)
    with pytest.raises(BadInputError, match="or its neighbours"):
        Engine(model)


def test_lanes_that_do_not_fit_the_memory_are_not_taken(clock: Clock, model: LoadedModel, unet: Any) -> None:
    """Out of memory while trying out is an answer: fewer lanes, or a sentence when none fit."""
    clock.cost = lambda _: 0.1
    unet.fits = 4 * 64
    assert Engine(model).lanes == 4
    unet.fits = 1 * 64
    with pytest.raises(BadInputError, match="too little memory for 2 lanes"):
        Engine(model)


def test_trials_end_when_they_take_too_long(clock: Clock, model: LoadedModel, unet: Any) -> None:
    """A model that takes half a minute for a pass is not tried with ever more lanes."""
    clock.cost = lambda _: 30.0
    assert Engine(model).lanes == 2
    assert set(unet.widths) == {2}


def test_the_first_worker_of_a_kind_decides(clock: Clock, model: LoadedModel, unet: Any) -> None:
    """What was measured once is taken by the next one, however fast that is; another mode is another kind."""
    kept = Kept()
    clock.cost = lambda lanes: 0.1 * lanes
    assert Engine(model, tunings=kept).lanes == 2
    clock.cost = lambda _: 0.1
    unet.widths.clear()
    assert Engine(model, tunings=kept).lanes == 2
    assert set(unet.widths) == {2}  # tried out, not measured
    assert Engine(model, mode="throughput", tunings=kept).lanes == 16
    assert [kept["lanes"] for _, kept in kept.rows] == [2, 16]


def test_mixed_precision_is_taken_where_it_is_worth_its_quality(clock: Clock, model: LoadedModel) -> None:
    """A UNet that is a fifth faster with products in bfloat16 has them so, nothing else; others follow."""
    kept = Kept()
    clock.factor = lambda unet: 0.9 if unet.copies else 1.0
    assert Engine(model, precisions=(MIXED,)).model.precision == "float32"
    clock.factor = lambda unet: 0.5 if unet.copies else 1.0
    engine = Engine(model, precisions=(MIXED,), tunings=kept)
    assert engine.model.precision == MIXED
    assert (engine.numerics["dtype"], engine.numerics["vae_dtype"]) == (MIXED, "float32")
    assert engine.model.unet is not model.unet
    clock.factor = lambda _: 1.0
    assert Engine(model, precisions=(MIXED,), tunings=kept).model.precision == MIXED
    assert Engine(model, tunings=kept).model.precision == "float32"  # its user asked for float32


def test_a_layout_is_taken_where_it_is_faster(clock: Clock, model: LoadedModel) -> None:
    """channels_last wins where it is at least a tenth faster."""
    clock.factor = lambda unet: 0.8 if unet.layout == torch.channels_last else 1.0
    engine = Engine(model)
    assert (engine.model.layout, engine.numerics["layout"]) == ("channels_last", "channels_last")
    assert engine.model.unet.layout == torch.channels_last
    assert Engine(model, lanes=4).model.layout == "contiguous"


def test_a_variant_that_is_not_exact_is_not_taken(clock: Clock, model: LoadedModel, unet: Any) -> None:
    """Exact mode keeps to float32 where a lane's result in bfloat16 depends on its position."""
    clock.factor = lambda unet: 0.5 if unet.copies else 1.0

    def uneven(sample: torch.Tensor) -> torch.Tensor:
        scale = torch.linspace(1, 2, len(sample), dtype=sample.dtype)[:, None, None, None]
        return sample * scale if sample.dtype == torch.bfloat16 else sample

    unet.before = uneven
    assert Engine(model, precisions=(MIXED,)).model.precision == "float32"
    assert Engine(model, precisions=(MIXED,), mode="throughput").model.precision == MIXED


def test_what_is_kept_is_tried_out_here_all_the_same(model: LoadedModel, unet: Any) -> None:
    """Another machine of this kind may have found it exact; this one does not promise what it cannot keep."""
    kept = Kept()
    Engine(model, tunings=kept)
    unet.before = lambda sample: sample * torch.linspace(1, 2, len(sample))[:, None, None, None]
    with pytest.raises(BadInputError, match="depends on its position"):
        Engine(model, tunings=kept)
    assert len(kept.rows) == 1


def test_what_is_kept_and_does_not_fit_today_runs_with_fewer_lanes(
    clock: Clock, model: LoadedModel, unet: Any
) -> None:
    """Somebody else has the memory now: this process makes do, and the tuning stays; pinned is refused."""
    kept = Kept()
    clock.cost = lambda _: 0.1
    assert Engine(model, tunings=kept).lanes == 16
    unet.fits = 4 * 64
    assert Engine(model, tunings=kept).lanes == 4
    assert [row["lanes"] for _, row in kept.rows] == [16]
    with pytest.raises(BadInputError, match="too little memory for 8 lanes"):
        Engine(model, lanes=8)


def test_lanes_that_cannot_be_looked_at_are_not_taken(clock: Clock, model: LoadedModel, looking: Any) -> None:
    """They fit, but nobody knows whether they are exact: fewer are kept, as where they do not fit."""
    kept = Kept()
    clock.cost = lambda _: 0.1
    looking.fits = 1
    with pytest.raises(BadInputError, match="too little memory for 2 lanes"):
        Engine(model, tunings=kept)
    assert not kept.rows
    looking.fits = 4
    for crowded in (False, True):
        assert Engine(model, tunings=kept, crowded=crowded).lanes == 4
        assert [row["lanes"] for _, row in kept.rows] == [4]


def test_what_is_kept_and_cannot_be_looked_at_today_runs_with_fewer_lanes(
    clock: Clock, model: LoadedModel, looking: Any
) -> None:
    """As where it does not fit: that is no place that shows."""
    kept = Kept()
    clock.cost = lambda _: 0.1
    Engine(model, tunings=kept)
    looking.fits = 4
    assert Engine(model, tunings=kept).lanes == 4
    assert [row["lanes"] for _, row in kept.rows] == [16]
    with pytest.raises(BadInputError, match="too little memory for 8 lanes"):
        Engine(model, lanes=8)
    for lanes in (None, 16):
        with pytest.raises(torch.OutOfMemoryError):
            Engine(model, tunings=kept, lanes=lanes, crowded=True)


@pytest.mark.parametrize("lanes", [None, 16])
def test_beside_other_models_too_little_memory_is_told(
    lanes: int | None, clock: Clock, model: LoadedModel, unet: Any
) -> None:
    """One of them can leave the device, which is better than fewer lanes, or a refusal."""
    kept = Kept()
    clock.cost = lambda _: 0.1
    Engine(model, tunings=kept)
    unet.fits = 4 * 64
    with pytest.raises(torch.OutOfMemoryError):
        Engine(model, tunings=kept, lanes=lanes, crowded=True)


@pytest.mark.parametrize(
    "said", ["not implemented for 'BFloat16'", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"]
)
def test_a_variant_that_fails_is_left_alone(said: str, clock: Clock, model: LoadedModel, unet: Any) -> None:
    """An operation that a device lacks in a dtype nobody asked for is no reason not to start."""

    def no_bfloat16(sample: torch.Tensor) -> torch.Tensor:
        if sample.dtype == torch.bfloat16:
            raise RuntimeError(said)
        return sample

    unet.before = no_bfloat16
    assert clock.seconds == 0.0
    assert Engine(model, precisions=(MIXED,)).model.precision == "float32"
    assert clock.seconds > 0.0


def test_a_layout_that_the_host_has_no_memory_for_is_left_alone(model: LoadedModel, unet: Any) -> None:
    """Python says it by an error of its own."""

    def full(named: dict[str, Any]) -> None:
        if named["unet"].layout == torch.channels_last:
            raise MemoryError

    unet.saw = full
    assert Engine(model).model.layout == "contiguous"


def test_variants_are_held_to_the_first_even_where_that_cannot_be_looked_at(
    clock: Clock, model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model predicts as it was loaded is known all the same."""
    clock.factor = lambda unet: 0.5 if unet.layout == torch.channels_last else 1.0
    left = [torch.OutOfMemoryError("CUDA out of memory.")]
    look = tuning.exact_trial

    def wrong(sample: torch.Tensor) -> torch.Tensor:
        uneven = sample * torch.linspace(1, 2, len(sample))[:, None, None, None]
        as_loaded = uneven if left else sample
        return 2 * sample if unet.layout == torch.channels_last else as_loaded

    def full_at_first(*arguments: Any, **named: Any) -> trial.Trial:
        if left:
            raise left.pop()
        return look(*arguments, **named)

    unet.before = wrong
    monkeypatch.setattr(tuning, "exact_trial", full_at_first)
    assert Engine(model).model.layout == "contiguous"


@pytest.mark.parametrize("wrong", [2.0, float("nan")])
def test_a_variant_that_computes_something_else_is_not_taken(
    wrong: float, clock: Clock, model: LoadedModel, unet: Any
) -> None:
    """However fast it is."""
    clock.factor = lambda unet: 0.5 if unet.copies else 1.0
    unet.before = lambda sample: sample * wrong if sample.dtype == torch.bfloat16 else sample
    for mode in ("exact", "throughput"):
        assert Engine(model, precisions=(MIXED,), mode=mode).model.precision == "float32"


def test_cuda_graphs_need_cuda(model: LoadedModel) -> None:
    """Elsewhere the flag is refused."""
    with pytest.raises(BadInputError, match=r"--cuda-graphs needs an NVIDIA GPU, not the cpu"):
        Engine(model, launch="cuda_graphs", lanes=4)


@pytest.mark.parametrize("said", ["no compiler", "CUDA error: operation not permitted when capturing"])
def test_a_compiler_that_fails_is_one_sentence(
    said: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilers run late, in the first forward pass; what they say becomes the reason."""

    def fail(_: object) -> None:
        raise RuntimeError(f"{said}\nand many more lines")

    monkeypatch.setattr(torch, "compile", lambda unet, **_: dataclasses.replace(unet, saw=fail))
    with pytest.raises(BadInputError, match=rf"--compile is not possible here .{said}.; leave it out"):
        Engine(model, launch="compiled", lanes=4)


def test_a_compiled_size_that_does_not_fit_is_run_with_fewer_lanes(
    model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both modes; it is tried out at that many before a request is in it."""
    monkeypatch.setattr(torch, "compile", lambda unet, **_: unet)
    unet.fits = 8 * 64  # and so four lanes of 128x64
    for mode in ("exact", "throughput"):
        engine = Engine(model, launch="compiled", lanes=8, mode=mode)
        job = JobParameters(
            prompt="a", seed=1, sampler="euler", schedule="default", num_inference_steps=2, width=128
        )
        ticket = engine.submit(job)
        unet.widths.clear()
        while engine.step():
            pass
        assert ticket.future.result(timeout=0).numerics["lanes"] == 4
        passes = 8 if mode == "exact" else 4  # of a trial; exact mode compares other places as well
        assert unet.widths == [8, *[4] * passes, 4, 4]  # what did not fit, and two steps


@pytest.mark.parametrize("mode", ["exact", "throughput"])
def test_what_is_compiled_runs_at_one_shape(
    mode: str, model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was compiled for R lanes before the first job; less company is padded, in throughput mode too."""
    monkeypatch.setattr(torch, "compile", lambda unet, **_: unet)
    engine = Engine(model, launch="compiled", lanes=8, mode=mode)
    assert engine.numerics["launch"] == "compiled"
    assert set(unet.widths) == {8}
    job = JobParameters(
        prompt="a", seed=1, sampler="euler", schedule="default", num_inference_steps=2, guidance_scale=5.0
    )
    engine.submit(job)
    while engine.step():
        pass
    assert set(unet.widths) == {8}


def test_an_open_dtype_is_measured_even_with_pinned_lanes(clock: Clock, model: LoadedModel) -> None:
    """What is measured is kept, with the lanes that were pinned."""
    kept = Kept()
    clock.factor = lambda unet: 0.5 if unet.copies else 1.0
    engine = Engine(model, precisions=(MIXED,), lanes=4, tunings=kept)
    assert (engine.lanes, engine.model.precision, len(kept.rows)) == (4, MIXED, 1)


def test_pinned_lanes_are_not_kept(model: LoadedModel) -> None:
    """With the dtype pinned as well nothing is measured."""
    kept = Kept()
    assert Engine(model, lanes=4, tunings=kept).lanes == 4
    assert not kept.rows


@pytest.mark.parametrize(
    ("mode", "lanes", "reason"),
    [
        ("exact", 3, "even number"),
        ("exact", 1, "even number"),
        ("throughput", 1, "too few"),
        ("reference", 4, "2 lanes"),
        ("fast", None, "mode"),
    ],
)
def test_impossible_lanes_are_refused(mode: str, lanes: int | None, reason: str, model: LoadedModel) -> None:
    """Lanes and modes that do not go together are refused before anything runs."""
    with pytest.raises(BadInputError, match=reason):
        Engine(model, mode=mode, lanes=lanes)
