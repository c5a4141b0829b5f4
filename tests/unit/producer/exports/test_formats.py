"""Every format is read by the library that it is made for, with the right counts, captions and pictures."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import webdataset
from click.testing import Result
from PIL import Image
from pyarrow import parquet

from producer.exports.webdataset import tar_head
from storage.jobstore import JobStore
from tests.unit.producer.exports.conftest import PROMPTS

Invoke = Callable[..., Result]
SUCCEEDED = [number for number in range(11) if number != 4]
CAPTIONS = [PROMPTS[number] for number in SUCCEEDED]


def colour(number: int) -> tuple[int, int, int]:
    """Return the one colour of a job's picture."""
    return (number * 20 % 256, 80, 160)


def exported(invoke: Invoke, layout: str, *flags: str) -> Path:
    """Export the newest submission and return the folder."""
    done = invoke("export", "@last", "--format", layout, "--to", "x", *flags)
    assert done.exit_code == 0, done.stderr
    return Path("x")


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Load a data set as a user does, into a cache of this test."""
    return lambda *args, **named: datasets.load_dataset(
        *args, split="train", cache_dir=str(tmp_path / "cache"), **named
    )


@pytest.mark.usefixtures("otters")
def test_sidecars_are_not_taken_for_the_data(invoke: Invoke, load: Callable[..., Any]) -> None:
    """There are as many of them as pictures; the card says which files are which."""
    folder = exported(invoke, "imagefolder", "--sidecar")
    pictures = sorted(folder.glob("*.png"))
    assert [path.with_suffix(".json").is_file() for path in pictures] == [True] * len(CAPTIONS)
    found = load(str(folder))
    assert found["text"] == CAPTIONS
    assert len(found["image"]) == len(CAPTIONS)


@pytest.mark.usefixtures("otters")
def test_an_imagefolder_is_loaded(invoke: Invoke, load: Callable[..., Any]) -> None:
    """By `datasets`, which takes every column of the metadata along, each of one kind."""
    folder = exported(invoke, "imagefolder")
    found = load("imagefolder", data_dir=str(folder))
    assert found["text"] == CAPTIONS
    assert [picture.getpixel((9, 9)) for picture in found["image"]] == [colour(n) for n in SUCCEEDED]
    assert found["score"][:3] == [None, 0.5, None]
    assert found["seed"] == [100 + number for number in SUCCEEDED]
    first = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert next(iter(first)) == "file_name"


@pytest.mark.usefixtures("otters")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the end
def test_shards_are_read_by_webdataset(invoke: Invoke) -> None:
    """Three files a sample, in shards by size, and no sample twice."""
    folder = exported(invoke, "webdataset", "--shard-size", "8KB")
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(shards) > 2
    samples = list(
        webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "txt", "json")
    )
    assert [caption for _, caption, _ in samples] == CAPTIONS
    assert [round(float(picture.getpixel((9, 9))[0])) for picture, _, _ in samples] == [
        colour(number)[0] for number in SUCCEEDED
    ]
    assert [said["seed"] for _, _, said in samples] == [100 + number for number in SUCCEEDED]
    assert all(Path(path).stat().st_size <= 8_000 + 10_240 for path in shards)  # and the end of a tar


@pytest.mark.usefixtures("otters")
def test_beside_a_shard_are_the_files_of_img2dataset(invoke: Invoke) -> None:
    """A table with a row for each sample and its columns first, and what came of the shard."""
    folder = exported(invoke, "webdataset")
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "00000.parquet", "00000.tar", "00000_stats.json", "README.md",
    ]  # fmt: skip
    table = parquet.read_table(folder / "00000.parquet")
    assert table.column_names[:10] == [
        "url", "caption", "key", "status", "error_message", "width", "height", "original_width",
        "original_height", "sha256",
    ]  # fmt: skip
    assert table["caption"].to_pylist() == CAPTIONS
    with tarfile.open(folder / "00000.tar") as archive:
        names = archive.getnames()
        said = json.load(archive.extractfile("000000003.json"))  # type: ignore[arg-type]  # it is a file
    assert names[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
    assert said == table.to_pylist()[3]
    stats = json.loads((folder / "00000_stats.json").read_text())
    assert {name: stats[name] for name in ("count", "successes", "failed_to_download", "status_dict")} == {
        "count": 10, "successes": 10, "failed_to_download": 0, "status_dict": {"success": 10},
    }  # fmt: skip


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_the_folder_alone_is_a_data_set(invoke: Invoke, load: Callable[..., Any], layout: str) -> None:
    """The card says which files are the data, so `load_dataset(FOLDER)` needs to know nothing."""
    found = load(str(exported(invoke, layout, "--shard-size", "8KB")))
    assert found["text" if layout == "parquet" else "txt"] == CAPTIONS
    pictures = found["image" if layout == "parquet" else "png"]
    assert [picture.getpixel((9, 9)) for picture in pictures] == [colour(number) for number in SUCCEEDED]


@pytest.mark.usefixtures("otters")
def test_parquet_holds_the_pictures(invoke: Invoke, load: Callable[..., Any]) -> None:
    """For pyarrow a struct of bytes and path, for `datasets` a feature that it decodes."""
    folder = exported(invoke, "parquet")
    table = parquet.read_table(folder / "00000.parquet")
    assert table["text"].to_pylist() == CAPTIONS
    row = table["image"][0].as_py()
    assert row["path"] == "000000-an-otter-číslo-0.png"
    assert row["bytes"].startswith(b"\x89PNG")
    found = load("parquet", data_files=f"{folder}/*.parquet")
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["score"].dtype == "float64"


@pytest.mark.usefixtures("otters")
def test_parquet_can_hold_links(invoke: Invoke, load: Callable[..., Any]) -> None:
    """No bytes; where the store can be reached, `datasets` opens the pictures all the same."""
    folder = exported(invoke, "parquet", "--link")
    row = parquet.read_table(folder / "00000.parquet")["image"][0].as_py()
    assert row["bytes"] is None
    assert Path(row["path"]).is_file()
    found = load("parquet", data_files=f"{folder}/*.parquet")
    assert found[3]["image"].getpixel((9, 9)) == colour(3)


def test_csv_has_links_and_parameters(invoke: Invoke, otters: str) -> None:
    """Also of jobs that have no picture, with the reason."""
    folder = exported(invoke, "csv", "--status", "succeeded", "--status", "failed")
    with (folder / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == PROMPTS
    assert Path(rows[3]["link"]).is_file()
    assert (rows[4]["link"], rows[4]["status"], rows[4]["error"]) == ("", "failed", "It came out black.")
    assert (rows[3]["job"], rows[3]["score"], rows[0]["score"]) == (f"{otters}:3", "1.5", "")


@pytest.mark.usefixtures("otters")
def test_a_contact_sheet_is_all_there_is(invoke: Invoke) -> None:
    """With the card beside it."""
    folder = exported(invoke, "contact-sheet")
    names = {path.name for path in folder.iterdir()}
    assert names == {".promptmill.json", "README.md", "contact-sheet.png"}
    with Image.open(folder / "contact-sheet.png") as sheet:
        colours = {shade for _, shade in sheet.convert("RGB").getcolors(100_000) or ()}
    assert {colour(number) for number in SUCCEEDED} <= colours


@pytest.mark.usefixtures("otters")
def test_a_grid_comes_beside_an_imagefolder(invoke: Invoke, load: Callable[..., Any]) -> None:
    """Into the same folder, which stays one that `datasets` loads."""
    exported(invoke, "imagefolder")
    folder = exported(invoke, "grid")
    assert (folder / "grid.png").is_file()
    assert load("imagefolder", data_dir=str(folder))["text"] == CAPTIONS


@pytest.mark.parametrize("name", ["a.png", "é" * 50, "é" * 51, "folder/" * 14 + "ab", "x" * 101, "x" * 250])
@pytest.mark.parametrize("size", [0, 511, 8**11 - 1, 8**11])
def test_the_head_of_a_file_in_a_tar_is_tarfiles_own(name: str, size: int) -> None:
    """Short and long names, small files and ones of over 8 GiB."""
    member = tarfile.TarInfo(name)
    member.size = size
    assert tar_head(name, size) == member.tobuf(tarfile.GNU_FORMAT, "utf-8")


def test_a_picture_keeps_the_suffix_of_its_format(invoke: Invoke, stand_in: Any, store: JobStore) -> None:
    """Whatever pictures are encoded as."""
    invoke("submit", "-p", "an otter")
    stand_in.start()
    finish = store.finish
    stand_in.store.finish = lambda claim, image: finish(claim, _as_webp(image))
    stand_in.render()
    folder = exported(invoke, "webdataset")
    with tarfile.open(folder / "00000.tar") as archive:
        assert archive.getnames()[0] == "000000000.webp"


def _as_webp(image: Any) -> Any:
    import dataclasses  # noqa: PLC0415  (here only)

    return dataclasses.replace(image, format="webp")


def test_columns_of_several_kinds_and_of_our_names_are_kept(invoke: Invoke, stand_in: Any) -> None:
    """A column whose values differ in kind becomes text; one that is called like ours is told apart."""
    rows = [
        {"prompt": "a", "tag": 1, "key": "mine", "image": "i", "list": [1, "x"]},
        {"prompt": "b", "tag": "one", "list": []},
    ]
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert invoke("submit", "mixed.jsonl").exit_code == 0
    stand_in.start()
    stand_in.render()
    table = parquet.read_table(exported(invoke, "webdataset") / "00000.parquet").to_pylist()
    assert [row["tag"] for row in table] == ["1", "one"]
    assert [row["extra_key"] for row in table] == ["mine", None]
    assert [row["list"] for row in table] == ['[1, "x"]', "[]"]
    assert [row["key"] for row in table] == ["000000000", "000000001"]
    done = invoke("export", "@last", "--format", "parquet", "--to", "y")
    assert done.exit_code == 0, done.stderr
    assert parquet.read_table("y/00000.parquet")["extra_image"].to_pylist() == ["i", None]
