"""Which model `render` and `worker start` take, and what its recommendations do to a `render`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from producer.rendering import Rendering
from storage.jobstore import JobStore
from storage.worker_options import WorkerOptions, parse_options

Invoke = Callable[..., Result]
TAKEN = "No --model is given and none configured; taking demo, which comes with promptmill.\n"


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Rendering]:
    """Collect what would be rendered now."""
    found: list[Rendering] = []
    monkeypatch.setattr("producer.commands.render.run", found.append)
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the models that workers would be started for."""
    found: list[str] = []

    def start(_program: str, command: list[str]) -> None:
        found.append(json.loads(command[-1])["model"])

    monkeypatch.setattr(os, "execv", start)
    return found


def test_without_any_configured_model_render_takes_demo_and_says_so(
    invoke: Invoke, store: JobStore, rendered: list[Rendering], demo: Path
) -> None:
    """One line on stderr before the submission's."""
    done = invoke("render", "-p", "an otter")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"{TAKEN}Submission {store.submissions()[0].id}\n"
    assert (rendered[0].model.name, rendered[0].model.source) == ("demo", str(demo))
    assert store.submissions()[0].model == "demo"


def test_a_named_model_needs_no_remark(invoke: Invoke, rendered: list[Rendering]) -> None:
    """Whoever says demo knows what they get."""
    done = invoke("render", "-p", "an otter", "--model", "demo")
    assert "taking demo" not in done.stderr
    assert rendered[0].model.name == "demo"


@pytest.mark.parametrize("configured", ["sd15=owner/repo", "demo=owner/repo"])
def test_the_only_configured_model_is_taken(
    invoke: Invoke,
    rendered: list[Rendering],
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    configured: str,
) -> None:
    """Whoever has configured one model means that one, whatever its name."""
    monkeypatch.setenv("PROMPTMILL_MODELS", configured)
    done = invoke("render", "-p", "an otter")
    assert done.exit_code == 0, done.stderr
    assert "taking" not in done.stderr
    assert str(rendered[0].model) == configured
    assert invoke("worker", "start").exit_code == 0
    assert started == [configured]


def test_worker_start_takes_demo_too(invoke: Invoke, started: list[str], demo: Path) -> None:
    """Both commands follow the same rule."""
    assert invoke("worker", "start").exit_code == 0
    assert started == [f"demo={demo}"]


def test_worker_start_takes_several_models(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, demo: Path
) -> None:
    """One --model each; a known name and a folder, the patience and how many are loaded."""
    found: list[WorkerOptions] = []
    monkeypatch.setattr(os, "execv", lambda _program, command: found.append(parse_options(command[-1])))
    monkeypatch.setenv("PROMPTMILL_MODELS", "sd15=owner/repo")
    several = ["--model", "sd15", "--model", "demo", "--model-patience", "120", "--max-loaded", "2"]
    assert invoke("worker", "start", *several).exit_code == 0
    (options,) = found
    assert options.models == ("sd15=owner/repo", f"demo={demo}")
    assert (options.model_patience, options.max_loaded) == (120.0, 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model", "demo", "--model", "demo"],
            "Model demo is given twice; give each --model a name of its own, NAME=REPO_OR_PATH.",
        ),
        (
            ["--max-loaded", "2"],
            "--max-loaded is for a worker of several models; repeat --model, or leave it out.",
        ),
        (
            ["--model-patience", "0"],
            "--model-patience is for a worker of several models; repeat --model, or leave it out.",
        ),
        (
            ["--model", "demo", "--model", "a=owner/repo", "--model-patience", "nan"],
            "--model-patience nan is out of range; choose seconds from 0 to a day.",
        ),
    ],
)
def test_worker_start_refuses_what_does_not_go_with_its_models(
    invoke: Invoke, started: list[str], words: list[str], sentence: str
) -> None:
    """One sentence says what to change, and no worker is started."""
    done = invoke("worker", "start", *words)
    assert (done.exit_code, done.stderr, started) == (2, f"Error: {sentence}\n", [])


@pytest.mark.parametrize("command", [["render", "-p", "an otter"], ["worker", "start"]])
def test_several_configured_models_ask_for_a_choice(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Nobody guesses, and nothing is written."""
    monkeypatch.setenv("PROMPTMILL_MODELS", "sd15=owner/repo,mine=./mine")
    done = invoke(*command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: Several models are configured; choose one with --model: sd15, mine.\n"
    assert store.submissions() == []


def test_render_reads_the_recommendations_of_the_folder_it_is_given(
    invoke: Invoke, store: JobStore, rendered: list[Rendering], recommend: Any
) -> None:
    """The folder named on the command line counts, also under the name of another model."""
    mine = recommend("mine", sampler="euler", schedule="karras", num_inference_steps=12)
    done = invoke("render", "-p", "an otter", "--model", f"demo={mine}", "--cfg", "3")
    assert done.exit_code == 0, done.stderr
    (job,) = store.jobs(rendered[0].submission.id)
    asked = job.parameters
    assert (asked.sampler, asked.schedule, asked.num_inference_steps) == ("euler", "karras", 12)
    assert (asked.guidance_scale, asked.width, asked.height) == (3.0, 64, 64)


def test_render_refuses_recommendations_that_cannot_be_used(
    invoke: Invoke, store: JobStore, rendered: list[Rendering], demo: Path
) -> None:
    """One sentence, exit code 5, before anything is written or started."""
    (demo / "promptmill.json").write_text('{"defaults": {"num_inference_steps": "many"}}')
    done = invoke("render", "-p", "an otter")
    assert done.exit_code == 5
    assert done.stderr == (
        f'Error: {demo / "promptmill.json"} cannot be used (num_inference_steps is "many", not a whole '
        f"number); mend or remove it.\n"
    )
    assert (store.submissions(), rendered) == ([], [])


@pytest.mark.parametrize("command", ["render", "submit"])
def test_help_says_where_unset_values_come_from(invoke: Invoke, command: str) -> None:
    """Each option names the model before the general default."""
    text = " ".join(invoke(command, "--help").stdout.split())
    assert "A setting that is not given is the model's recommendation (`promptmill models`)" in text
    for default in ("Default: the model's, else 30.", "Default: the model's, else 7.5.", "else lms."):
        assert default in text
