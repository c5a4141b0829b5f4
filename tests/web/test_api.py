"""The HTTP API: the command line's answers, checks and errors, in HTTP's words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from producer.lines import Line
from producer.prompts import PromptList
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from tests.web.conftest import FAILED, JOBS
from web import submitting

SUBMISSIONS = "/api/v1/submissions"


def test_a_submission_is_added_and_said_where_it_is(client: TestClient, store: JobStore) -> None:
    """Texts and objects with a prompt file's columns, settings by the names of the flags."""
    asked = {
        "prompts": ["a red otter", {"prompt": "a blue one", "steps": 12, "genre": "oil"}],
        "model": "demo", "seed": 5, "guidance": 4, "sampler": "DPM++ 2M Karras", "images": 2, "name": "two",
    }  # fmt: skip
    answer = client.post(SUBMISSIONS, json=asked)
    assert answer.status_code == 201
    told = answer.json()
    assert (told["new"], told["submission"]["total"]) == (True, 4)
    assert answer.headers["location"] == f"{SUBMISSIONS}/{told['submission']['id']}"
    jobs = [job.parameters for job in store.jobs(told["submission"]["id"])]
    assert [(job.prompt, job.seed, job.num_inference_steps) for job in jobs] == [
        ("a red otter", 5, 30), ("a red otter", 6, 30), ("a blue one", 5, 12), ("a blue one", 6, 12),
    ]  # fmt: skip
    assert {(job.sampler, job.schedule, job.guidance_scale) for job in jobs} == {("dpmpp_2m", "karras", 4.0)}
    assert jobs[2].extra == {"genre": "oil"}


def test_a_key_makes_it_safe_to_repeat(client: TestClient, store: JobStore) -> None:
    """In the header as in the body; the second time it is found, not made."""
    asked = {"prompts": ["an otter"], "model": "demo"}
    first = client.post(SUBMISSIONS, json=asked, headers={"Idempotency-Key": "nightly"})
    again = client.post(SUBMISSIONS, json=asked | {"key": "nightly"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["submission"]["id"] == again.json()["submission"]["id"]
    assert again.json()["new"] is False
    assert "made with this key before" in " ".join(again.json()["remarks"])
    differ = client.post(SUBMISSIONS, json=asked | {"key": "a"}, headers={"Idempotency-Key": "b"})
    assert differ.status_code == 422
    assert store.find_submission("@last").idempotency_key == "nightly"


def test_a_file_is_added(client: TestClient, store: JobStore) -> None:
    """By the same readers, with the settings beside it."""
    answer = client.post(
        f"{SUBMISSIONS}/file",
        files={"file": ("list.txt", b"an otter --s 12\n# nothing\na fox\n")},
        data={"settings": '{"model": "demo", "seed": "1,2"}'},
    )
    assert answer.status_code == 201
    jobs = list(store.jobs(answer.json()["submission"]["id"]))
    assert [job.parameters.seed for job in jobs] == [1, 2, 1, 2]
    assert jobs[0].parameters.num_inference_steps == 12


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": ["x"], "model": "demo", "steps": 5000}, "5000 steps are out of range"),
        ({"prompts": ["x"], "model": "nope"}, "There is no model 'nope'"),
        ({"prompts": ["", {"prompt": "y", "steps": "many"}], "model": "demo"}, "prompts:"),
        ({"prompts": [], "model": "demo"}, "at least 1 item"),
        ({"model": "demo"}, "Field required"),
        ({"prompts": ["x"], "presets_file": "/etc/passwd"}, "Extra inputs are not permitted"),
        ({"prompts": ["x"], "wildcards": "/etc"}, "Extra inputs are not permitted"),
        ({"prompts": ["x"], "sweep": ["nothing=1"]}, "--sweep 'nothing=1' cannot be used"),
    ],
)
def test_what_cannot_be_used_is_a_problem_document(
    client: TestClient, store: JobStore, asked: dict[str, Any], said: str
) -> None:
    """With the command line's sentence, and nothing was written."""
    before = len(store.submissions())
    answer = client.post(SUBMISSIONS, json=asked)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["title"], problem["status"]) == (
        "about:blank",
        "Unprocessable Entity",
        422,
    )
    assert said in problem["detail"]
    assert len(store.submissions()) == before


