"""Weighted and long prompts on the demo model, beside plain ones and against a written-out implementation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from tests.device import DEVICE
from worker.engine.engine import Engine
from worker.engine.errors import Cancelled
from worker.engine.request import RenderResult, group_of, prepare_request
from worker.models.load import LoadedModel
from worker.stages.condition import Condition
from worker.stages.picture import encode_png
from worker.stages.text import Text, TextStage
from worker.stages.weighting import Chunk, level, split, weigh

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

ROOM = 30  # tokens of the demo model's prompts, begin and end left aside


def _job(prompt: str, negative: str = "", *, seed: int = 5, **changes: Any) -> JobParameters:
    job = JobParameters(
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        num_inference_steps=6,
        guidance_scale=5.0,
        width=64,
        height=64,
        sampler="euler",
        options={"prompt_syntax": "weighted"},
    )
    return replace(job, **changes)


JOBS = [
    _job("pixel art of a penguin", options={}),
    _job("(a fox:1.4) on a [red] background", "(blue:1.2)"),
    _job("a fox", seed=6),
    _job("fox " * 20 + "cat " * 20, seed=7),
    _job("a (sticker:1.3) of a fox BREAK a red background", "blue", seed=8, num_inference_steps=4),
    _job("a cake", "cat " * (2 * ROOM + 1), seed=9, sampler="dpmpp_2m"),
    _job("a cake BREAK a fox", "cat " * 90, seed=10, guidance_scale=1.0),  # its negative prompt is not used
    _job("a cake BREAK a fox", "cat", seed=11, options={
        "prompt_syntax": "weighted", "guidance_interval": [0.3, 0.9], "guidance_rescale": 0.5,
    }),
]  # fmt: skip


@pytest.fixture(scope="module")
def text(model: LoadedModel) -> TextStage:
    """Return the model's text stage."""
    return TextStage(model.kind.prompt_encoder(model))


@pytest.fixture(scope="module")
def together(render: Any) -> list[RenderResult]:
    """Render all the jobs in one engine."""
    results: list[RenderResult] = render(JOBS, lanes=8)
    return results


@torch.no_grad()
def _own(text: TextStage, prompt: Text) -> torch.Tensor:
    return text(prompt)[0].prompt_embeds


@torch.no_grad()
def _embeds(model: LoadedModel, text: TextStage, job: JobParameters) -> list[torch.Tensor]:
    chunks = level([split(model.tokenizer, each) for each in (job.negative_prompt, job.prompt)])
    return [_own(text, each) for each in chunks]


def _png(result: RenderResult) -> bytes:
    return encode_png(result.pixels, {"promptmill": str(result.numerics)})


@torch.no_grad()
def _written_out(model: LoadedModel, chunks: list[list[tuple[str, float]]]) -> torch.Tensor:
    """Encode words and weights by transformers' classes and numpy, each word tokenised alone."""
    parts = []
    for words in chunks:
        ids = [model.tokenizer.bos_token_id]
        weights = [1.0]
        for word, weight in words:
            for each in model.tokenizer(word).input_ids[1:-1]:
                ids.append(each)
                weights.append(weight)
        padding = model.max_length - len(ids)
        ids += [model.tokenizer.eos_token_id] * padding  # which is what the demo model pads with
        weights += [1.0] * padding
        states = model.text_encoder(torch.tensor([ids], device=DEVICE)).last_hidden_state[0]
        states = states.double().cpu().numpy()
        weighted = states * np.array(weights)[:, None]
        parts.append(weighted * (states.mean() / weighted.mean()))
    return torch.from_numpy(np.concatenate(parts))[None].float()


@pytest.mark.parametrize("prompt", ["a fox", "a neon sign, of: a fox", "fox " * ROOM])
def test_without_markup_a_weighted_prompt_is_a_plain_one(
    model: LoadedModel, text: TextStage, prompt: str
) -> None:
    """The same embeddings bit for bit, up to the model's own length."""
    assert torch.equal(_own(text, split(model.tokenizer, prompt)), _own(text, prompt))


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a (fox:1.5)", [[("a", 1), ("fox", 1.5)]]),
        ("((a)) [fox] (on red:0.3)", [[("a", 1.21), ("fox", 1 / 1.1), ("on", 0.3), ("red", 0.3)]]),
        ("(a (fox:1.2):1.5) cake", [[("a", 1.5), ("fox", 1.8), ("cake", 1)]]),
        (r"\(a\) (fox\::2)", [[("(", 1), ("a", 1), (")", 1), ("fox", 2), (":", 2)]]),
        ("(a fox:0.5) BREAK [cake]", [[("a", 0.5), ("fox", 0.5)], [("cake", 1 / 1.1)]]),
        (
            "(fox " * 1 + "fox " * 39 + ":1.3)",
            [[("fox", 1.3)] * ROOM, [("fox", 1.3)] * 10],
        ),
    ],
)
def test_weights_do_what_is_written_out_here(
    model: LoadedModel, text: TextStage, prompt: str, chunks: list[list[tuple[str, float]]]
) -> None:
    """Weight times state, the mean of each chunk kept, within 1e-5 of float64."""
    with torch.no_grad():
        condition, warning = text(split(model.tokenizer, prompt))
    ours, right = condition.prompt_embeds.cpu(), _written_out(model, chunks)
    assert warning is None
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= 1e-5


