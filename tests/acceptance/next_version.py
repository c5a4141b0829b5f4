"""A promptmill of the next version, made of this one: with one migration more, and the column it adds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from storage.database import HEAD

ROOT = Path(__file__).parents[2]
NEXT = f"{int(HEAD) + 1:04}"
VERSION = "99.0"
_MIGRATION = f'''"""Submissions have a colour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade() -> None:
    """Add the column, empty in older rows."""
    with op.batch_alter_table("submissions") as batch:
        batch.add_column(sa.Column("colour", sa.Text(), nullable=True))
'''
_COLUMN = '    Column("content_hash", String(64), index=True),\n'


def make_next_version(folder: Path) -> dict[str, str]:
    """Copy the packages with what the next version has more; return the environment that runs it."""
    for package in ("producer", "storage", "worker", "migrations"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").mkdir()
    (folder / "models" / "demo").symlink_to(ROOT / "models" / "demo")
    (folder / "migrations" / "versions" / f"v{NEXT}_colour.py").write_text(_MIGRATION)
    _replace(folder / "storage" / "database.py", f'HEAD = "{HEAD}"', f'HEAD = "{NEXT}"')
    _replace(folder / "storage" / "rows.py", _COLUMN, _COLUMN + '    Column("colour", Text),\n')
    # Found ahead of the installed one: what `importlib.metadata` says of promptmill.
    told = folder / f"promptmill-{VERSION}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: promptmill\nVersion: {VERSION}\n")
    (told / "entry_points.txt").write_text("")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} is not as this expects it"
    path.write_text(text.replace(old, new))
