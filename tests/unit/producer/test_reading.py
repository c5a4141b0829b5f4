"""Status, list, show, wait, watch and what steers a submission."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from producer.models import known_models
from storage.jobstore import JobStore
from storage.models import parse_model
from storage.records import JobStatus, SubmissionState
from storage.served import ServedModel
from storage.settings import Settings
from tests.records import worker_record

Invoke = Callable[..., Result]


@pytest.fixture
def otters(invoke: Invoke) -> str:
    """A submission of three jobs, named otters."""
    return str(invoke("submit", "-p", "an otter", "--images", "3", "--name", "otters").stdout.strip())


def test_status_json_has_the_documented_shape(invoke: Invoke, otters: str) -> None:
    """Programs find what the design promises, and nothing else."""
    assert json.loads(invoke("status", "--json").stdout) == {
        "version": 1,
        "submission": {
            "id": otters,
            "name": "otters",
            "model": "demo",
            "state": "open",
            "total": 3,
            "counts": {"waiting": 3, "queued": 0, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
            "images_per_second": 0.0,
            "eta_seconds": None,
            "waiting_because": "no live worker serves model demo",
        },
    }


@pytest.mark.parametrize("reference", ["@last", "otters", "prefix"])
def test_status_finds_a_submission_by_any_reference(invoke: Invoke, otters: str, reference: str) -> None:
    """The newest, a name and the beginning of an id all do."""
    done = invoke("status", otters[:4] if reference == "prefix" else reference)
    assert done.exit_code == 0
    assert otters in done.stdout
    assert "no live worker serves model demo" in done.stdout


def test_reference_that_names_nothing_is_bad_input(invoke: Invoke, otters: str) -> None:
    """One sentence, exit code 2."""
    del otters
    done = invoke("status", "nosuch")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_list_shows_the_newest_first(invoke: Invoke, otters: str) -> None:
    """One whole row a line where no terminal is."""
    newer = invoke("submit", "-p", "a fox").stdout.strip()
    head, first, second = invoke("list").stdout.splitlines()
    assert head.split()[:3] == ["ID", "NAME", "MODEL"]
    assert (first.split()[0], second.split()[0]) == (newer, otters)
    listed = json.loads(invoke("list", "--limit", "1", "--json").stdout)
    assert [row["id"] for row in listed["submissions"]] == [newer]
    assert listed["submissions"][0]["waiting"] == 1


def test_empty_list_says_what_to_do(invoke: Invoke) -> None:
    """Nothing on stdout, a hint on stderr, and an empty list in JSON."""
    done = invoke("list")
    assert done.stdout == ""
    assert "promptmill submit" in done.stderr
    assert json.loads(invoke("list", "--json").stdout) == {"version": 1, "submissions": []}


def test_show_tells_all_of_a_job(invoke: Invoke, otters: str, stand_in: Any) -> None:
    """Parameters, picture and the reason of a failure."""
    stand_in.start()
    stand_in.render(fail={2})
    job = json.loads(invoke("show", f"{otters}:1", "--json").stdout)["job"]
    assert (job["status"], job["prompt"], job["width"], job["attempt"]) == ("succeeded", "an otter", 64, 1)
    assert Path(job["image_path"]).is_file()
    assert job["numerics"] == {"lanes": 2}
    failed = invoke("show", "otters:2").stdout
    assert "It came out black." in failed
    assert "RenderError" in failed


@pytest.mark.parametrize(
    ("reference", "said"),
    [("otters", "like otters:0"), ("otters:x", "write ID:INDEX"), ("otters:9", "has no job 9")],
)
def test_show_of_something_else_says_how_to_name_a_job(
    invoke: Invoke, otters: str, reference: str, said: str
) -> None:
    """A submission is no job."""
    del otters
    done = invoke("show", reference)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_wait_gives_up_with_exit_code_4(invoke: Invoke, otters: str) -> None:
    """A timeout is its own exit code, and the reason for waiting is said."""
    done = invoke("wait", otters, "--timeout", "0.2")
    assert done.exit_code == 4
    assert "no live worker serves model demo" in done.stderr
    assert "3 of 3 jobs are left" in done.stderr
    assert invoke("wait", otters, "--timeout", "nan").exit_code == 2


def test_wait_ends_with_0_when_all_succeeded(invoke: Invoke, otters: str, stand_in: Any) -> None:
    """Done is done, at once."""
    stand_in.start()
    stand_in.render()
    assert invoke("wait", otters).exit_code == 0
    assert json.loads(invoke("status", "--json").stdout)["submission"]["state"] == "done"


def test_watch_streams_status_objects(
    invoke: Invoke, otters: str, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is a status object; the last one is done."""
    stand_in.start()
    monkeypatch.setattr("time.sleep", lambda _seconds: stand_in.render())
    lines = [json.loads(line) for line in invoke("watch", otters, "--jsonl").stdout.splitlines()]
    assert [line["submission"]["state"] for line in lines] == ["open", "done"]
    assert {line["version"] for line in lines} == {1}