def test_each_chunk_of_a_long_prompt_is_encoded_by_itself(model: LoadedModel, text: TextStage) -> None:
    """Its first chunk is what the words in it give alone, the second likewise."""
    long = _own(text, split(model.tokenizer, "fox " * ROOM + "cake cat"))
    assert torch.equal(long[:, : ROOM + 2], _own(text, "fox " * ROOM))
    assert torch.equal(long[:, ROOM + 2 :], _own(text, "cake cat"))


def test_a_chunk_ends_behind_a_comma_that_is_near(model: LoadedModel) -> None:
    """A1111 looks 20 of 75 tokens back, so here 8 of 30; a comma further away is left where it is."""

    def lengths(prompt: str) -> list[int]:
        return [len(chunk.ids) for chunk in split(model.tokenizer, prompt)]

    assert lengths("fox " * 25 + ", " + "cat " * 10) == [26, 10]
    assert lengths("fox " * 22 + ", " + "cat " * 10) == [23, 10]
    assert lengths("fox " * 21 + ", " + "cat " * 10) == [30, 2]
    assert lengths("fox " * 29 + ", " + "cat " * 10) == [30, 10]
    assert lengths("fox " * 30 + ", " + "cat " * 10) == [30, 11]
    assert lengths("fox BREAK " + "cat " * 31) == [1, 30, 1]
    assert lengths("BREAK fox BREAK") == [0, 1]
    assert lengths("") == [0]


def test_means_that_cancel_change_nothing() -> None:
    """Where the ratio of the means says nothing, the weights alone are applied."""
    embeds = torch.tensor([[[1.0], [-1.0], [1.0], [0.1]]])
    weighted = weigh(embeds, Chunk(ids=(7,), weights=(2.0999,)))
    assert torch.allclose(weighted[0, 1], torch.tensor([-2.0999]))


def test_prompts_of_a_job_have_as_many_chunks_as_the_longest(model: LoadedModel, text: TextStage) -> None:
    """The shorter one is padded by what the empty prompt gives."""
    uncond, cond = _embeds(model, text, _job("a fox", "cat " * (2 * ROOM + 1)))
    assert uncond.shape == cond.shape == (1, 3 * (ROOM + 2), 128)
    empty = _own(text, "")
    assert torch.equal(cond[:, ROOM + 2 :], torch.cat([empty, empty], dim=1))


def test_equal_texts_of_both_syntaxes_are_kept_apart(model: LoadedModel, text: TextStage) -> None:
    """A plain prompt means its brackets."""
    first = _own(text, split(model.tokenizer, "(fox:1.5)"))
    plain = _own(text, "(fox:1.5)")
    again = _own(text, split(model.tokenizer, "(fox:1.5)"))
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)


def test_bytes_do_not_depend_on_company(
    model: LoadedModel, render: Any, together: list[RenderResult]
) -> None:
    """Plain, weighted and long prompts give equal files together, arriving late in reverse, and alone."""
    right = [_png(result) for result in together]
    assert [_png(render([job], lanes=8)[0]) for job in JOBS] == right
    engine = Engine(model, lanes=8)
    late = {}
    for job in reversed(JOBS):
        late[job.seed, job.prompt] = engine.submit(job)
        engine.step()
    while engine.step():
        pass
    assert [_png(late[job.seed, job.prompt].future.result(timeout=0)) for job in JOBS] == right


def test_the_group_of_a_job_is_known_before_its_request(model: LoadedModel) -> None:
    """Whatever the length of its prompts, and whether the negative one counts."""
    for job in [*JOBS, replace(JOBS[5], options={**JOBS[7].options, "guidance_interval": [0.99, 1.0]})]:
        request = prepare_request(model, job, priority=0, keep_latents=False, on_progress=None, tables=None)
        assert group_of(model, job, tables=None) == request.group


