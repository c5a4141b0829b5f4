"""A worker process with a model that its own pipeline renders: from claim to image row, with real parts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from storage.infotext import read_infotext
from storage.inputs import digest, input_key
from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.pipeline_limits import PipelineLimits
from storage.records import Job, JobStatus
from storage.worker_options import WorkerOptions
from tests.pipelines import tiny
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.orders import ChildOrder
from worker.process import WorkerProcess
from worker.tasks import render_job

OPEN = {"num_inference_steps": None, "guidance_scale": None, "sampler": None, "schedule": None}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A process that serves a tiny Stable Diffusion XL."""
    home = tmp_path_factory.mktemp("home")
    tiny("stable_diffusion_xl").save_pretrained(home / "xl", safe_serialization=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
            patch.delenv(f"PROMPTMILL_{name}", raising=False)
        patch.setenv("PROMPTMILL_HOME", str(home))
        options = WorkerOptions(model=f"xl={home / 'xl'}", lanes=4)
        order = ChildOrder(options=options, device="cpu", incarnation="w1", name="xl@here")
        process = WorkerProcess(order)
        process._redis = None
        process.load()
        yield process
        process.engine.close(timeout=10)
        process.close()
        process.jobs.close()


def render(process: WorkerProcess, *jobs: JobParameters) -> list[Job]:
    """Submit jobs, render them side by side as tasks do, and return what became of them."""
    store: JobStore = process.jobs
    submission, _ = store.add_submission(model="xl", source="test")
    store.add_jobs(submission.id, jobs)
    store.open_submission(submission.id)
    queued = store.take_for_dispatch("xl", window=len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: render_job(process, job), queued))
    return [store.find_job(f"{submission.id}:{index}") for index in range(len(jobs))]


def test_jobs_become_pictures_of_the_unmodified_pipeline(process: WorkerProcess) -> None:
    """Jobs of other steps and samplers render together; each picture is what diffusers makes of it alone."""
    assert isinstance(process.engine.main, PipelineEngine)
    first, second = render(
        process,
        JobParameters(prompt="a fox", seed=1, **OPEN | {"num_inference_steps": 3}),
        JobParameters(
            prompt="an otter", negative_prompt="grey", seed=2, num_inference_steps=2, sampler="lms"
        ),
    )
    assert (first.status, second.status) == (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED), second.error_message
    assert first.image is not None
    assert first.image.numerics["way"] == "coalescing"
    assert (first.image.numerics["family"], first.image.numerics["lanes"]) == ("StableDiffusionXLPipeline", 4)
    assert set(first.image.seconds) == {"encode", "denoise", "decode", "save"}
    with Picture.open(process.settings.images_path / first.image.key) as opened:
        said, ours = read_infotext(opened.info["parameters"]), np.asarray(opened).astype(int)
    assert (said["sampler"], said["guidance_scale"]) == ("default", 5.0)
    generator = torch.Generator().manual_seed(1)
    size = {"width": 64, "height": 64}
    theirs = tiny("stable_diffusion_xl")("a fox", num_inference_steps=3, generator=generator, **size)
    assert np.abs(ours - np.asarray(theirs.images[0])).max() <= 1


def test_what_a_pipeline_cannot_do_fails_the_job_with_one_sentence(process: WorkerProcess) -> None:
    """A setting that the pipeline lacks ends its job for good, and names it; another job is rendered."""
    options = {"guidance_interval": [0.0, 0.5]}
    bad, good = render(
        process,
        JobParameters(prompt="a fox", seed=1, **OPEN | {"num_inference_steps": 2}, options=options),
        JobParameters(prompt="a fox", seed=1, **OPEN | {"num_inference_steps": 2}),
    )
    assert (bad.status, good.status) == (JobStatus.FAILED, JobStatus.SUCCEEDED)
    assert bad.error_message == "StableDiffusionXLPipeline takes no guidance interval; leave it out."


def test_the_row_says_what_the_worker_serves(process: WorkerProcess) -> None:
    """`worker list` has the pipeline's class, and submits find its defaults."""
    row = next(worker for worker in process.jobs.workers() if worker.incarnation == "w1")
    assert row.family == "StableDiffusionXLPipeline"
    assert (row.lanes, row.concurrency) == (4, 6)
    assert (row.defaults["sampler"], row.defaults["num_inference_steps"]) == ("default", 50)
    limits = PipelineLimits.read(row.defaults["limits"])
    assert limits is not None
    assert (limits.pipeline, limits.negative) == ("StableDiffusionXLPipeline", True)
    assert {"default", "lms"} <= set(limits.samplers)
    assert set(limits.options) == {"eta", "guidance_rescale"}


def test_one_worker_renders_from_prompts_and_from_pictures(process: WorkerProcess) -> None:
    """Jobs with an init image, with and without a mask, render beside one without; each says how."""
    buffer = BytesIO()
    Picture.new("RGB", (80, 64), (200, 90, 10)).save(buffer, "PNG")
    sha256 = digest(buffer.getvalue())
    process.images.write(input_key(sha256), buffer.getvalue())
    begun = {"init_image": sha256, "strength": 0.5}
    ordinary = JobParameters(prompt="a fox", seed=1, **OPEN | {"num_inference_steps": 2})
    jobs = render(
        process,
        ordinary,
        replace(ordinary, options=begun),
        replace(ordinary, options={**begun, "mask_image": sha256}),
        replace(ordinary, options={"control_image": sha256}),
    )
    families = [job.image.numerics["family"] if job.image else job.error_message for job in jobs]
    assert families[:3] == [
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ]
    assert "This worker has no ControlNet" in str(families[3])
    assert jobs[3].status is JobStatus.FAILED
    (worker,) = process.jobs.workers()
    assert worker.defaults["takes"] == ["init_image", "mask_image"]
