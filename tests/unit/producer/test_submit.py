"""Submit: everything is checked first, the id comes out early, and a key makes it safe to repeat."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from producer import prompts as prompts_module
from producer import submitting
from storage.jobstore import JobStore
from storage.records import JobStatus, SubmissionState
from storage.sqljobstore import SqlJobStore

Invoke = Callable[..., Result]


def test_submit_prints_only_the_id_and_says_how_to_start_a_worker(invoke: Invoke, store: JobStore) -> None:
    """The id can be captured; what a person should know goes to stderr."""
    done = invoke(
        "submit", "-p", "an otter", "-p", "a fox", "--images", "2", "--seed", "42", "--name", "pets"
    )
    submission = store.find_submission("pets")
    assert done.exit_code == 0
    assert done.stdout == f"{submission.id}\n"
    assert "Submitted 4 jobs for model demo" in done.stderr
    assert "`promptmill worker start --model demo`" in done.stderr
    assert (submission.state, submission.total) == (SubmissionState.OPEN, 4)
    jobs = list(store.jobs(submission.id))
    assert [(job.parameters.prompt, job.parameters.seed) for job in jobs] == [
        ("an otter", 42), ("an otter", 43), ("a fox", 42), ("a fox", 43),
    ]  # fmt: skip


def test_standard_input_is_read(invoke: Invoke, store: JobStore) -> None:
    """`-` reads one prompt a line."""
    done = invoke("submit", "-", stdin="\ufeffan otter\r\n\r\na fox".encode())
    assert [job.parameters.prompt for job in store.jobs(done.stdout.strip())] == ["an otter", "a fox"]


def settings_of_the_only_job(store: JobStore, done: Result) -> tuple[object, ...]:
    """Return sampler, schedule, guidance, steps, width and height of a submit's one job."""
    assert done.exit_code == 0, done.stderr
    (job,) = store.jobs(done.stdout.strip())
    asked = job.parameters
    return (
        asked.sampler, asked.schedule, asked.guidance_scale, asked.num_inference_steps, asked.width,
        asked.height,
    )  # fmt: skip


def test_a_model_without_recommendations_gets_the_general_defaults(invoke: Invoke, store: JobStore) -> None:
    """Submit records them at the folder's own size, before any worker has loaded it."""
    done = invoke("submit", "-p", "an otter")
    assert settings_of_the_only_job(store, done) == ("lms", "default", 7.5, 30, 64, 64)