def test_nothing_is_dropped_and_nothing_warned_of(together: list[RenderResult]) -> None:
    """A truncated plain prompt has a warning; a weighted one is not truncated."""
    assert [result.warnings for result in together] == [[]] * len(JOBS)


def test_without_markup_the_picture_is_the_plain_one(render: Any) -> None:
    """Same bytes, and a change of weight is another picture."""
    plain, weighted, heavier = render(
        [_job("a red fox", "blue", options={}), _job("a red fox", "blue"), _job("a (red:1.3) fox", "blue")]
    )
    assert np.array_equal(plain.pixels, weighted.pixels)
    assert not np.array_equal(plain.pixels, heavier.pixels)


@pytest.mark.parametrize("number", range(1, 7))
def test_pictures_are_diffusers_own_from_the_same_embeddings(
    model: LoadedModel, pipeline: Any, text: TextStage, together: list[RenderResult], number: int
) -> None:
    """StableDiffusionPipeline, called with our embeddings, renders the same within 1 of 255."""
    import diffusers  # noqa: PLC0415 - after torch's environment is set

    job = JOBS[number]
    uncond, cond = _embeds(model, text, job)
    if job.guidance_scale == 1.0:  # diffusers does not guide then, nor do the embeddings have to agree
        cond, uncond = _own(text, split(model.tokenizer, job.prompt)), None
    classes = {"euler": "EulerDiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, classes[job.sampler or ""]).from_config(before.config)
    try:
        right = pipeline(
            prompt_embeds=cond,
            negative_prompt_embeds=uncond,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            width=64,
            height=64,
            generator=torch.Generator().manual_seed(job.seed),
            output_type="np",
        ).images[0]
    finally:
        pipeline.scheduler = before
    ours = together[number].pixels.astype(int)
    assert np.abs(ours - (right * 255).round().astype(int)).max() <= 1


def test_one_chunk_shares_lanes_with_plain_and_longer_ones_take_turns(model: LoadedModel) -> None:
    """Three jobs of one prompt length run in the steps of one; another length needs its own."""
    engine = Engine(model, lanes=8)
    jobs = [_job("a fox", options={}), _job("(a fox:1.2)"), _job("a cake", "(blue)"), _job("a BREAK b")]
    tickets = [engine.submit(job) for job in jobs]
    while engine.step():
        pass
    assert engine.steps == 12
    assert all(ticket.future.result(timeout=0) for ticket in tickets)


def test_a_long_prompt_is_cancelled_like_any_other(model: LoadedModel, together: list[RenderResult]) -> None:
    """It leaves at the next step, and its neighbours end as ever."""
    engine = Engine(model, lanes=8)
    long, other, plain = (engine.submit(JOBS[number]) for number in (3, 4, 0))
    for _ in range(4):
        engine.step()
    long.cancel()
    while engine.step():
        pass
    with pytest.raises(Cancelled):
        long.future.result(timeout=0)
    assert _png(other.future.result(timeout=0)) == _png(together[4])
    assert _png(plain.future.result(timeout=0)) == _png(together[0])


def test_an_encoder_that_fails_fails_one_job(
    model: LoadedModel, together: list[RenderResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong with one job's chunks is that job's own failure."""
    engine = Engine(model, lanes=8)
    encode = engine._text._chunk

    def fail(chunk: Chunk) -> Condition:
        if len(chunk.ids) == ROOM:
            raise ValueError("no such token")
        return encode(chunk)

    monkeypatch.setattr(engine._text, "_chunk", fail)
    long, other = engine.submit(JOBS[3]), engine.submit(JOBS[4])
    while engine.step():
        pass
    assert "no such token" in str(long.future.exception(timeout=0))
    assert _png(other.future.result(timeout=0)) == _png(together[4])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("(a:11)", "the weight 11"), ("fox " * 961, "takes 33 chunks of 30 tokens; shorten it to at most 32")],
)
def test_what_cannot_be_encoded_is_refused_before_it_is_in(
    model: LoadedModel, prompt: str, said: str
) -> None:
    """A job that nobody checked at submit, or that is too long for this model, fails with one sentence."""
    engine = Engine(model, lanes=8)
    with pytest.raises(BadInputError, match=said):
        engine.submit(_job(prompt))
    assert engine.load == (0, 0)
