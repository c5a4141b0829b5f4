"""Lines of docs/security.md that no other test holds, and that each of its lines has a test at all."""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.jobstore import JobStore
from storage.settings import Settings
from storage.stores import open_image_store
from tests.unit.producer.conftest import Invoke, StandInWorker

ROOT = Path(__file__).parents[3]
MODEL_LINE = re.compile(r"^\| .*\| (.*) \|$", re.MULTILINE)
TEST = re.compile(r"\[`(\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


def test_every_line_of_the_threat_model_names_a_test_that_exists() -> None:
    """A defence without a test is a wish."""
    lines = MODEL_LINE.findall((ROOT / "docs" / "security.md").read_text())[2:]
    assert len(lines) > 10
    for line in lines:
        named = TEST.findall(line)
        assert named, f"no test is named in: {line}"
        for name, file in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A user whose files everybody may read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_prompts_and_pictures_are_private_whatever_the_umask(
    home: Path, invoke: Invoke, store: JobStore, stand_in: StandInWorker
) -> None:
    """Folders 0700, the database and its locks 0600: also in a home that was there before, open to all."""
    home.chmod(0o755)
    assert invoke("submit", "-p", "an otter", "--model", "demo").exit_code == 0
    open_image_store(Settings(home=home))
    stand_in.start()
    assert stand_in.render() == 1
    private = [home / "images", *home.glob("promptmill.db*")]
    assert len(private) > 2
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert store.counts("@last") is not None


def test_a_fresh_home_is_private(settings: Settings, invoke: Invoke) -> None:
    """What is below it needs no mode of its own then."""
    assert invoke("submit", "-p", "an otter", "--model", "demo").exit_code == 0
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_a_submission_has_a_limit(invoke: Invoke, store: JobStore) -> None:
    """Ten million jobs: more are a slip, and would fill a disk; reading ends where they are too many."""
    prompts = "".join(f"otter {number}\n" for number in range(101)).encode() + b"x --no-such-option 1\n"
    refused = invoke("submit", "-", "--images", "100000", "--model", "demo", stdin=prompts)
    assert refused.exit_code == 2
    assert "more than 10,000,000 jobs" in refused.stderr
    assert "--no-such-option" not in refused.stderr, "it went on reading"
    assert store.submissions() == []


@pytest.mark.parametrize("model", ["/etc/passwd", "../../models", "owner/repo", "demo/../x"])
def test_a_line_names_no_model_that_is_not_configured(model: str, invoke: Invoke, store: JobStore) -> None:
    """A path or a repo in a prompt file loads nothing: what can be rendered is the worker's to say."""
    Path("list.jsonl").write_text(f'{{"prompt": "an otter", "model": {model!r}}}'.replace("'", '"'))
    refused = invoke("submit", "list.jsonl")
    assert refused.exit_code == 2, refused.output
    assert store.submissions() == []


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"IHDR", struct.pack("!IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
        chunk(b"IHDR", struct.pack("!IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
        + chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(300 * 2**20))),
    ],
    ids=["pixels", "text"],
)
def test_a_picture_that_unfolds_into_gigabytes_is_refused(chunks: bytes, invoke: Invoke) -> None:
    """A few bytes that promise 2^62 pixels, or 300 MB of text."""
    Path("bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))
    refused = invoke("submit", "--from-image", "bomb.png", "--model", "demo")
    assert refused.exit_code == 2, refused.output
    assert "Traceback" not in refused.stderr


def test_json_that_is_nested_without_end_is_refused(invoke: Invoke) -> None:
    """It must not end Python's stack."""
    Path("deep.jsonl").write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    refused = invoke("submit", "deep.jsonl", "--model", "demo")
    assert refused.exit_code == 2, refused.output
    assert "Traceback" not in refused.stderr


def test_a_prompt_that_is_a_path_stays_in_the_exports_folder(
    invoke: Invoke, stand_in: StandInWorker, tmp_path: Path
) -> None:
    """A picture's name is made of its prompt's words only."""
    invoke("submit", "-p", "../../../etc/passwd", "-p", "/etc/passwd", "--model", "demo")
    stand_in.start()
    stand_in.render()
    before = set(tmp_path.rglob("*"))
    exported = invoke("export", "@last", "--to", "out")
    assert exported.exit_code == 0, exported.output
    folder = Path("out").absolute()
    assert {path for path in tmp_path.rglob("*") if path not in before} == {folder, *folder.iterdir()}
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "000000-etc-passwd.png", "000001-etc-passwd.png",
    ]  # fmt: skip


def test_a_password_in_a_stores_url_is_never_shown(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any fsspec URL may have one; errors, `doctor` and `show` leave it out."""
    monkeypatch.setenv("PROMPTMILL_STORE_URL", "sftp://me:sesame@127.0.0.1:1/pictures")
    invoke("submit", "-p", "an otter", "--model", "demo")
    said = [
        invoke(*words).output
        for words in (("doctor",), ("show", "@last:0"), ("export", "@last", "--to", "o"))
    ]
    assert "127.0.0.1:1/pictures" in said[0]
    assert not any("sesame" in text for text in said)
