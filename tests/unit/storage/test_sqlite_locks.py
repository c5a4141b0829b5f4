"""A process that opens a home's database twice keeps SQLite's locks, on which other processes rely."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import UnreachableError
from storage.settings import Settings
from storage.stores import open_job_store

ADD = """
from pathlib import Path
import sys
from storage.settings import Settings
from storage.stores import open_job_store
store = open_job_store(Settings(home=Path(sys.argv[1])))
print(store.add_submission(model="demo", source="test")[0].id)
store.close()
"""


def add_elsewhere(home: Path) -> str:
    """Add a submission in another process, which closes the database; return its id."""
    command = [sys.executable, "-c", ADD, str(home)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_what_others_write_is_seen_for_ever(tmp_path: Path) -> None:
    """Also by who made the database, which opens it twice for that, and after others have closed it."""
    settings = Settings(home=tmp_path)
    store = open_job_store(settings)
    open_job_store(settings).close()
    for _ in range(2):  # the first of them may not take itself for the last one
        submission = add_elsewhere(tmp_path)
        assert store.find_submission(submission).id == submission
    ours, _ = store.add_submission(model="demo", source="test")
    store.close()
    assert open_job_store(settings).find_submission(ours.id).id == ours.id


def test_only_its_owner_can_read_a_new_database(tmp_path: Path) -> None:
    """Prompts are private."""
    settings = Settings(home=tmp_path)
    open_job_store(settings).close()
    assert stat.S_IMODE(settings.database_path.stat().st_mode) == 0o600


def test_a_folder_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    """It says which one."""
    settings = Settings(home=tmp_path)
    settings.database_path.mkdir()
    with pytest.raises(UnreachableError, match=r"promptmill\.db cannot be opened: Is a directory"):
        open_job_store(settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_database_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    """It says what is not permitted."""
    settings = Settings(home=tmp_path)
    open_job_store(settings).close()
    settings.database_path.chmod(0)
    with pytest.raises(UnreachableError, match="Permission denied"):
        open_job_store(settings)
