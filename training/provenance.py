"""What code a model was made from."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The checkout's commit, `-dirty` behind it where tracked files differ; `unknown` outside of git.

    `models/` is left out of the comparison: the model is what the run makes, not what it is made from.
    """
    head = _git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)models")
    return f"{head}-dirty" if changed else head


def source_digest() -> str:
    """SHA-256 over the code that a run reads: processes start, and import it, throughout a run."""
    digest = hashlib.sha256()
    for path in (*sorted((ROOT / "training").glob("*.py")), ROOT / "storage" / "samplers.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run(  # noqa: S603 - fixed commands
        [git, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
