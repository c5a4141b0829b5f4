"""What code a model was made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "scipy")


def commit() -> str:
    """The checkout's commit, `-dirty` behind it where its files differ; `unknown` outside of git.

    `models/` is left out of the comparison: the model is what the run makes, not what it is made from.
    """
    if _git("rev-parse", "--show-toplevel") != str(ROOT):
        return "unknown"  # unpacked somewhere in another repository, or in none
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=normal", "--", ".", ":(exclude)models")
    if head is None or changed is None:
        return "unknown"
    return f"{head}-dirty" if changed else head


def source_digest() -> str:
    """SHA-256 over what a run's results follow from besides its plan and seed: its code and its libraries.

    Processes start, and import the code, throughout a run.
    """
    digest = hashlib.sha256()
    for path in (*sorted((ROOT / "training").glob("*.py")), ROOT / "storage" / "samplers.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\0".encode())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """Return what git says, or None where it cannot say it."""
    git = shutil.which("git")
    if git is None:
        return None
    # A hook's variables would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(  # noqa: S603 - fixed commands
        [git, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout.strip()
