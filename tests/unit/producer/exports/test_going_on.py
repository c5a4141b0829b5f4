"""An export that was stopped goes on without a duplicate or a gap, and never into somebody else's folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import Result

from producer.exports import survey
from producer.exports.options import FORMATS as LAYOUTS
from tests.servers import S3

Invoke = Callable[..., Result]
ROOT = Path(__file__).parents[4]

# The command line, killed by the operating system instead of giving its nth file its name.
KILLED = """
import os, signal, sys
left, rename = int(sys.argv.pop(1)), os.replace
def replace(path, target, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target, **options)
os.replace = replace
from producer.cli import main
main()
"""
FORMATS = {
    "imagefolder": (),
    "webdataset": ("--shard-size", "6KB"),
    "parquet": ("--shard-size", "1KB"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of an export by its name, those apart that say when it was made."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("_stats.json") and path.name != ".promptmill.json"
    }


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize("layout", FORMATS)
def test_an_export_killed_half_way_is_completed(invoke: Invoke, layout: str) -> None:
    """SIGKILL at a random file; the next run leaves what one undisturbed run does, to the byte."""
    flags = ("export", "otters", "--format", layout, *FORMATS[layout])
    assert invoke(*flags, "--to", "whole").exit_code == 0
    moment = random.choice((0, random.randrange(12)))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(moment), *flags, "--to", "x"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    assert contents(Path("x")) != contents(Path("whole"))
    done = invoke(*flags, "--to", "x")
    assert done.exit_code == 0, (moment, done.stderr)
    assert contents(Path("x")) == contents(Path("whole")), moment


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_complete_shards_are_kept_and_damaged_ones_written_anew(invoke: Invoke, layout: str) -> None:
    """A second run writes only the shard whose file is gone or cut short."""
    flags = ("export", "otters", "--format", layout, *FORMATS[layout], "--to", "x")
    assert invoke(*flags).exit_code == 0
    ending = "tar" if layout == "webdataset" else "parquet"
    shards = sorted(Path("x").glob(f"*.{ending}"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    whole = contents(Path("x"))
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[3].unlink()
    done = invoke(*flags)
    assert f"{len(shards) - 2} were complete already" in done.stderr
    assert contents(Path("x")) == whole
    changed = [path for path in shards if path.stat().st_mtime_ns != before[path]]
    assert changed == [shards[1], shards[3]]


@pytest.mark.parametrize("layout", FORMATS)
def test_what_has_succeeded_since_is_in_the_next_run(
    invoke: Invoke, otters: str, stand_in: Any, layout: str
) -> None:
    """In its place among the others: the result is that of an export that is made now."""
    flags = ("export", otters, "--format", layout, *FORMATS[layout])
    assert invoke(*flags, "--to", "x").exit_code == 0
    assert invoke("retry", otters).exit_code == 0
    stand_in.start()
    stand_in.render()
    done = invoke(*flags, "--to", "x")
    assert done.exit_code == 0, done.stderr
    assert ("made anew for jobs that came since" in done.stderr) == (layout != "imagefolder")
    assert invoke(*flags, "--to", "whole").exit_code == 0
    assert contents(Path("x")) == contents(Path("whole"))


def test_a_large_export_is_of_the_jobs_that_were_looked_at(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, otters: str, stand_in: Any
) -> None:
    """One that does not stay in memory reads them twice; what succeeds in between waits for the next run."""
    invoke("export", otters, "--to", "whole")
    monkeypatch.setattr("producer.exports.survey.KEPT", 2)
    assert invoke("retry", otters).exit_code == 0
    stand_in.start()

    looked = survey.survey

    def look(*arguments: Any) -> Any:
        found = looked(*arguments)
        stand_in.render()
        return found

    monkeypatch.setattr("producer.exports.run.survey", look)
    done = invoke("export", otters, "--to", "x")
    assert "Exported 10 pictures" in done.stderr
    x, whole = contents(Path("x")), contents(Path("whole"))
    assert x.pop("README.md") != whole.pop("README.md")  # it counts the new one among the submission's
    assert x == whole
    assert "Exported 11 pictures" in invoke("export", otters, "--to", "x").stderr


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--format", "csv"), "with --format imagefolder, not --format csv"),
        (("--name", "{seed}"), "with no --name, not --name '{seed}'"),
        (("--where", "genre=neon"), "with no --where, not --where genre=neon"),
        (("--match", "1"), "with no --match, not --match 1"),
    ],
)
def test_other_options_do_not_go_into_the_same_folder(
    invoke: Invoke, flags: tuple[str, ...], said: str
) -> None:
    """One sentence says which differ, and nothing changes."""
    assert invoke("export", "otters", "--to", "x").exit_code == 0
    before = contents(Path("x"))
    done = invoke("export", "otters", "--to", "x", *flags)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert contents(Path("x")) == before


def test_another_submission_or_other_files_are_left_alone(invoke: Invoke, otters: str) -> None:
    """A folder of another export, of other files, and a file."""
    assert invoke("export", otters, "--to", "x").exit_code == 0
    invoke("submit", "-p", "a fox")
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    for place, said in (
        ("x", f"submission {otters}"),
        ("other", "other files"),
        ("other/mine.txt", "a file"),
    ):
        done = invoke("export", "@last", "--to", place)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


def test_an_export_of_an_earlier_version_is_gone_on_with(invoke: Invoke, otters: str) -> None:
    """Whose marker names the submission only."""
    Path("x").mkdir()
    Path("x/.promptmill.json").write_text(json.dumps({"version": 1, "submission": otters, "key": None}))
    assert invoke("export", otters, "--to", "x").exit_code == 0
    assert Path("x/metadata.jsonl").is_file()


@pytest.mark.usefixtures("otters")
def test_a_card_that_somebody_has_changed_is_kept(invoke: Invoke) -> None:
    """It says more than ours; one that nobody touched is kept true."""
    assert invoke("export", "otters", "--to", "x").exit_code == 0
    card = Path("x/README.md")
    ours = card.read_text(encoding="utf-8")
    assert invoke("export", "otters", "--to", "x").stderr.count("\n") == 1
    card.write_text(ours + "\nMine.\n", encoding="utf-8")
    done = invoke("export", "otters", "--to", "x")
    assert (done.exit_code, "left alone" in done.stderr) == (0, True)
    assert card.read_text(encoding="utf-8").endswith("Mine.\n")


def test_a_picture_that_the_store_has_lost_is_named(invoke: Invoke, home: Path, otters: str) -> None:
    """Or that is not as large as it was: exit code 3, and the shard is not there at all."""
    picture = home / "images" / otters / "0000" / "000003.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-1])
    done = invoke("export", otters, "--format", "webdataset", "--to", "x")
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert f"{otters}/0000/000003.png" in done.stderr
    assert contents(Path("x")) == {}
    picture.write_bytes(whole)
    assert invoke("export", otters, "--format", "webdataset", "--to", "x").exit_code == 0


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The URL of a folder in an empty bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("exports")
    yield "s3://exports/otters"
    s3.drop_bucket("exports")


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize("layout", ["imagefolder", "webdataset"])
def test_an_object_store_gets_the_same_files(invoke: Invoke, bucket: str, s3: S3, layout: str) -> None:
    """Each whole, also where one was lost before a second run."""
    flags = ("export", "otters", "--format", layout, *FORMATS[layout])
    assert invoke(*flags, "--to", "x").exit_code == 0
    done = invoke(*flags, "--to", bucket)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{bucket}\n"
    expected = contents(Path("x"))
    lost = min(expected)
    s3.client.delete_object(Bucket="exports", Key=f"otters/{lost}")
    assert invoke(*flags, "--to", bucket).exit_code == 0
    for name, data in expected.items():
        assert s3.client.get_object(Bucket="exports", Key=f"otters/{name}")["Body"].read() == data
    refused = invoke("export", "otters", "--to", bucket, "--match", "1")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.usefixtures("otters", "bucket")
def test_a_bucket_that_is_not_there_is_one_sentence(invoke: Invoke) -> None:
    """It says what to do about it."""
    done = invoke("export", "otters", "--to", "s3://nosuch/otters")
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert "create the bucket, or check --to" in done.stderr


@pytest.mark.usefixtures("otters")
def test_any_file_system_of_fsspec_will_do(invoke: Invoke) -> None:
    """One in memory stands for those that nobody has thought of."""
    done = invoke("export", "otters", "--format", "grid", "--to", "memory://somewhere", "--name", "a/{index}")
    assert done.exit_code == 0, done.stderr
    files = fsspec.filesystem("memory")
    assert len(files.ls("/somewhere/a", detail=False)) == 10
    assert files.exists("/somewhere/grid.png")


@pytest.mark.usefixtures("otters")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_progress_counts_every_job_once(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """In the first run and in one that finds everything there; a bar that stops short looks like a hang."""
    told: list[list[int]] = []

    @contextlib.contextmanager
    def counting(total: int, *, title: str) -> Iterator[Callable[[int], None]]:
        told.append([total, 0])
        assert title

        def done(more: int) -> None:
            told[-1][1] += more

        yield done

    monkeypatch.setattr("producer.follow.counting", counting)
    for _ in range(2):
        flags = FORMATS.get(layout, ())
        assert invoke("export", "otters", "--format", layout, *flags, "--to", "x").exit_code == 0
    assert told == [[10, 10], [10, 10]]
