"""The engine's benchmarks compare like with like, and notice what falls short."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from storage.errors import BadInputError
from storage.parameters import JobParameters, check_job
from worker.engine.engine import Engine
from worker.models.load import LoadedModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a benchmark, as running it would."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def _settings(jobs: list[JobParameters]) -> list[JobParameters]:
    return [replace(job, prompt="any") for job in jobs]


def test_mixed_work_brings_new_prompts_in_every_round_and_to_all_the_same(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt is one that the engine's text stage has kept; settings and their order stay."""
    mixed = load("engine_mixed")
    given: dict[str, list[list[JobParameters]]] = {"engine": [], "limit": [], "static": [], "ray": []}

    def by_engine(_engine: Any, jobs: list[JobParameters], **_: Any) -> Any:
        given["engine"].append(jobs)
        return mixed.Watched(seconds=1.0, queue=1.0, steps=1)

    class Limit:
        def __init__(self, _model: Any, jobs: list[JobParameters]) -> None:
            given["limit"].append(jobs)

        def piece(self) -> None: ...

        def seconds(self, _evaluations: int) -> float:
            return 1.0

    def note(who: str) -> Any:
        return lambda *args, **_: given[who].append(next(a for a in args if isinstance(a, list))) or 1.0

    calls: list[list[JobParameters]] = []
    for name, stand_in in {
        "Engine": lambda *_, **__: None,
        "pipeline_of": lambda _: None,
        "by_engine": by_engine,
        "Limit": Limit,
        "in_static_batches": note("static"),
        "by_ray": note("ray"),
        "call": lambda _, jobs: calls.append(jobs),
    }.items():
        monkeypatch.setattr(mixed, name, stand_in)
    jobs = mixed.mixed_jobs(4, size=64)
    mixed.measure("demo", SimpleNamespace(device=SimpleNamespace(type="cpu")), jobs, 2, ray=True)

    warm_up, *rounds = given["engine"]
    prompts = [job.prompt for taken in (warm_up, *rounds) for job in taken]
    assert len(set(prompts)) == 3 * len(jobs)
    assert all(_settings(taken) == _settings(jobs) for taken in rounds)
    assert given["limit"] == given["static"] == given["ray"] == rounds
    assert [job for (job,) in calls[1:]] == [job for taken in rounds for job in taken]


