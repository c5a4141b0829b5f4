"""A worker process with LoRAs: from claim to file, a job that it cannot render, files that it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import save_file

from storage.errors import BadInputError, ModelLoadError
from storage.infotext import read_infotext
from storage.lora_files import lora_facts, lora_files
from storage.models import ModelReference, builtin_model_path
from storage.parameters import JobParameters
from storage.picture_record import read_record
from storage.records import Job, JobStatus
from storage.settings import load_settings
from storage.worker_options import WorkerOptions
from tests.loras import write_lora
from worker.loading import open_engine
from worker.models.load import LoadedModel, load_model
from worker.models.loras import load_loras
from worker.orders import ChildOrder
from worker.process import WorkerProcess
from worker.tasks import render_job

STYLE = {"loras": [["style", 0.5]]}


def demo() -> LoadedModel:
    """Load the demo model, not to be shared."""
    reference = ModelReference(name="demo", source=str(builtin_model_path()))
    return load_model(reference, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA for the demo model, one for another model, and a damaged one."""
    home = tmp_path_factory.mktemp("home")
    model, library = demo(), _library()
    pipeline = library.StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet,
        scheduler=library.PNDMScheduler.from_pretrained(builtin_model_path() / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    write_lora(pipeline, home / "style.safetensors", seed=1)
    foreign = {"unet.nowhere.lora_A.weight": torch.ones(4, 8), "unet.nowhere.lora_B.weight": torch.ones(8, 4)}
    save_file(foreign, home / "foreign.safetensors")
    save_file({"weights": torch.ones(4)}, home / "none.safetensors")
    (home / "damaged.safetensors").write_bytes((home / "style.safetensors").read_bytes()[:-9])
    return home


def _library() -> Any:
    return diffusers


@pytest.fixture(scope="module")
def process(home: Path) -> Iterator[WorkerProcess]:
    """A process that serves the demo model with one LoRA; one that does not fit is configured, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
            patch.delenv(f"PROMPTMILL_{name}", raising=False)
        patch.setenv("PROMPTMILL_HOME", str(home))
        patch.setenv("PROMPTMILL_LORAS", "style=./style.safetensors,foreign=./foreign.safetensors")
        options = WorkerOptions(model=f"demo={builtin_model_path()}", lanes=4)
        process = WorkerProcess(ChildOrder(options=options, device="cpu", incarnation="w1", name="demo@here"))
        process._redis = None
        process.load()
        yield process
        process.engine.close(timeout=10)
        process.close()
        process.jobs.close()


def render(process: WorkerProcess, *jobs: JobParameters) -> list[Job]:
    """Submit jobs, render them side by side as tasks do, and return what became of them."""
    submission, _ = process.jobs.add_submission(model="demo", source="test")
    process.jobs.add_jobs(submission.id, jobs)
    process.jobs.open_submission(submission.id)
    queued = process.jobs.take_for_dispatch("demo", window=len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: render_job(process, job), queued))
    return [process.jobs.find_job(f"{submission.id}:{index}") for index in range(len(jobs))]


def test_jobs_become_pictures_that_say_their_loras(process: WorkerProcess, home: Path) -> None:
    """Record and infotext hold the LoRA with its file's hashes; a job without any says nothing of them."""
    asked = JobParameters(prompt="a fox", seed=1, num_inference_steps=3, width=64, height=64, options=STYLE)
    plain = JobParameters(prompt="a fox", seed=1, num_inference_steps=3, width=64, height=64)
    first, second, third = render(process, asked, plain, asked)
    assert first.image is not None, first.error_message
    assert second.image is not None
    assert third.image is not None
    assert first.image.file_sha256 == third.image.file_sha256 != second.image.file_sha256
    facts = lora_facts(home / "style.safetensors")
    assert first.image.numerics["loras"] == {"style": facts.sha256}
    assert "peft" in first.image.numerics["versions"]
    assert "loras" not in second.image.numerics
    assert first.image.fingerprint == third.image.fingerprint != second.image.fingerprint
    with Picture.open(process.settings.images_path / first.image.key) as picture:
        said, record = read_infotext(picture.info["parameters"]), read_record(picture.info["promptmill"])
    assert (said["prompt"], said["options"]) == ("a fox", STYLE)
    assert said["other"]["Lora hashes"] == f"style: {facts.short_hash}"
    assert record.parameters.options == STYLE


def test_the_workers_row_lists_what_fits(process: WorkerProcess) -> None:
    """A configured LoRA that was made for another model is left out, not the worker."""
    (row,) = process.jobs.workers()
    assert list(row.defaults["loras"]) == ["style"]


def test_a_job_with_an_unknown_lora_fails_with_what_to_do(process: WorkerProcess) -> None:
    """The sentence names the LoRA and the flag, and no other attempt is made."""
    (job,) = render(
        process,
        JobParameters(prompt="a fox", seed=1, num_inference_steps=2, options={"loras": [["nobodys", 1.0]]}),
    )
    assert job.status is JobStatus.FAILED
    assert "There is no LoRA nobodys in this worker, which has style" in str(job.error_message)
    assert "--lora nobodys=PATH, then `promptmill retry`" in str(job.error_message)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("foreign", "does not fit model demo"),
        ("none", "does not fit model demo"),
        ("damaged", "is no complete safetensors file"),
        ("absent", "there is nothing; check the path"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(home: Path, name: str, said: str) -> None:
    """Missing and damaged files, and those for other models, end the start of a worker that asks for them."""
    files = lora_files((), [f"it={home}/{name}.safetensors"])
    with warnings.catch_warnings(), pytest.raises(ModelLoadError, match=said):
        load_loras(demo(), files, asked=files)


def test_what_is_compiled_takes_no_loras(home: Path) -> None:
    """A worker with configured LoRAs says so before it loads anything."""
    options = WorkerOptions(model="demo", launch="compiled", loras=(f"style={home}/style.safetensors",))
    order = ChildOrder(options=options, device="cpu", incarnation="w2", name="demo@here")
    with pytest.raises(BadInputError, match="go with neither --compile nor --cuda-graphs"):
        open_engine(order, load_settings(), tunings=None, on_death=print)  # type: ignore[arg-type]  # never gets there