def test_cancel_and_retry_are_each_others_undo(invoke: Invoke, store: JobStore, otters: str) -> None:
    """Cancelled jobs come back, and a wait on cancelled ones ends with 1."""
    cancelled = invoke("cancel", otters)
    assert "3 jobs cancelled" in cancelled.stderr
    assert store.find_submission(otters).state is SubmissionState.CANCELLED
    waited = invoke("wait", otters)
    assert waited.exit_code == 1
    assert "3/3 finished, 3 cancelled" in waited.stderr
    assert "use `promptmill retry" in invoke("resume", otters).stderr
    retried = invoke("retry", otters)
    assert "3 jobs" in retried.stderr
    assert store.counts(otters)[JobStatus.WAITING] == 3


def test_cancel_leaves_a_finished_submission_as_it_is(
    invoke: Invoke, store: JobStore, otters: str, stand_in: Any
) -> None:
    """A list whose pictures are all there does not become a cancelled one."""
    stand_in.start()
    stand_in.render()
    assert "Nothing to cancel" in invoke("cancel", otters).stderr
    assert store.find_submission(otters).state is SubmissionState.OPEN


def test_one_job_can_be_retried(invoke: Invoke, store: JobStore, otters: str, stand_in: Any) -> None:
    """Only the named job comes back."""
    stand_in.start()
    stand_in.render(fail={0, 2})
    assert "1 job of" in invoke("retry", "otters:2").stderr
    assert store.counts(otters)[JobStatus.FAILED] == 1
    assert "Nothing to retry" in invoke("retry", "otters:1").stderr


def test_pause_and_resume(invoke: Invoke, store: JobStore, otters: str) -> None:
    """A paused submission says so until it is resumed."""
    assert invoke("pause", otters).exit_code == 0
    assert store.find_submission(otters).state is SubmissionState.PAUSED
    assert "paused" in invoke("status", otters).stdout
    assert invoke("resume", otters).exit_code == 0
    assert store.find_submission(otters).state is SubmissionState.OPEN


def test_worker_list_shows_live_workers_only(invoke: Invoke, stand_in: Any) -> None:
    """Stopped workers appear with --all."""
    assert "No worker is running" in invoke("worker", "list").stderr
    stand_in.start()
    assert "demo@here" in invoke("worker", "list").stdout
    stand_in.stop()
    assert "demo@here" not in invoke("worker", "list").stdout
    assert "stopped" in invoke("worker", "list", "--all").stdout


def test_worker_list_shows_whose_turn_it_is(invoke: Invoke, store: JobStore) -> None:
    """Of several models one is active; others are loaded or not, and one cannot be."""
    models = (
        ServedModel(name="a", loaded=True, bytes=7),
        ServedModel(name="b", loaded=True),
        ServedModel(name="c"),
        ServedModel(name="d", problem="No such file."),
    )
    store.add_worker(worker_record(model="b", models=models))
    said = "a (loaded), b (active), c, d (cannot be loaded)"
    assert said in invoke("worker", "list").stdout
    assert said in invoke("doctor").stdout
    (row,) = json.loads(invoke("worker", "list", "--json").stdout)["workers"]
    assert [(model["name"], model["active"], model["loaded"]) for model in row["models"]] == [
        ("a", False, True),
        ("b", True, True),
        ("c", False, False),
        ("d", False, False),
    ]
    assert (row["models"][0]["bytes"], row["models"][3]["problem"]) == (7, "No such file.")


def test_worker_retune_forgets_what_was_measured(invoke: Invoke, store: JobStore) -> None:
    """It says how much that was."""
    store.keep_tuning({"device": "a GPU"}, {"lanes": 4})
    assert "Forgot 1 tuning; workers measure anew" in invoke("worker", "retune").stderr
    assert store.tuning({"device": "a GPU"}) is None
    assert "Forgot 0 tunings" in invoke("worker", "retune").stderr