RECOMMENDED = {
    "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 4, "num_inference_steps": 12, "width": 128,
    "height": 96,
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], ("dpmpp_2m", "karras", 4.0, 12, 128, 96)),
        (["--steps", "30", "--cfg", "7.5", "--size", "64x64"], ("dpmpp_2m", "karras", 7.5, 30, 64, 64)),
        (["--schedule", "default"], ("dpmpp_2m", "default", 4.0, 12, 128, 96)),
        (["--sampler", "DPM++ 2M"], ("dpmpp_2m", "karras", 4.0, 12, 128, 96)),
        (["--sampler", "euler"], ("euler", "default", 4.0, 12, 128, 96)),
        (["--sampler", "euler", "--schedule", "beta"], ("euler", "beta", 4.0, 12, 128, 96)),
        (["--sampler", "Euler Exponential"], ("euler", "exponential", 4.0, 12, 128, 96)),
        (["--width", "64"], ("dpmpp_2m", "karras", 4.0, 12, 64, 96)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_flag_beats_the_models_recommendation(
    invoke: Invoke, store: JobStore, recommend: Any, flags: list[str], asked: tuple[object, ...]
) -> None:
    """What no flag says is recommended; the recommended schedule goes with the recommended sampler only."""
    recommend(**RECOMMENDED)
    assert settings_of_the_only_job(store, invoke("submit", "-p", "an otter", *flags)) == asked


def test_show_tells_the_filled_values_before_anything_is_rendered(invoke: Invoke, recommend: Any) -> None:
    """Nobody has to guess what an unset flag will be."""
    recommend(**RECOMMENDED)
    invoke("submit", "-p", "an otter")
    job = json.loads(invoke("show", "@last:0", "--json").stdout)["job"]
    assert {name: job[name] for name in RECOMMENDED} == RECOMMENDED


def test_settings_of_a_model_that_nobody_has_loaded_are_left_to_the_claim(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hub model only the worker can read what it recommends."""
    monkeypatch.setenv("PROMPTMILL_MODELS", "sd15=owner/repo")
    done = invoke("submit", "-p", "an otter", "--model", "sd15", "--sampler", "euler")
    assert settings_of_the_only_job(store, done) == ("euler", None, None, None, None, None)


def test_what_a_worker_published_is_filled_in(invoke: Invoke, store: JobStore, farmhand: Any) -> None:
    """Of a model whose folder is not here, submit records what its newest worker said."""
    worker = farmhand("sd15", **RECOMMENDED)
    worker.start()
    done = invoke("submit", "-p", "an otter", "--model", "sd15")
    assert "1 worker will render them" in done.stderr
    assert settings_of_the_only_job(store, done) == ("dpmpp_2m", "karras", 4, 12, 128, 96)


@pytest.mark.parametrize(
    ("recommended", "flags", "said"),
    [
        ({"sampler": "ddim"}, ["--schedule", "karras"], "Sampler ddim has no karras schedule"),
        ({"sampler": "lcm"}, ["--steps", "60"], "Sampler lcm knows at most 50 steps, not 60"),
        ({"num_inference_steps": 60}, ["--sampler", "lcm"], "Sampler lcm knows at most 50 steps, not 60"),
    ],
)
def test_flags_that_do_not_go_with_the_recommendations_are_refused(
    invoke: Invoke, recommend: Any, recommended: dict[str, Any], flags: list[str], said: str
) -> None:
    """The sentence says where the other half of the contradiction comes from."""
    recommend(**recommended)
    done = invoke("submit", "-p", "an otter", *flags)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "and the other settings that model demo recommends: " in done.stderr
    assert said in done.stderr
    assert invoke("list").stdout == ""


def test_recommendations_that_cannot_be_used_are_one_sentence(
    invoke: Invoke, store: JobStore, demo: Path, recommend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named with what is wrong, exit code 5, nothing written; other models are not concerned."""
    (demo / "promptmill.json").write_text("{")
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={recommend('mine', sampler='euler')}")
    done = invoke("submit", "-p", "an otter", "--model", "demo")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert done.stderr.startswith(
        f"Error: {demo / 'promptmill.json'} cannot be used (Expecting property name"
    )
    assert store.submissions() == []
    other = invoke("submit", "-p", "an otter", "--model", "mine")
    assert settings_of_the_only_job(store, other)[0] == "euler"


BAD_INPUT: list[tuple[list[str], str]] = [
    (["missing.txt"], "missing.txt: there is no such file"),
    (["empty.txt"], "There is no prompt in empty.txt"),
    (["latin1.txt"], "latin1.txt:1:4: byte 0xe9"),
    (["prompts.csv"], "prompts.csv:2:2: steps 'x' is not a whole number"),
    (
        ["prompts.csv", "-p", "an otter", "--skip-bad", "--input-format", "parquet"],
        "does not begin as a Parquet",
    ),
    (["two.jsonl"], "two.jsonl:2: This line is for model 'b' and an earlier one for 'a'"),
    (["one.jsonl", "--model", "demo"], "The prompts are for model 'a' and --model names 'demo'"),
    ([], "No prompts were given"),
    (["-p", "an otter", "--sampler", "magic"], "There is no sampler 'magic'"),
    (["-p", "an otter", "--width", "513"], "Width 513"),
    (["-p", "an otter", "--seed", "-2"], "Seed -2"),
    (["-p", "an otter", "--cfg", "nan"], "Guidance nan"),
    (["-p", "an otter", "--steps", "x"], "'x' is not a valid integer"),
    (["-p", "an otter", "--model", "nosuch"], "There is no model 'nosuch' (known: demo)"),
    (["-p", "an otter", "--name", "@last"], "--name '@last' cannot be used"),
    (["-p", "an otter", "--name", "a/b"], "--name 'a/b' cannot be used"),
    (["-p", "an otter", "--weight", "nan"], "--weight nan"),
    (["-p", "an otter", "--key", ""], "--key is empty"),
    (["-p", "  "], "A prompt is empty"),
]


@pytest.mark.parametrize(
    ("args", "said"), BAD_INPUT, ids=[" ".join(args) or "nothing" for args, _ in BAD_INPUT]
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(
    invoke: Invoke, home: Path, store: JobStore, args: list[str], said: str
) -> None:
    """Nonsense never leaves a submission behind."""
    Path("empty.txt").write_text("")
    Path("latin1.txt").write_bytes(b"caf\xe9\n")
    Path("prompts.csv").write_text("prompt,steps\nan otter,x\n")
    Path("one.jsonl").write_text('{"prompt": "an otter", "model": "a"}\n')
    Path("two.jsonl").write_text('{"text": "an otter", "model": "a"}\n{"text": "a fox", "Model": "b"}\n')
    done = invoke("submit", *args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert store.submissions() == []
    assert home.exists()


@pytest.mark.parametrize("below", ["home", "home/deeper"])
def test_home_below_a_file_is_exit_code_3(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    """A home that cannot be is said in one sentence that names the setting."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "file" / below))
    done = invoke("submit", "-p", "an otter")
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "PROMPTMILL_HOME" in done.stderr


def test_several_models_ask_for_a_choice(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more than one model known, submit does not guess."""
    monkeypatch.setenv("PROMPTMILL_MODELS", '["sd15=owner/repo"]')
    assert "choose one with --model: demo, sd15" in invoke("submit", "-p", "an otter").stderr
    assert invoke("submit", "-p", "an otter", "--model", "sd15").exit_code == 0
    assert "write --model sd15" in invoke("submit", "-p", "an otter", "--model", "sd15=owner/repo").stderr


def test_key_returns_the_first_submission(invoke: Invoke, store: JobStore) -> None:
    """A repeated submit adds nothing and prints the same id."""
    first = invoke("submit", "-p", "an otter", "--key", "k")
    again = invoke("submit", "-p", "an otter", "--key", "k")
    assert again.stdout == first.stdout
    assert again.exit_code == 0
    assert "nothing was added" in again.stderr
    assert "Submitted" not in again.stderr
    assert len(store.submissions()) == 1
    assert "another list needs another --key" in invoke("submit", "-p", "x", "-p", "y", "--key", "k").stderr


def test_killed_submit_is_finished_by_its_key(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading goes on where it broke off, and says so."""

    def dies(*_args: object) -> Any:
        yield from ()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submitting, "build_jobs", dies)
        broken = invoke("submit", "-p", "an otter", "-p", "a fox", "--key", "k")
    assert broken.exit_code == 130
    submission = broken.stdout.strip()
    assert store.find_submission(submission).state is SubmissionState.LOADING
    assert "submit it again with the same --key" in broken.stderr
    assert "its prompts are not all submitted" in invoke("status").stdout
    again = invoke("submit", "-p", "an otter", "-p", "a fox", "--key", "k")
    assert (again.exit_code, again.stdout.strip()) == (0, submission)
    assert store.counts(submission)[JobStatus.WAITING] == 2


@pytest.mark.parametrize("opened", [True, False])
def test_a_submit_that_is_stopped_as_it_opens_says_whether_it_did(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch, *, opened: bool
) -> None:
    """All jobs are there by then, and the last commit may have come before Ctrl-C."""
    opening = SqlJobStore.open_submission

    def stopped(self: SqlJobStore, submission: str) -> Any:
        if opened:
            opening(self, submission)
        raise KeyboardInterrupt

    monkeypatch.setattr(SqlJobStore, "open_submission", stopped)
    done = invoke("submit", "-p", "an otter")
    assert done.exit_code == 130
    state = store.find_submission(done.stdout.strip()).state
    assert state is (SubmissionState.OPEN if opened else SubmissionState.LOADING)
    assert ("is complete and will be rendered" in done.stderr) is opened
    assert ("is not complete and will not be rendered" in done.stderr) is not opened


def test_submit_with_wait_ends_with_1_when_a_job_failed(
    invoke: Invoke, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--wait tells the failed job and its reason."""
    stand_in.start()
    monkeypatch.setattr("time.sleep", lambda _seconds: stand_in.render(fail={1}))
    done = invoke("submit", "-p", "an otter", "-p", "a fox", "--wait")
    submission = done.stdout.strip()
    assert done.exit_code == 1
    assert f"Of 2 jobs 1 failed; `promptmill retry {submission}`" in done.stderr
    assert f"{submission}:1  It came out black." in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(invoke: Invoke) -> None:
    """Permissions are said as such."""
    Path("secret.txt").write_text("an otter")
    Path("secret.txt").chmod(0)
    assert "Permission denied" in invoke("submit", "secret.txt").stderr


def test_a_dry_run_counts_and_shows_jobs_and_writes_nothing(invoke: Invoke, store: JobStore) -> None:
    """Its table is the first thing a person looks at before 10,000 pictures are rendered."""
    flags = ("--sweep", "guidance=3,5", "--sweep", "steps=10..30:10", "--size", "64x64")
    done = invoke("submit", "-p", "an otter", "-p", "a fox", *flags, "--dry-run", "--seed", "7")
    assert done.exit_code == 0, done.stderr
    *table, summary = done.stdout.splitlines()
    assert summary == "12 jobs of 2 prompts for demo"
    assert len(table) == 13
    assert table[0].split()[:3] == ["index", "prompt", "seed"]
    assert table[-1].split() == ["11", "a", "fox", "7", "lms", "default", "30", "5", "64x64"]
    assert "no worker has rendered with this model yet" in done.stderr
    assert "drawn" not in done.stderr
    assert store.submissions() == []


def test_a_dry_run_of_many_jobs_shows_some_from_first_to_last(invoke: Invoke, store: JobStore) -> None:
    """Spread over the list."""
    done = invoke("submit", "-p", "an otter", "--images", "1000", "--dry-run")
    shown = [int(line.split()[0]) for line in done.stdout.splitlines()[1:-1]]
    assert (len(shown), shown[0], shown[-1]) == (12, 0, 999)
    assert "Seeds that are not given are drawn anew" in done.stderr
    assert store.submissions() == []


def test_the_very_same_jobs_are_not_rendered_twice(invoke: Invoke, store: JobStore) -> None:
    """The earlier submission is the answer, unless --again, another name or another setting is given."""
    first = invoke("submit", "-p", "an otter", "--seed", "1", "--name", "pets")
    again = invoke("submit", "-p", "an otter", "--seed", "1")
    assert again.stdout == first.stdout
    assert "has the very same jobs, so nothing was added" in again.stderr
    assert len(store.submissions()) == 1
    others = (["--again"], ["--name", "new"], ["--steps", "9"], ["--key", "k"], ["--images", "2"])
    for number, flags in enumerate(others, 2):
        other = invoke("submit", "-p", "an otter", "--seed", "1", *flags)
        assert other.exit_code == 0
        assert len(store.submissions()) == number, flags


def test_where_the_prompts_stood_does_not_matter(invoke: Invoke, store: JobStore, tmp_path: Path) -> None:
    """A file that was moved, or got a comment, makes the same pictures."""
    for name, content in (("a.txt", "an otter\na fox\n"), ("b.txt", "# pets\n\nan otter\na fox\n")):
        (tmp_path / name).write_text(content)
        invoke("submit", str(tmp_path / name), "--seed", "1..3")
    assert len(store.submissions()) == 1


def test_another_model_of_the_same_name_makes_other_pictures(
    invoke: Invoke, store: JobStore, recommend: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do other files in the same folder."""
    one, other = recommend("one"), recommend("other")
    for number, source in enumerate((one, other, one), 1):
        monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={source}")
        invoke("submit", "-p", "an otter", "--seed", "1", "--model", "mine")
        assert len(store.submissions()) == min(number, 2)
    (one / "promptmill.json").write_text('{"defaults": {"guidance_scale": 3}}')
    invoke("submit", "-p", "an otter", "--seed", "1", "--model", "mine")
    assert len(store.submissions()) == 3


def test_one_that_was_paused_is_not_the_answer(invoke: Invoke, store: JobStore) -> None:
    """Nothing of it would be rendered."""
    first = invoke("submit", "-p", "an otter", "--seed", "1").stdout.strip()
    store.pause(first)
    second = invoke("submit", "-p", "an otter", "--seed", "1")
    assert second.stdout.strip() != first
    assert f"`promptmill resume {first}` goes on with it" in second.stderr


def test_a_key_of_another_list_is_warned_of_or_refused(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of two lists are never mixed."""
    invoke("submit", "-p", "an otter", "--seed", "1", "--key", "k")
    warned = invoke("submit", "-p", "a fox", "--seed", "1", "--key", "k")
    assert warned.exit_code == 0
    assert "--key k was used with another list" in warned.stderr
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "open_submission", None, raising=False)
        patch.setattr(type(store), "open_submission", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        invoke("submit", "-p", "an otter", "--seed", "1", "--key", "half")
    refused = invoke("submit", "-p", "a fox", "--seed", "1", "--key", "half")
    assert refused.exit_code == 2
    assert "which another list began" in refused.stderr
    assert invoke("submit", "-p", "an otter", "--seed", "1", "--key", "half").exit_code == 0


def test_drawn_seeds_make_other_pictures(invoke: Invoke, store: JobStore) -> None:
    """So they are submitted, and the earlier list is named."""
    first = invoke("submit", "-p", "an otter")
    second = invoke("submit", "-p", "an otter")
    assert second.stdout != first.stdout
    assert f"submitted before, as {first.stdout.strip()}" in second.stderr
    assert len(store.submissions()) == 2


def test_a_list_says_settings_and_model_and_its_bad_lines_are_left_out(
    invoke: Invoke, store: JobStore, recommend: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a line says beats the flags; --skip-bad warns of what it leaves out, and submits the rest."""
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={recommend('mine')},other={recommend('other')}")
    Path("list.csv").write_text(
        "Caption,model,cfg,size,seed,Category\n"
        'an otter,mine,3,64x128,"5,9",Animals\n'
        "a fox,,nan,,,\n"
        "a bee,,,,,\n"
    )
    done = invoke("submit", "list.csv", "--cfg", "4", "--seed", "1", "--skip-bad")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[:2] == [
        "Warning: left out 1 place that cannot be used:",
        "  list.csv:3:3: cfg 'nan' is not a number; write one, for example 7.5.",
    ]
    submission = store.find_submission(done.stdout.strip())
    assert submission.model == "mine"
    jobs = [job.parameters for job in store.jobs(submission.id)]
    assert [(job.prompt, job.seed, job.guidance_scale, job.height, job.extra) for job in jobs] == [
        ("an otter", 5, 3.0, 128, {"Category": "Animals"}),
        ("an otter", 9, 3.0, 128, {"Category": "Animals"}),
        ("a bee", 1, 4.0, 64, {}),
    ]


def test_standard_input_may_have_any_format(invoke: Invoke, store: JobStore) -> None:
    """A pipe is recognised by its content, as a file is."""
    done = invoke("submit", "-", stdin=b'{"prompt": "an otter", "steps": 7}\n')
    (job,) = store.jobs(store.find_submission(done.stdout.strip()).id)
    assert (job.parameters.prompt, job.parameters.num_inference_steps) == ("an otter", 7)


def test_a_line_that_does_not_go_with_the_recommendations_is_listed_or_left_out(
    invoke: Invoke, store: JobStore, recommend: Any
) -> None:
    """All of them with their places, whoever has the other half of the contradiction."""
    recommend(sampler="lcm", num_inference_steps=8)
    Path("list.csv").write_text("prompt,steps\nan otter,60\na fox,8\na bee,60\na hen,70\n")
    refused = invoke("submit", "list.csv", "--seed", "1")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[0] == "Error: 3 places cannot be used, so nothing was written:"
    assert [line.split(": ")[0].strip() for line in refused.stderr.splitlines()[1:]] == [
        "list.csv:2", "list.csv:4", "list.csv:5",
    ]  # fmt: skip
    assert "model demo recommends: Sampler lcm knows at most 50 steps, not 70" in refused.stderr
    assert store.submissions() == []
    done = invoke("submit", "list.csv", "--seed", "1", "--skip-bad")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("Warning: left out 3 places that cannot be used:\n  list.csv:2: With")
    assert [job.parameters.prompt for job in store.jobs(done.stdout.strip())] == ["a fox"]
    Path("fox.txt").write_text("a fox --s 8\n")
    assert invoke("submit", "fox.txt", "--seed", "1").stdout == done.stdout  # the very same jobs


FLUX = {
    "pipeline": "FluxPipeline", "scheduler": "FlowMatchEulerDiscreteScheduler", "samplers": ["default"],
    "negative": False, "options": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampler", "euler"], "FluxPipeline with its FlowMatchEulerDiscreteScheduler cannot be rendered"),
        (["--schedule", "karras"], "Sampler default has no karras schedule"),
        (["--negative", "grey"], "FluxPipeline takes no negative prompt; leave it out."),
        (["--guidance-interval", "0.2:0.8"], "FluxPipeline takes no guidance interval; leave it out."),
        (["--sweep", "sampler=default,euler"], "cannot be rendered with sampler euler; take default."),
        (["--prompt-syntax", "weighted"], "FluxPipeline takes no prompt syntax; leave it out."),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_at_submit(
    invoke: Invoke, farmhand: Any, flags: list[str], said: str
) -> None:
    """Its worker has said what it can, so nobody has to wait for a failed job to hear of it."""
    farmhand("flux", sampler="default", schedule="default", limits=FLUX).start()
    done = invoke("submit", "-p", "an otter", "--model", "flux", *flags)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Model flux: " in done.stderr
    assert said in done.stderr
    assert invoke("list").stdout == ""


def test_what_a_pipeline_can_do_is_submitted(invoke: Invoke, farmhand: Any, store: JobStore) -> None:
    """Lines that ask for more are left out; what another version says of itself is no limit."""
    farmhand("flux", sampler="default", schedule="default", limits=FLUX).start()
    rows = ["an otter,,", "a fox,grey,", "a bee,,ddim", "a hen,,default"]
    Path("list.csv").write_text("\n".join(["prompt,negative,sampler", *rows]))
    flags = ["--skip-bad", "--quality", "80", "--image-format", "jpeg"]
    done = invoke("submit", "list.csv", "--model", "flux", *flags)
    assert done.exit_code == 0, done.stderr
    assert [job.parameters.prompt for job in store.jobs(done.stdout.strip())] == ["an otter", "a hen"]
    assert "list.csv:3: Model flux: FluxPipeline takes no negative prompt" in done.stderr
    assert "list.csv:4: Model flux: FluxPipeline with its" in done.stderr
    for number, said in enumerate(({"otherwise": 1}, FLUX | {"samplers": None}, FLUX | {"negative": "no"})):
        farmhand(f"new{number}", sampler="default", schedule="default", limits=said).start()
        flags = ["--model", f"new{number}", "--negative", "grey"]
        assert invoke("submit", "-p", "an otter", *flags).exit_code == 0


def test_what_a_worker_that_is_gone_has_said_refuses_nothing(invoke: Invoke, farmhand: Any) -> None:
    """The next one may have other files under the same name."""
    worker = farmhand("flux", sampler="default", schedule="default", limits=FLUX)
    worker.start()
    flags = ["-p", "an otter", "--model", "flux", "--negative", "grey", "--again"]
    assert invoke("submit", *flags).exit_code == 2
    worker.stop()
    assert invoke("submit", *flags).exit_code == 0


SD = {
    "scheduler_config": {
        "_class_name": "PNDMScheduler", "_use_default_values": [], "num_train_timesteps": 1000,
        "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
    }
}  # fmt: skip


def test_what_a_sampler_cannot_do_with_a_model_is_refused_at_its_line(
    invoke: Invoke, farmhand: Any, store: JobStore
) -> None:
    """A list of such jobs is not accepted to fail one by one; without a live worker only that one knows."""
    worker = farmhand("sd", sampler="lms", schedule="default", num_inference_steps=30, limits=SD)
    worker.start()
    rows = ["an otter,ddim,1000", "a fox,,1000", "a bee,ddim,999", "a hen,default,1000"]
    Path("list.csv").write_text("\n".join(["prompt,sampler,steps", *rows]))
    refused = invoke("submit", "list.csv", "--model", "sd")
    assert refused.exit_code == 2
    assert [line.strip() for line in refused.stderr.splitlines()[1:]] == [
        f"list.csv:{line}: Model sd: Sampler {sampler} has one step less than 1000 with this model (leading "
        f"spacing, steps_offset 1); ask for 999 steps."
        for line, sampler in ((2, "ddim"), (5, "pndm"))
    ]
    assert store.submissions() == []
    done = invoke("submit", "list.csv", "--model", "sd", "--skip-bad")
    assert [job.parameters.prompt for job in store.jobs(done.stdout.strip())] == ["a fox", "a bee"]
    flags = ["-p", "an owl", "--model", "sd", "--sampler", "ddim", "--steps", "1000"]
    assert "Error: Model sd: Sampler ddim has one step less" in invoke("submit", *flags).stderr
    worker.stop()
    assert invoke("submit", *flags).exit_code == 0


def test_what_does_not_go_is_found_among_more_combinations_than_are_remembered(
    invoke: Invoke, store: JobStore, recommend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are gone through once more, and only those that do not go are left out."""
    monkeypatch.setattr(prompts_module, "MAX_COMBINATIONS", 3)
    recommend(sampler="lcm", num_inference_steps=8)
    rows = [f"otter {steps},{steps}\n" for steps in (1, 2, 3, 4, 5, 60, 6)]
    Path("list.csv").write_text("prompt,steps\n" + "".join(rows))
    refused = invoke("submit", "list.csv")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: list.csv:7: With sampler lcm")
    assert store.submissions() == []
    done = invoke("submit", "list.csv", "--skip-bad")
    steps = [job.parameters.num_inference_steps for job in store.jobs(done.stdout.strip())]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("flags", [["--steps", "60"], ["--steps", "60", "-p", "a bee"]])
def test_skip_bad_leaves_out_no_flags(invoke: Invoke, store: JobStore, recommend: Any, flags: Any) -> None:
    """What the flags say wrong, or the last line that is left, is an error all the same."""
    recommend(sampler="lcm", num_inference_steps=8)
    Path("list.csv").write_text("prompt,steps\nan otter,60\n")
    done = invoke("submit", "list.csv", "--skip-bad", *flags)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "Sampler lcm knows at most 50 steps, not 60" in done.stderr
    assert store.submissions() == []


def test_a_column_that_may_be_a_slip_is_remarked_on_once_and_kept(invoke: Invoke, store: JobStore) -> None:
    """No error: it may be meant so."""
    Path("list.csv").write_text("prompt,stpes\nan otter,20\na fox,20\n")
    done = invoke("submit", "list.csv")
    assert done.exit_code == 0
    assert done.stderr.count("column 'stpes' is not known and kept as extra; did you mean steps?") == 1
    assert [job.parameters.extra for job in store.jobs(done.stdout.strip())] == [{"stpes": "20"}] * 2


def test_reuse_is_kept_with_the_submission(invoke: Invoke, store: JobStore) -> None:
    """The very same list is not submitted twice; under another name it is, to take its pictures over."""
    first = invoke("submit", "-p", "an otter", "--seed", "1")
    assert not store.find_submission("@last").reuse
    assert invoke("submit", "-p", "an otter", "--seed", "1", "--reuse").stdout == first.stdout
    named = invoke("submit", "-p", "an otter", "--seed", "1", "--reuse", "--name", "mine")
    assert "has the same jobs; taking its pictures over as mine" in named.stderr
    assert store.find_submission("mine").reuse
    assert "reuse" in invoke("status", "mine").stdout
    assert len(store.submissions()) == 2


def test_reuse_of_what_cannot_be_there_is_said(invoke: Invoke, store: JobStore) -> None:
    """Drawn seeds are new ones, and --again asks for the contrary."""
    done = invoke("submit", "-p", "an otter", "--reuse")
    assert done.exit_code == 0
    assert "--reuse finds none for them; give --seed" in done.stderr
    refused = invoke("submit", "-p", "an otter", "--seed", "1", "--reuse", "--again")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "leave one of them out" in refused.stderr
    dry = invoke("submit", "-p", "an otter", "--seed", "1", "--reuse", "--dry-run")
    assert "What --reuse takes over costs no time" in dry.stderr
    assert len(store.submissions()) == 1
