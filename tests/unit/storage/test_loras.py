"""LoRAs as users write them: names, weights, tags in prompts, and where a worker's files are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInputError, ModelLoadError
from storage.infotext import read_infotext, write_infotext
from storage.lora_files import check_lora_file, lora_facts, lora_files, parse_lora_file
from storage.loras import (
    check_loras,
    lora_list,
    parse_lora,
    parse_loras,
    published_loras,
    shown_loras,
    take_tags,
    told_options,
    write_tags,
)
from storage.parameters import JobParameters, check_job, telling
from storage.picture_record import Record, read_record, write_record
from storage.worker_options import WorkerOptions, parse_options

names = st.from_regex(r"[a-z0-9][a-z0-9 ._+()-]{0,8}[a-z0-9]", fullmatch=True)
weights = st.floats(-10, 10).filter(bool)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("style", ("style", 1.0)),
        ("style:0.8", ("style", 0.8)),
        (" My Style (v2) : -1.5 ", ("My Style (v2)", -1.5)),
        ("v1.5-detail:1e-1", ("v1.5-detail", 0.1)),
    ],
)
def test_a_name_may_have_a_weight(text: str, found: tuple[str, float]) -> None:
    """`NAME:WEIGHT` is read, and `NAME` weighs 1."""
    assert parse_lora(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot name a LoRA"),
        ("../etc/passwd", "cannot name a LoRA"),
        ("a/b:1", "cannot name a LoRA"),
        ("style:", "no number"),
        ("style:much", "no number"),
        ("style:0.5:0.7", "one weight, for UNet and text encoder alike"),
        ("style:nan", "from -10 to 10"),
        ("style:inf", "from -10 to 10"),
        ("style:-10.5", "from -10 to 10"),
    ],
)
def test_what_is_no_lora_is_refused_in_one_sentence(text: str, said: str) -> None:
    """Paths, missing and endless weights are no LoRAs."""
    with pytest.raises(BadInputError, match=said):
        parse_lora(text)


def test_a_set_is_sorted_and_what_weighs_nothing_is_left_out() -> None:
    """Equal sets are equal lists, whatever order they were written in."""
    assert parse_loras("style:0.8, a, off:0") == parse_loras("a:1,style:0.80") == [["a", 1.0], ["style", 0.8]]
    assert parse_loras(" ") == []


def test_a_name_twice_and_too_many_are_refused() -> None:
    """Nobody has to guess which weight counts."""
    with pytest.raises(BadInputError, match="named twice"):
        parse_loras("a:1,a:0.5")
    with pytest.raises(BadInputError, match="at most 16"):
        lora_list((f"lora {number}", 1.0) for number in range(17))


@pytest.mark.parametrize(
    "value",
    [
        "a:1", 7, [["a"]], [["a", "1"]], [["b", 1.0], ["a", 1.0]], [["a", 0.0]], [["a", 1.0, 2.0]],
        [["a", math.nan]], [[1, 1.0]], [["a/b", 1.0]], None,
    ],
)  # fmt: skip
def test_a_job_keeps_no_other_form(value: object) -> None:
    """A record that was changed by hand is refused like any other setting out of range."""
    with pytest.raises(BadInputError):
        check_loras(value)


def test_jobs_without_loras_are_as_they_were() -> None:
    """No LoRA leaves no trace in a job's options."""
    assert telling({"loras": []}) == {}
    assert check_job(JobParameters(prompt="a", seed=1, options={"loras": [["a", 1.0]]})).options["loras"]


@pytest.mark.parametrize(
    ("prompt", "left", "pairs"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:style:0.8>", "a cat", [("style", 0.8)]),
        ("a <lora:style:0.8> cat", "a cat", [("style", 0.8)]),
        ("a <lora:style>cat", "a cat", [("style", 1.0)]),
        ("a cat <lora:style:0.8>, (red <LoRA:b:-1>:1.2)", "a cat, (red:1.2)", [("style", 0.8), ("b", -1.0)]),
        ("<lora:a:1><lora:b:0> a cat", "a cat", [("a", 1.0), ("b", 0.0)]),
        ("a <b> cat <3", "a <b> cat <3", []),
    ],
)
def test_tags_are_taken_out_with_the_blank_that_they_leave(
    prompt: str, left: str, pairs: list[tuple[str, float]]
) -> None:
    """What A1111's users write becomes a setting, and the rest of the prompt stays as it is."""
    assert take_tags(prompt) == (left, pairs)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a cat <lora:style:0.8", r"at character 7 of the prompt has no end"),
        ("a cat <lora:>", r"at character 7 of the prompt.*cannot name"),
        ("<lora:a:1> b <lora:a:x>", r"at character 14 of the prompt.*no number"),
        ("<lora:a <lora:b:1>>", r"at character 1 of the prompt has no end"),
        ("<lora:a:1:0.5>", r"at character 1 .*one weight"),
    ],
)
def test_a_malformed_tag_is_said_with_its_place(prompt: str, said: str) -> None:
    """A slip is never text that the model is silently given."""
    with pytest.raises(BadInputError, match=said):
        take_tags(prompt)


