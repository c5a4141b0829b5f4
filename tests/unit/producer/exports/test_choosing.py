"""Which jobs are exported, under which names, and what is said when neither can be."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from producer.exports.names import parse_template
from producer.exports.options import parse_bytes
from storage.errors import BadInputError

Invoke = Callable[..., Result]


def seeds(invoke: Invoke, *flags: str) -> list[int]:
    """Return the seeds of the jobs that are exported, less 100."""
    done = invoke("export", "otters", "--format", "csv", "--to", "x", *flags)
    assert done.exit_code == 0, done.stderr
    with Path("x/pictures.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["seed"]) - 100 for row in csv.DictReader(file)]


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]),
        (("--match", "otter, ČÍSLO 1"), [1, 10]),
        (("--match", "%"), None),
        (("--where", "genre=neon"), [0, 3, 6, 9]),
        (("--where", "genre=neon", "--where", "genre=狐", "--where", "sampler=LMS"), [0, 2, 6, 8]),
        (("--where", "seed=103"), [3]),
        (("--where", "score=1.50"), [3]),
        (("--where", "score="), [0, 2, 6, 8, 10]),
        (("--where", "size=64x64", "--where", "steps=30", "--match", "2"), [2]),
        (("--status", "failed"), [4]),
        (("--status", "failed", "--status", "succeeded", "--where", "genre=oil painting"), [1, 4, 7, 10]),
    ],
)
def test_jobs_are_chosen(invoke: Invoke, flags: tuple[str, ...], expected: list[int] | None) -> None:
    """By status, words of the prompt, settings and columns of the prompt file; to mean none is an error."""
    if expected is not None:
        assert seeds(invoke, *flags) == expected
        return
    done = invoke("export", "otters", "--format", "csv", "--to", "x", *flags)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert not Path("x").exists()


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--where", "colour=red"), "no column 'colour'; every job has prompt,"),
        (("--where", "colour=red"), "genre, score"),
        (("--where", "genre"), "write COLUMN=VALUE"),
        (("--where", "sampler=nosuch"), "There is no sampler 'nosuch'"),
        (("--where", "sampler=LMS Karras"), "--where schedule=karras"),
        (("--where", "size=big"), "is no size"),
        (("--status", "failed"), "goes with csv only"),
        (("--format", "csv", "--name", "{seed}"), "leave it out with csv"),
        (("--shard-size", "1GB"), "imagefolder has no shards"),
        (("--format", "parquet", "--shard-size", "large"), "is no size"),
        (("--format", "webdataset", "--link"), "--link is for parquet"),
        (("--name", "{colour}"), "no column 'colour'"),
        (("--name", "../{index}"), "would leave the folder"),
        (("--name", "/etc/{index}"), "would leave the folder"),
        (("--name", "a//{index}"), "would leave the folder"),
        (("--name", ".{index}"), "hide files"),
        (("--name", ""), "would leave the folder"),
        (("--name", "a\\{index}"), "not every file system"),
        (("--name", "{index:06d}"), "write {index} alone"),
        (("--name", "{index"), "is no template"),
        (("--name", "{genre}"), "the name 'neon', which an earlier job has; add {index}"),
        (("--name", "x" * 210 + "{index}"), "over 200 bytes"),
        (("--format", "webdataset", "--name", "a.{index}"), "a WebDataset sample's key would end"),
        (("--to", ""), "--to is empty"),
        (("--to", "nosuch://x"), "nobody knows the protocol 'nosuch'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(invoke: Invoke, flags: tuple[str, ...], said: str) -> None:
    """Bad input, and nothing is written."""
    done = invoke("export", "otters", *(() if "--to" in flags else ("--to", "x")), *flags)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("x").exists()


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize(
    ("template", "first", "last"),
    [
        ("{index}", "000000.png", "000010.png"),
        ("{sampler}/{seed}", "lms/100.png", "lms/110.png"),
        (
            "{genre} {guidance} {score} {index}.PNG",
            "neon 7-5 none 000000.png",
            "oil-painting 7-5 none 000010.png",
        ),
        ("v1.0/{prompt}", "v1.0/an-otter-číslo-0.png", "v1.0/an-otter-číslo-10.png"),
        ("{model}-{size}-{index}", "demo-64x64-000000.png", "demo-64x64-000010.png"),
    ],
)
def test_names_follow_a_template(invoke: Invoke, template: str, first: str, last: str) -> None:
    """Fields become safe words; slashes of the template make folders, those of values do not."""
    done = invoke("export", "otters", "--to", "x", "--name", template)
    assert done.exit_code == 0, done.stderr
    assert Path("x", first).is_file()
    assert Path("x", last).is_file()
    assert len(list(Path("x").rglob("*.png"))) == 10


@pytest.mark.usefixtures("otters")
def test_a_dry_run_only_says_what_it_would_be(invoke: Invoke) -> None:
    """Names on stdout, number and size beside them, and nothing written."""
    flags = ("--format", "webdataset", "--shard-size", "8KB", "--dry-run")
    done = invoke("export", "otters", "--to", "x", *flags)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["000040000.png", "000040001.png"]
    assert "10 pictures" in done.stderr
    assert "5 shards" in done.stderr
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("1GB", 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("4096", 4096)]
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    """Powers of ten and of two."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1GB", "1 horse", "0.1"])
def test_what_is_no_size_is_bad_input(text: str) -> None:
    """Nor is one into which nothing fits."""
    with pytest.raises(BadInputError, match="is no size"):
        parse_bytes(text)


def test_a_suffix_in_a_template_is_the_pictures_own() -> None:
    """It is not there twice."""
    assert parse_template("{index}.jpeg", []) == parse_template("{index}", [])
