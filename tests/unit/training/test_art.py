"""The art's package: the one that was trained on, or a sentence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from training.art import PACKAGE, VERSION, fetch_art
from training.errors import TrainingError

TARBALL = f"{PACKAGE}-{VERSION}.tgz"


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an npm that does this first on the path."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)


def test_another_package_is_refused(tmp_path: Path) -> None:
    """Its checksum is not the one that was trained on."""
    (tmp_path / TARBALL).write_bytes(b"something else")
    with pytest.raises(TrainingError, match=r"is not the package that was trained on .* remove it"):
        fetch_art(tmp_path)


def test_npm_s_own_reason_is_told_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that broke off must not be taken for the package the next time."""
    fake_npm(tmp_path, monkeypatch, f"echo half > {TARBALL}; echo 'no route to host' >&2; exit 1")
    with pytest.raises(TrainingError, match=r"npm cannot fetch .*: no route to host"):
        fetch_art(tmp_path / "art")
    assert list((tmp_path / "art").iterdir()) == []


def test_without_npm_the_sentence_names_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install it, or bring the file."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainingError, match=f"install npm, or put {TARBALL} into"):
        fetch_art(tmp_path)
