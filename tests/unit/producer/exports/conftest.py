"""A submission with pictures of its own colours, two columns of its own, and one job that failed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from storage.parameters import JobParameters
from storage.settings import Settings
from storage.stores import open_job_store
from tests.unit.producer.conftest import StandInWorker

Invoke = Callable[..., Result]
GENRES = ("neon", "oil painting", "狐")
PROMPTS = [f"An OTTER, číslo {number}" for number in range(11)]
FAILED = 4


def job(number: int) -> JobParameters:
    """Return one of the jobs."""
    extra = {"genre": GENRES[number % 3]} | ({"score": number / 2} if number % 2 else {})
    sampler = ("lms", "euler")[number % 2]
    return JobParameters(prompt=PROMPTS[number], seed=100 + number, sampler=sampler, extra=extra)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with eleven jobs, of which one failed and the others have pictures, and the submission's id."""
    settings = Settings(home=tmp_path_factory.mktemp("rendered"))
    store = open_job_store(settings)
    submission, _ = store.add_submission(model="demo", source="otters.csv", name="otters")
    store.add_jobs(submission.id, map(job, range(len(PROMPTS))))
    store.open_submission(submission.id)
    worker = StandInWorker(store, settings)
    worker.start()
    worker.render(fail={FAILED})
    store.close()
    return settings.home, submission.id


@pytest.fixture
def otters(rendered: tuple[Path, str], home: Path) -> str:
    """The same submission in this test's home; return its id."""
    shutil.copytree(rendered[0], home)
    return rendered[1]