@given(st.text("a b,(", max_size=20).map(str.strip), st.dictionaries(names, weights, max_size=4))
def test_a_job_with_loras_reads_back_from_infotext_and_record(words: str, found: dict[str, float]) -> None:
    """The tags behind a prompt, and the record, give the very same job."""
    options = {"loras": lora_list(found.items())} if found else {}
    job = JobParameters(prompt=words or "a", seed=1, width=64, height=64, options=options)
    hashes = dict.fromkeys(found, "0" * 12)
    text = write_infotext(job, model="m", model_hash=None, version="1", lora_hashes=hashes)
    said = read_infotext(text)
    assert (said["prompt"], said.get("options", {})) == (job.prompt, options)
    record = Record(parameters=job, model="m", source=None, numerics={})
    assert read_record(write_record(record)) == record
    if options:
        assert parse_loras(shown_loras(options["loras"])) == options["loras"]


def test_infotext_is_a1111s() -> None:
    """Tags stand behind the prompt, hashes of the files among the pairs."""
    job = JobParameters(
        prompt="a fox", seed=1, width=64, height=64, options={"loras": [["a", 1.0], ["style", 0.8]]}
    )
    hashes = {"a": "0123456789ab", "style": "ba9876543210"}
    text = write_infotext(job, model="m", model_hash=None, version="1", lora_hashes=hashes)
    assert text.splitlines()[0] == "a fox <lora:a:1> <lora:style:0.8>"
    assert 'Lora hashes: "a: 0123456789ab, style: ba9876543210"' in text
    assert read_infotext(text)["other"]["Lora hashes"] == "a: 0123456789ab, style: ba9876543210"
    assert write_tags({}) == ""


def test_tables_have_loras_as_text() -> None:
    """Exports and filters have what a user would type, since no table holds a list of pairs."""
    assert told_options({"eta": 0.5, "loras": [["a", 1.0], ["style", 0.8]]}) == {
        "eta": 0.5,
        "loras": "a, style:0.8",
    }


def test_files_are_named_by_the_worker_alone(tmp_path: Path) -> None:
    """NAME=PATH, or a path that derives NAME; the command line beats what is configured."""
    assert parse_lora_file("style=./x.safetensors").path == str(Path.cwd() / "x.safetensors")
    assert parse_lora_file(str(tmp_path / "My Style.safetensors")).name == "My Style"
    found = lora_files(["a=/x/1.safetensors", "b=/x/2.safetensors"], ["a=/x/3.safetensors"])
    assert {name: lora.path for name, lora in found.items()} == {
        "a": "/x/3.safetensors",
        "b": "/x/2.safetensors",
    }
    with pytest.raises(BadInputError, match="give one of them another name"):
        lora_files(["a=/x/1.safetensors", "a=/x/2.safetensors"])
    with pytest.raises(BadInputError, match="names no safetensors file"):
        parse_lora_file("a=/x/1.pt")
    with pytest.raises(ModelLoadError, match="there is nothing; check the path"):
        check_lora_file(parse_lora_file(f"a={tmp_path}/none.safetensors"))


def test_the_short_hash_is_of_what_follows_the_header(tmp_path: Path) -> None:
    """A1111's hash stays when the metadata is edited; the revision does not."""
    facts = []
    for note in ("one", "another"):
        header = json.dumps({"__metadata__": {"note": note}}).encode()
        data = len(header).to_bytes(8, "little") + header + b"weights"
        (tmp_path / "a.safetensors").write_bytes(data)
        facts.append(lora_facts(tmp_path / "a.safetensors"))
        assert facts[-1].sha256 == hashlib.sha256(data).hexdigest()
    assert facts[0].short_hash == facts[1].short_hash == hashlib.sha256(b"weights").hexdigest()[:12]


def test_a_workers_options_carry_loras() -> None:
    """What the command line says reaches the worker process, also from one that knew no LoRAs."""
    options = WorkerOptions(model="demo", loras=("a=/x/1.safetensors",))
    assert parse_options(options.command()[-1]) == options
    older = dataclasses.asdict(WorkerOptions(model="demo"))
    del older["loras"]
    assert parse_options(json.dumps(older)).loras == ()


def test_a_worker_without_loras_publishes_none() -> None:
    """Rows of older workers say nothing about LoRAs."""
    assert published_loras({"width": 64}) == {}
    assert published_loras({"loras": {"a": "12"}}) == {"a": "12"}