@pytest.mark.parametrize(
    "asked",
    [
        {"prompts": ["an otter"], "images": 100_000, "sweep": ["guidance=1..11"]},
        {"prompts": ["{a|b|c|d|e|f|g|h|i|j} " * 6 + "x"], "templates": "all"},
        {"prompts": ["{a|b} otter"], "templates": "random", "images": 100_000, "seed": "1..1000001:100000"},
        {"prompts": ["{a|b} " * 13 + "x" * 9_000], "templates": "all", "images": 10},
        {"prompts": ["x" * 10_000], "negative": "y" * 10_000, "images": 100, "sweep": ["guidance=1..10"]},
        {"prompts": ["an otter"], "negative": "y" * 10_000, "images": 1_001},
        {"prompts": ["an otter"], "images": 1_001, "sweep": ["negative=" + "y" * 9_980]},
        {"prompts": ["an otter", {"prompt": "a fox", "note": "z" * 100_000, "images": 100}]},
    ],
    ids=[
        "sweep",
        "all of a template",
        "draws of a template",
        "long prompts",
        "long jobs",
        "long negative",
        "long sweep",
        "long column",
    ],
)
def test_a_short_request_cannot_ask_for_too_much(
    client: TestClient, store: JobStore, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted while it unfolds, and ends where it is too much, before a disk is full of it."""
    most = replace(submitting.MOST, jobs=20_000, characters=10**7)
    monkeypatch.setattr(submitting, "MOST", most)
    spooled: list[int] = []
    append = PromptList.append

    def counted(prompts: PromptList, line: Line) -> int:
        spooled.append(1)
        return append(prompts, line)

    monkeypatch.setattr(PromptList, "append", counted)
    before = len(store.submissions())
    answer = client.post(SUBMISSIONS, json={"model": "demo"} | asked)
    assert answer.status_code == 422
    assert re.search(r"more than (20,000 jobs|10,000,000 characters)", answer.json()["detail"])
    assert "use `promptmill submit`" in answer.json()["detail"]
    assert len(spooled) <= 20_000
    assert len(store.submissions()) == before


def test_a_short_request_cannot_write_gigabytes(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job has a row with its own copy of what it was asked for: a million of 20 KB are 20 GB."""
    monkeypatch.setattr(submitting, "submit_order", None)  # a test that fails shall not write them either
    asked = {"prompts": ["x" * 10_000], "negative": "y" * 10_000, "images": 100_000, "model": "demo"}
    answer = client.post(SUBMISSIONS, json=asked | {"sweep": ["guidance=1..10"]})
    assert answer.status_code == 422
    assert "more than 256,000,000 characters" in answer.json()["detail"]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_short_request_cannot_have_too_many_faults(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, *, skip_bad: bool
) -> None:
    """A line that cannot be used unfolds no further than one that can."""
    monkeypatch.setattr(submitting, "MOST", replace(submitting.MOST, jobs=500))
    bad = {"prompt": "{a|b|c|d|e|f|g|h|i|j} " * 6 + "x", "steps": 5_000}
    asked = {"model": "demo", "prompts": [bad, "an otter"], "templates": "all", "skip_bad": skip_bad}
    answer = client.post(SUBMISSIONS, json=asked)
    assert answer.status_code == 422
    assert "501 places cannot be used" in answer.json()["detail"]


def test_submissions_come_in_pages(client: TestClient, store: JobStore, otters: str) -> None:
    """Newest first; the cursor leads to exactly the rest."""
    ids = [store.add_submission(model="demo", source="test")[0].id for _ in range(4)]
    seen, cursor = [], ""
    while True:
        page = client.get(f"{SUBMISSIONS}?limit=2{cursor}").json()
        seen += [row["id"] for row in page["submissions"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert seen == [*reversed(ids), otters]


def test_jobs_come_in_pages_and_by_filter(client: TestClient, otters: str) -> None:
    """In the order of their index, with all that is known of each."""
    first = client.get(f"{SUBMISSIONS}/otters/jobs?limit=6").json()
    rest = client.get(f"{SUBMISSIONS}/otters/jobs?limit=6&cursor={first['cursor']}").json()
    assert [job["job"] for job in first["jobs"] + rest["jobs"]] == [f"{otters}:{n}" for n in range(JOBS)]
    assert rest["cursor"] is None
    failed = client.get(f"{SUBMISSIONS}/otters/jobs?status=failed").json()["jobs"]
    assert [(job["job"], job["error_message"]) for job in failed] == [
        (f"{otters}:{FAILED}", "It came out black.")
    ]
    assert failed[0]["image"] is None


def test_a_job_says_where_its_picture_is(client: TestClient, otters: str, store: JobStore) -> None:
    """And the address gives the stored bytes."""
    job = client.get(f"{SUBMISSIONS}/otters/jobs/2").json()["job"]
    assert job["prompt"] == "An otter, number 2"
    image = store.find_job(f"{otters}:2").image
    assert image is not None
    assert job["image"]["file_sha256"] == image.file_sha256
    assert len(client.get(job["image"]["url"]).content) == image.bytes


def test_a_submission_is_steered(client: TestClient, otters: str) -> None:
    """Each answer has the state that came of it."""
    assert "1 job of" in client.post(f"{SUBMISSIONS}/otters/retry").json()["said"][0]
    paused = client.post(f"{SUBMISSIONS}/{otters[:4]}/pause").json()
    assert paused["submission"]["state"] == "paused"
    assert client.post(f"{SUBMISSIONS}/otters/resume").json()["submission"]["state"] == "open"
    shares = client.patch(f"{SUBMISSIONS}/otters", json={"priority": 3, "max_running": 2}).json()
    assert "priority 3" in shares["said"][0]
    assert client.post(f"{SUBMISSIONS}/otters/cancel").json()["submission"]["state"] == "cancelled"
    assert client.post(f"{SUBMISSIONS}/otters/resume").status_code == 422
    assert client.post(f"{SUBMISSIONS}/otters/jobs/{FAILED}/retry").json()["submission"]["state"] == "open"
    assert client.post(f"{SUBMISSIONS}/otters/explode").status_code == 422
    assert client.patch(f"{SUBMISSIONS}/otters", json={}).status_code == 422


@pytest.mark.parametrize("path", ["nothing", "nothing/jobs", "otters/jobs/99", "otters/jobs/4/image"])
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    """As a problem document."""
    answer = client.get(f"{SUBMISSIONS}/{path}")
    assert answer.status_code == 404
    assert answer.json()["title"] == "Not Found"


def test_workers_are_listed(client: TestClient) -> None:
    """Those that live, unless all are asked for."""
    (one,) = client.get("/api/v1/workers").json()["workers"]
    assert (one["name"], one["model"], one["alive"], one["lanes"]) == ("demo@here", "demo", True, 2)
    assert len(client.get("/api/v1/workers?all=true").json()["workers"]) == 1


def test_a_database_that_is_away_is_503(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its sentence, on pages and in the API."""

    def away(*_: object, **__: object) -> None:
        raise UnreachableError("The database is down; start it.")

    monkeypatch.setattr(type(store), "newest", away)
    answer = client.get(SUBMISSIONS)
    assert (answer.status_code, answer.json()["detail"]) == (503, "The database is down; start it.")
    assert client.get("/", headers={"accept": "text/html"}).status_code == 503


def test_the_description_lists_every_path(client: TestClient) -> None:
    """And pages are no part of it."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {path.removeprefix("/api/v1") for path in paths} == {
        "/submissions", "/submissions/file", "/submissions/{reference}", "/submissions/{reference}/{action}",
        "/submissions/{reference}/jobs", "/submissions/{reference}/jobs/{index}",
        "/submissions/{reference}/jobs/{index}/retry", "/submissions/{reference}/jobs/{index}/image",
        "/workers", "/events", "/v1/images/generations",
    }  # fmt: skip