def test_models_tells_what_each_recommends_before_any_worker(
    invoke: Invoke, recommend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's small files are read; of a hub model nothing is known yet."""
    mine = recommend("mine", sampler="dpmpp_2m", schedule="karras", guidance_scale=4.5, width=128)
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={mine},sd15=owner/repo@v1")
    head, *lines = invoke("models").stdout.splitlines()
    assert head.split()[-5:] == ["SAMPLER", "SCHEDULE", "GUIDANCE", "STEPS", "SIZE"]
    assert [line.split()[-5:] for line in lines[:2]] == [
        ["lms", "default", "7.5", "30", "64x64"], ["dpmpp_2m", "karras", "4.5", "30", "128x64"],
    ]  # fmt: skip
    assert lines[2].split() == ["sd15", "owner/repo", "v1", "0"]
    listed = {model["name"]: model for model in json.loads(invoke("models", "--json").stdout)["models"]}
    assert listed["mine"]["source"] == str(mine)
    assert listed["mine"]["defaults"] == {
        "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 4.5, "num_inference_steps": 30,
        "width": 128, "height": 64,
    }  # fmt: skip
    assert (listed["sd15"]["defaults"], listed["sd15"]["size"]) == ({}, None)


def test_models_tells_what_a_worker_published(invoke: Invoke, farmhand: Any) -> None:
    """A model that only workers know is shown with what they said of it."""
    farmhand("sd15", sampler="euler", width=512, height=768).start()
    models = json.loads(invoke("models", "--json").stdout)["models"]
    (model,) = (model for model in models if model["name"] == "sd15")
    assert (model["source"], model["live_workers"], model["size"]) == (None, 1, "512x768")
    assert model["defaults"]["sampler"] == "euler"


def test_models_folder_that_is_not_here_does_not_hide_what_a_worker_published(
    invoke: Invoke, farmhand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared folder that is not mounted on this machine is an empty one."""
    (tmp_path / "unmounted").mkdir()
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={tmp_path / 'unmounted'}")
    farmhand("mine", sampler="euler").start()
    assert json.loads(invoke("models", "--json").stdout)["models"][1]["defaults"]["sampler"] == "euler"


def test_a_model_of_another_source_takes_over_no_recommendations(
    store: JobStore, settings: Settings, farmhand: Any
) -> None:
    """`--model mine=owner/b` is not the `mine` that a worker loaded before: its own worker will say."""
    settings = dataclasses.replace(settings, models=["mine=owner/a"])
    farmhand("mine", sampler="euler").start()
    a, b = (
        known_models(settings, store.workers(), parse_model(f"mine=owner/{name}"))["mine"] for name in "ab"
    )
    assert (a.defaults()["sampler"], a.revision) == ("euler", "abc")
    assert (b.defaults(), b.revision) == ({}, None)
    assert b.live_workers == 1


def test_models_with_a_broken_recommendation_lists_the_others(
    invoke: Invoke, demo: Path, recommend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is one sentence on stderr and in JSON; the list is whole."""
    (demo / "promptmill.json").write_text('{"defaults": {"cfg": 4}}')
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={recommend('mine', sampler='euler')}")
    done = invoke("models", "--json")
    broken, whole = json.loads(done.stdout)["models"]
    assert done.exit_code == 0
    assert broken["defaults"] == {}
    assert done.stderr == f"Model demo: {broken['problem']}\n"
    assert broken["problem"] == (
        f"{demo / 'promptmill.json'} cannot be used (there is no default 'cfg'; choose of sampler, schedule, "
        f"guidance_scale, num_inference_steps, width, height); mend or remove it."
    )
    assert (whole["problem"], whole["defaults"]["sampler"]) == (None, "euler")


def test_samplers_lists_every_sampler(invoke: Invoke) -> None:
    """Twenty samplers, lms the default."""
    rows = json.loads(invoke("samplers", "--json").stdout)["samplers"]
    assert len(rows) == 20
    assert [row["name"] for row in rows if row["default"]] == ["lms"]


def test_doctor_finds_a_healthy_home(invoke: Invoke) -> None:
    """Nothing is broken in a fresh home, though no worker runs."""
    done = invoke("doctor", "--json")
    states = {row["check"]: row["state"] for row in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 0
    assert states["picture store"] == states["database"] == "ok"
    assert states["live workers"] == "warning"


def test_doctor_names_what_is_broken_and_how_to_mend_it(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken store ends with exit code 3, and the other checks still run."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTMILL_STORE_URL", f"file://{tmp_path}/file/images")
    done = invoke("doctor")
    assert done.exit_code == 3
    assert "picture store  broken" in done.stdout
    assert "database       ok" in done.stdout
    assert "1 check failed (picture store)" in done.stderr


def test_control_characters_do_not_reach_the_terminal(invoke: Invoke) -> None:
    """A prompt cannot steer the terminal that shows it."""
    invoke("submit", "-p", "an \x1b[31motter")
    assert "\x1b" not in invoke("show", "@last:0").stdout


def test_db_upgrade_says_what_it_did(invoke: Invoke) -> None:
    """From nothing to the current schema, then nothing more to do."""
    assert "to schema" in invoke("db", "upgrade").stderr
    assert "already" in invoke("db", "upgrade").stderr
