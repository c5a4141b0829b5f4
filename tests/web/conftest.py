"""A site over a real home that was filled without a worker, and a client that stands in for a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.settings import Settings
from storage.stores import open_image_store, open_job_store
from tests.unit.producer.conftest import StandInWorker, write_model
from web.app import create_app
from web.guard import Rules
from web.hosts import Hosts
from web.limits import RateLimit
from web.tokens import Token

BASE = "http://127.0.0.1:8344"
MARKUP = "<script>alert(\"1\")</script> & 'otter'"
JOBS = 9
LEASE = 1e6  # seconds: the worker that filled the home is alive for as long as the tests take
FAILED = 4
PLENTY = RateLimit(rate=1e6, burst=10**6)
MakeClient = Callable[..., TestClient]


def job(number: int) -> JobParameters:
    """Return one of the jobs of the submission `otters`."""
    extra = {"genre": ("neon", "oil")[number % 2]}
    prompt = MARKUP if number == 0 else f"An otter, number {number}"
    sampler = ("lms", "euler")[number % 2]
    return JobParameters(prompt=prompt, seed=100 + number, sampler=sampler, extra=extra)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, no setting from outside, and a demo model without weights."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HOME", "DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    model = write_model(tmp_path / "models" / "demo")
    monkeypatch.setattr("storage.models.builtin_model_path", lambda: model)
    return folder


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with nine jobs, of which one failed and one waits again; the others have pictures."""
    settings = Settings(home=tmp_path_factory.mktemp("filled"))
    store = open_job_store(settings)
    submission, _ = store.add_submission(model="demo", source="otters.csv", name="otters")
    store.add_jobs(submission.id, map(job, range(JOBS)))
    store.open_submission(submission.id)
    worker = StandInWorker(store, settings)
    worker.start()
    worker.render(fail={FAILED})
    store.close()
    return settings.home


@pytest.fixture
def settings(filled: Path, tmp_path: Path) -> Settings:
    """The settings of a copy of that home."""
    shutil.copytree(filled, tmp_path / "home")
    return Settings(home=tmp_path / "home", lease=LEASE)


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    """Its job store."""
    opened = open_job_store(settings)
    yield opened
    opened.close()


@pytest.fixture
def otters(store: JobStore) -> str:
    """The id of its submission."""
    return store.find_submission("otters").id


@pytest.fixture
def worker(store: JobStore, settings: Settings) -> StandInWorker:
    """Somebody who renders, not started yet."""
    return StandInWorker(store, settings)


def rules(token: Token | None = None, **limits: RateLimit) -> Rules:
    """Return rules without limits on how much is asked for, but those given."""
    return Rules(
        hosts=Hosts(), token=token, **{"reading": PLENTY, "writing": PLENTY, "guessing": PLENTY, **limits}
    )


@pytest.fixture
def make_client(store: JobStore, settings: Settings) -> Iterator[MakeClient]:
    """Open a client of a site with other rules."""
    opened: list[TestClient] = []

    def make(its_rules: Rules | None = None, **options: object) -> TestClient:
        app = create_app(settings, store, open_image_store(settings), rules=its_rules or rules())
        client = TestClient(app, base_url=BASE, raise_server_exceptions=False, **options)  # type: ignore[arg-type]
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client on the same machine."""
    return make_client()


@pytest.fixture
def app(client: TestClient) -> FastAPI:
    """The application that the client talks to."""
    found = client.app
    assert isinstance(found, FastAPI)
    return found


def form_token(client: TestClient, path: str = "/submit") -> str:
    """Load a page and return the token of its forms."""
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', client.get(path).text)
    assert found is not None
    return found[1]


def post(client: TestClient, path: str, **fields: str) -> str:
    """Post a form as a page of ours would, follow it, and return the page that comes."""
    answer = client.post(path, data={"form_token": form_token(client), **fields})
    assert answer.status_code == 200, answer.text
    return answer.text
