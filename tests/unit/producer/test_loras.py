"""LoRAs of a list: flags, columns, sweeps, tags and pictures; which names are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from producer.jobs import build_jobs, job_options
from producer.prompts import read_prompts
from storage.errors import BadInputError
from storage.jobstore import JobStore
from tests.unit.producer.conftest import StandInWorker

Invoke = Callable[..., Result]
NOTHING: dict[str, Any] = dict.fromkeys(
    ("seed", "steps", "guidance", "sampler", "schedule", "size", "width", "height", "eta", "guidance_rescale",
     "guidance_interval", "prompt_syntax", "image_format", "quality")
) | {"negative": "", "seed_per_prompt": False, "images": 1}  # fmt: skip


def made(*texts: str, files: tuple[str, ...] = (), **flags: Any) -> list[tuple[str, Any]]:
    """Return prompt and LoRAs of each job that a submit would make."""
    options = job_options(**NOTHING | flags)
    jobs = build_jobs(read_prompts(files, texts, options=options), options, {})
    return [(job.prompt, job.options.get("loras")) for job in jobs]


def test_flags_and_tags_go_together_and_the_prompt_wins() -> None:
    """A prompt's own weight beats the flag's, other LoRAs of the flags stay, and 0 turns one off."""
    assert made("a fox", "b <lora:a:0.2>", "c <lora:a:0> <lora:z:2>", loras=("a:0.5", "b")) == [
        ("a fox", [["a", 0.5], ["b", 1.0]]),
        ("b", [["a", 0.2], ["b", 1.0]]),
        ("c", [["b", 1.0], ["z", 2.0]]),
    ]


def test_a_column_beats_the_flags(tmp_path: Path) -> None:
    """A row's LoRAs stand instead of the flags'; an empty cell says nothing."""
    file = tmp_path / "list.csv"
    file.write_text('prompt,lora\na fox,"b:0.5, c"\nan otter,\na bee <lora:d:1>,c:2\n')
    assert made(files=(str(file),), loras=("a",)) == [
        ("a fox", [["b", 0.5], ["c", 1.0]]),
        ("an otter", [["a", 1.0]]),
        ("a bee", [["c", 2.0], ["d", 1.0]]),
    ]


def test_sweeps_compare_loras_also_with_none() -> None:
    """Values are joined by commas, sets by |, and an empty one is the model as it is."""
    assert made("a fox", sweep=["lora=,a:0.5,a:1"]) == [
        ("a fox", None), ("a fox", [["a", 0.5]]), ("a fox", [["a", 1.0]]),
    ]  # fmt: skip
    assert made("a fox", sweep=["lora=a:0.5,b|b:2"]) == [
        ("a fox", [["a", 0.5], ["b", 1.0]]), ("a fox", [["b", 2.0]]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "flags", "said"),
    [
        (["a <lora:b"], {}, "--prompt 1: The <lora: at character 3 of the prompt has no end"),
        (["<lora:b:1>"], {}, "A prompt is empty"),
        (["a <lora:b:1> <lora:b:2>"], {}, "LoRA b is named twice"),
        (["a"], {"negative": "x <lora:b:1>"}, "negative prompt names a LoRA"),
        (["a <lora:b:1>"], {"sweep": ["lora=c,d"]}, "and so does a --sweep"),
        (["a"], {"sweep": ["lora=c,d"], "loras": ("e",)}, "and so does a flag"),
        (["a"], {"loras": ("e:x",)}, "no number"),
        (["a"], {"sweep": ["lora=c:11"]}, "from -10 to 10"),
    ],
)
def test_what_does_not_go_is_said_in_one_sentence(texts: list[str], flags: dict[str, Any], said: str) -> None:
    """Malformed tags, doubled names and contradictions are refused before anything is written."""
    with pytest.raises(BadInputError, match=said):
        made(*texts, **flags)


def test_a_lora_that_nobody_has_is_refused(invoke: Invoke, store: JobStore) -> None:
    """As with models: it has to be configured, or a worker has to have said that it has it."""
    done = invoke("submit", "-p", "a fox", "--lora", "style:0.8")
    assert done.exit_code == 2
    assert "There is no LoRA style (known: none); configure it in PROMPTMILL_LORAS" in done.stderr
    assert not list(store.submissions(limit=1))


def test_a_bad_lora_on_a_line_can_be_left_out(invoke: Invoke, tmp_path: Path, store: JobStore) -> None:
    """Of a list, only the lines with unknown LoRAs are left out."""
    file = tmp_path / "list.txt"
    file.write_text("a fox\nan otter <lora:nobodys:1>\n")
    done = invoke("submit", file, "--skip-bad")
    assert "list.txt:2: There is no LoRA nobodys" in done.stderr
    assert [job.parameters.prompt for job in store.jobs(done.stdout.strip())] == ["a fox"]


def test_loras_of_workers_and_of_the_configuration_are_known(
    invoke: Invoke, stand_in: StandInWorker, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has loaded or PROMPTMILL_LORAS names can be asked for, and is shown."""
    stand_in.defaults["loras"] = {"style": "12"}
    stand_in.start()
    monkeypatch.setenv("PROMPTMILL_LORAS", "pixel=./pixel.safetensors")
    done = invoke("submit", "-p", "a fox <lora:style:0.8>", "--lora", "pixel", "--seed", "1")
    (job,) = store.jobs(done.stdout.strip())
    assert (job.parameters.prompt, job.parameters.options) == (
        "a fox", {"loras": [["pixel", 1.0], ["style", 0.8]]},
    )  # fmt: skip
    assert "pixel, style:0.8" in invoke("show", "@last:0").stdout
    assert "style" in invoke("worker", "list").stdout
    assert "with LoRA style, ready" in invoke("doctor").stdout


def test_another_file_of_the_same_name_makes_another_list(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA that was trained anew is rendered anew; the very same list and file are not."""
    monkeypatch.setenv("PROMPTMILL_LORAS", "style=./style.safetensors")
    ids = []
    for content in (b"one", b"one", b"another"):
        file = Path("style.safetensors")
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
        ids.append(invoke("submit", "-p", "a fox", "--lora", "style", "--seed", "1").stdout.strip())
    assert ids[0] == ids[1] != ids[2]
    assert len(list(store.submissions(limit=9))) == 2


def test_a_workers_file_that_is_missing_or_no_safetensors_is_refused(invoke: Invoke) -> None:
    """The file is looked for before a worker is started, and before anything is written."""
    missing = invoke("worker", "start", "--lora", "style=./none.safetensors")
    assert (missing.exit_code, "there is nothing; check the path" in missing.stderr) == (5, True)
    pickled = invoke("render", "-p", "a", "--lora-file", "style=./style.pt")
    assert (pickled.exit_code, "names no safetensors file" in pickled.stderr) == (2, True)
    Path("a.safetensors").write_bytes(b"")
    compiled = invoke("worker", "start", "--lora", "a=./a.safetensors", "--compile")
    assert (compiled.exit_code, "neither --compile nor --cuda-graphs" in compiled.stderr) == (2, True)
