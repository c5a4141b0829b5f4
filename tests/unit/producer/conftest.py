"""A home of its own for every test, the command line in this process, and a stand-in for a worker."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image as Picture

from producer import company
from producer.cli import cli
from storage.imagestore import picture_key
from storage.jobstore import JobStore
from storage.records import Claim, Image, Worker, WorkerState
from storage.settings import Settings
from storage.stores import open_image_store, open_job_store
from tests.stand_in_process import StandInProcess

Invoke = Callable[..., Result]
DEFAULTS: dict[str, object] = {"width": 64, "height": 64}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home below the test's own folder, where the test also works."""
    folder = tmp_path / "home"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    monkeypatch.setenv("PROMPTMILL_HOME", str(folder))
    return folder


def write_model(folder: Path, **recommended: object) -> Path:
    """Make the small files of a model whose pictures have 64x64 pixels, and its recommendations if any."""
    configs: dict[str, object] = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
        "unet/config.json": {"sample_size": 16, "_diffusers_version": "0.36.0"},
        "vae/config.json": {"block_out_channels": [16, 32, 64]},
    }
    if recommended:
        configs["promptmill.json"] = {"defaults": recommended}
    for name, content in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "unet" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture(autouse=True)
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the model that comes with the project: here one whose weights are empty."""
    folder = write_model(tmp_path / "models" / "demo")
    monkeypatch.setattr("storage.models.builtin_model_path", lambda: folder)
    return folder


@pytest.fixture
def recommend(tmp_path: Path) -> Callable[..., Path]:
    """Make a model's folder, `demo` or another one, with recommendations; return it."""
    return lambda name="demo", **recommended: write_model(tmp_path / "models" / name, **recommended)


@pytest.fixture
def settings(home: Path) -> Settings:
    """The settings of this home."""
    return Settings(home=home)


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    """The real job store of this home."""
    opened = open_job_store(settings)
    yield opened
    opened.close()


@pytest.fixture
def invoke() -> Invoke:
    """Call the command line in this process."""

    def call(*args: str | Path, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin)

    return call


TORCH = {
    "torch": "2.13.0", "build": "CPU only", "auto": "float32 on cpu",
    "devices": [
        {
            "type": "cpu", "name": "A CPU", "kind": "AVX2", "memory": None, "fast": [],
            "dtypes": {"float32": {"works": True}, "float16": {"works": True}},
        }
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch says of itself to `doctor`, whose trials of disks are short here."""
    told = copy.deepcopy(TORCH)
    monkeypatch.setattr("producer.checks.machine.ask_torch", lambda: told)
    monkeypatch.setattr("producer.checks.speed.ENOUGH", 0.01)
    return told


class StandInWorker:
    """Claims and finishes jobs as a worker does, without a model."""

    def __init__(
        self, store: JobStore, settings: Settings, *, model: str = "demo", **defaults: object
    ) -> None:
        self.store = store
        self.images = open_image_store(settings)
        self.model = model
        self.defaults = DEFAULTS | defaults
        self.incarnation = ""
        self.numerics: dict[str, object] = {"lanes": 2}
        self.colour: Callable[[Claim], int] = lambda claim: claim.index * 20 % 256

    def start(self, state: WorkerState = WorkerState.READY) -> None:
        """Insert the row of a new incarnation."""
        moment = datetime.now(UTC)
        self.incarnation = secrets.token_hex(6)
        self.store.add_worker(
            Worker(
                incarnation=self.incarnation, name=f"{self.model}@here", host="here", pid=1, device="cpu",
                device_uuid=None, model=self.model, revision="abc", family="sd1", defaults=self.defaults,
                mode="exact", dtype="float32", lanes=2, concurrency=2, version="1", state=state, beat=0,
                beat_at=moment, started_at=moment,
            )
        )  # fmt: skip

    def stop(self) -> None:
        """End in order."""
        self.store.set_worker_state(self.incarnation, WorkerState.STOPPED)

    def render(self, *, fail: set[int] = frozenset()) -> int:  # type: ignore[assignment]
        """Finish all jobs that can be dispatched; those with an index in `fail` fail for good."""
        done = 0
        while ids := self.store.take_for_dispatch(self.model, window=100):
            for job in ids:
                claim = self.store.claim(job, self.incarnation, defaults=self.defaults)
                assert isinstance(claim, Claim)
                if claim.index in fail:
                    self.store.fail(
                        claim, error_type="RenderError", message="It came out black.", permanent=True
                    )
                else:
                    self.finish(claim)
                done += 1
        return done

    def finish(self, claim: Claim) -> None:
        """Store a picture of one colour and its row."""
        buffer = io.BytesIO()
        Picture.new("RGB", (64, 64), (self.colour(claim), 80, 160)).save(buffer, "PNG")
        data = buffer.getvalue()
        key = picture_key(claim.submission, claim.index, claim.attempt)
        self.images.write(key, data)
        digest = hashlib.sha256(data).hexdigest()
        self.store.finish(
            claim,
            Image(
                key=key, file_sha256=digest, pixel_sha256=digest, bytes=len(data), format="png",
                seconds={"denoise": 0.5}, numerics=dict(self.numerics),
            ),
        )  # fmt: skip


@pytest.fixture
def stand_in(store: JobStore, settings: Settings) -> StandInWorker:
    """A worker for model demo, not started yet."""
    return StandInWorker(store, settings)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, stand_in: StandInWorker) -> type[StandInProcess]:
    """Put the stand-in in the place of worker processes."""

    class Process(StandInProcess):
        started: list[StandInProcess] = []  # noqa: RUF012  (one for each test)

        def behaviour(self) -> object:  # type: ignore[override]
            stand_in.start()
            return stand_in.render()

        def stop(self) -> None:
            super().stop()
            stand_in.stop()

    monkeypatch.setattr(company, "BackgroundWorker", Process)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return Process


@pytest.fixture
def farmhand(store: JobStore, settings: Settings) -> Callable[..., StandInWorker]:
    """Make a worker for any model, not started yet, that publishes these defaults."""
    return lambda model, **defaults: StandInWorker(store, settings, model=model, **defaults)