def test_the_limits_work_is_done_between_the_engines_steps_and_off_its_clock(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many passes as steps, an encoding and a decode for each job; scaled to what the jobs need."""
    mixed = load("engine_mixed")
    clock = SimpleNamespace(now=0.0)
    done: list[str] = []

    def spend(what: str, cost: float, result: Any = None) -> Any:
        done.append(what)
        clock.now += cost
        return result

    class Idle:
        steps, load, model = 0, (0, 0), None

        def submit(self, job: JobParameters) -> Any:
            future = SimpleNamespace(result=lambda **_: None)
            return SimpleNamespace(progress=1.0, future=future, job=job)

        def step(self) -> bool:
            self.steps = spend("step", 10.0, self.steps + 1)
            return self.steps < 8

    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(mixed, "settle", lambda _model: spend("settled", 0.0))
    monkeypatch.setattr(mixed, "encode_all", lambda _model, jobs: spend(f"encode {len(jobs)}", 0.25))
    monkeypatch.setattr(mixed, "decode", lambda _vae, latents: spend(f"decode {len(latents)}", 0.5))
    config = SimpleNamespace(cross_attention_dim=3)

    class Unet:
        def __call__(self, *_: Any, **__: Any) -> None:
            spend("pass", 1.0)

    unet = Unet()
    unet.config = config  # type: ignore[attr-defined]
    model = SimpleNamespace(
        vae_scale_factor=4, max_length=2, device=mixed.torch.device("cpu"), dtype=mixed.torch.float32,
        unet=unet, vae=None,
    )  # fmt: skip
    jobs = mixed.mixed_jobs(2, size=64)
    limit = mixed.Limit(model, jobs)
    watched = mixed.by_engine(Idle(), jobs, between=limit.piece, every=mixed.PASSES)
    assert done.count("pass") == done.count("step") == 8
    # What the engine launched is done on its own clock, and not on the limit's.
    assert done.count("settled") == 2 * 2
    assert [done[at - 1] for at, what in enumerate(done) if what == "settled"] == ["step", "pass"] * 2
    assert done.count("encode 1") == done.count("decode 1") == len(jobs)
    assert (watched.seconds, watched.steps) == (80.0, 8)
    assert limit.seconds(evaluations=20) == 5 * 1.0 + 2 * 0.75


def test_the_rival_of_uniform_work_takes_its_turns_between_the_engines_steps(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call at a time; what is left at the end is rendered, too."""
    uniform = load("engine_uniform")
    calls: list[int] = []
    monkeypatch.setattr(uniform, "call", lambda _, jobs: calls.append(len(jobs)))
    monkeypatch.setattr(uniform, "seconds", lambda action: action() or 2.0)
    rival = uniform.Rival(None, list(range(10)))
    rival.render()
    assert calls == [4]
    assert rival.finish() == 3 * 2.0
    assert calls == [4, 4, 2]
    rival.render()
    assert calls == [4, 4, 2]


def test_rays_actor_is_warm_before_its_first_batch(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor renders a job, which no batch's time includes."""
    mixed = load("engine_mixed")
    rendered: list[JobParameters] = []
    monkeypatch.setattr(mixed, "demo_model", lambda **_: None)
    monkeypatch.setattr(mixed, "pipeline_of", lambda _: None)
    monkeypatch.setattr(mixed.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(mixed, "call", lambda _, jobs: rendered.extend(jobs))
    item = {"prompt": "a fox", "seed": 3, "sampler": "euler"}
    actor = mixed.RayRenderer(item, larger=False, threads=1, device="cpu")
    assert rendered == [JobParameters(**item)]
    assert list(actor({"job": [item]})) == ["seconds"]
    assert rendered == 2 * [JobParameters(**item)]


def test_uniform_work_has_a_new_prompt_for_every_job_and_round(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine and diffusers get the same, and neither has seen one of them."""
    uniform = load("engine_uniform")
    ours: list[list[JobParameters]] = []
    calls: list[list[JobParameters]] = []

    def by_engine(_engine: Any, jobs: list[JobParameters], **_: Any) -> Any:
        ours.append(jobs)
        return SimpleNamespace(seconds=1.0)

    for name, stand_in in {
        "Engine": lambda *_, **__: None,
        "pipeline_of": lambda _: None,
        "by_engine": by_engine,
        "call": lambda _, jobs: calls.append(jobs),
    }.items():
        monkeypatch.setattr(uniform, name, stand_in)
    uniform.measure("demo", None, size=64, count=4, steps=3, rounds=2)
    assert len({job.prompt for taken in ours for job in taken}) == 3 * 4
    assert calls[1:] == ours[1:]
    assert len({(job.sampler, job.num_inference_steps) for taken in ours for job in taken}) == 1


def test_jobs_that_arrive_have_prompts_of_their_own(load: Any) -> None:
    """At another load, too: the engine that served the first is the same."""
    arrivals = load("engine_arrivals")
    both = [arrivals.arrivals(3, 1.0, 64, take=take) for take in (0, 1)]
    assert len({arrival.job.prompt for arriving in both for arrival in arriving}) == 2 * 3
    assert _settings([a.job for a in both[0]]) == _settings([a.job for a in both[1]])


def test_the_limit_of_arrivals_admits_as_the_engine_does_and_encodes_once_a_job(load: Any) -> None:
    """Of two that wait the longer one goes first; each pays its encoding, its passes, its decode."""
    arrivals = load("engine_arrivals")
    arriving = [
        arrivals.Arrival(at=at, job=arrivals.make_job(seed, steps, 64))
        for seed, (at, steps) in enumerate([(0.0, 10), (1.0, 10), (1.0, 30)])
    ]
    clock = SimpleNamespace(passes={2: 1.0}, encode=0.25, decode=0.5)
    # 10 steps end at 10.75, then 30 at 41.5, then 10 at 52.25.
    assert arrivals.without_overhead(arriving, clock, 2) == [10.75, 40.5, 51.25]


@pytest.fixture
def good_row() -> dict[str, Any]:
    """A row of the table of equal bytes, as promised."""
    return {
        "dtype": "float32", "threads": 2, "jobs": 3, "equal": "3 of 3",
        "occupancy": 0.9, "positions": 8, "widths": "4, 8",
    }  # fmt: skip


def test_a_dtype_that_is_not_eligible_is_a_row_like_any_other(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is printed with it below an eligible row, and the JSON line after."""
    same_bytes = load("same_bytes")

    def in_processes(*shares: list[tuple[Any, ...]]) -> Any:
        if shares[0][0][1] == "bfloat16":
            raise BadInputError("With 8 lanes exact is not possible here.")
        return [
            [
                same_bytes.Company(
                    digests={job.seed: "same" for job in each[0]}, occupancy=0.9, positions=8, widths={8}
                )
                for each in share
            ]
            for share in shares
        ]

    monkeypatch.setattr(same_bytes, "in_processes", in_processes)
    jobs = same_bytes.random_jobs(3)
    rows = [same_bytes.row(jobs, dtype, 2) for dtype in ("float32", "bfloat16")]
    same_bytes.show(rows, as_json=True)
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["equal"] for row in shown] == ["3 of 3", "not eligible"]
    assert same_bytes.shortfalls(rows) == []


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"equal": "2 of 3"}, "depended on their company"),
        ({"occupancy": 0.7}, "70% full"),
        ({"positions": 7}, "7 of 8 lanes"),
    ],
)
def test_what_falls_short_of_the_promise_is_said(
    load: Any, good_row: dict[str, Any], changed: dict[str, Any], complaint: str
) -> None:
    """One sentence for a picture that differed, too little company, a lane that was never in use."""
    same_bytes = load("same_bytes")
    assert same_bytes.shortfalls([good_row]) == []
    (said,) = same_bytes.shortfalls([good_row, good_row | changed])
    assert complaint in said


def test_same_bytes_ends_with_1_where_it_falls_short(
    load: Any, good_row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said goes to stderr, so that the last line of stdout is the JSON object."""
    same_bytes = load("same_bytes")
    monkeypatch.setattr(same_bytes, "row", lambda *_: good_row | {"positions": 7})
    monkeypatch.setattr("sys.argv", ["same_bytes.py", "--quick"])
    with pytest.raises(SystemExit, match="7 of 8 lanes"):
        same_bytes.main()


def test_two_processes_render_at_once(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both shares are handed out, each to a process of its own, before either is waited for."""
    same_bytes = load("same_bytes")
    events: list[tuple[str, int]] = []

    class Waited:
        def __init__(self, share: int) -> None:
            self.share = share

        def result(self) -> int:
            events.append(("waited for", self.share))
            return self.share

    class Pool:
        made = 0

        def __init__(self, *_: Any, **__: Any) -> None:
            self.number, Pool.made = Pool.made, Pool.made + 1

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, *_: Any) -> Waited:
            events.append(("begun", self.number))
            return Waited(self.number)

    monkeypatch.setattr(same_bytes, "ProcessPoolExecutor", Pool)
    assert same_bytes.in_processes([()], [()]) == [[0], [1]]
    assert events == [("begun", 0), ("begun", 1), ("waited for", 0), ("waited for", 1)]


def test_random_jobs_differ_in_every_option_that_changes_a_picture(load: Any) -> None:
    """Each can be submitted, and each option is there with and without, eta only where a sampler has one."""
    jobs = load("same_bytes").random_jobs(200)
    for job in jobs:
        check_job(job)
    for option in ("eta", "guidance_rescale", "guidance_interval"):
        assert 0 < sum(option in job.options for job in jobs) < len(jobs)
    assert len({job.negative_prompt for job in jobs}) > 1


def test_overhead_is_measured_in_exact_mode_with_company_that_stays_and_that_changes(
    load: Any, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where requests join or leave is anything encoded or decoded; rescaling takes more operations.

    How many there are does not depend on how many requests share a step.
    """
    overhead = load("engine_overhead")
    made: list[Engine] = []
    costs: list[Any] = []
    measured = overhead.engine_steps

    def engine(*args: Any, **named: Any) -> Engine:
        made.append(Engine(*args, **named))
        return made[-1]

    def engine_steps(*args: Any) -> Any:
        costs.append(measured(*args))
        return costs[-1]

    monkeypatch.setattr(overhead, "Engine", engine)
    monkeypatch.setattr(overhead, "engine_steps", engine_steps)
    steady, rescaled, _ = overhead.rows("demo", model, 2, 64)
    assert [each.mode for each in made] == ["exact"]
    assert [cost.complete for cost in costs] == 3 * [True]
    assert [max(cost.coding) > 0 for cost in costs] == [False, False, True]
    assert min(costs[-1].coding) > 0
    assert steady["operations outside"] < rescaled["operations outside"]
    wider = list(overhead.rows("demo", model, 4, 64))[:2]
    assert [row["operations outside"] for row in wider] == [
        row["operations outside"] for row in (steady, rescaled)
    ]
