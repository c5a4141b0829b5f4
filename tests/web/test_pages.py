"""What the pages show: without scripts, and with the pieces that scripts ask for."""

from __future__ import annotations

import html
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from producer.commands.render import render as command
from producer.jobs import build_jobs, job_options
from producer.prompts import read_prompts
from producer.retyped import render_command
from storage.browsing import LOOK_AT
from storage.jobstore import JobStore
from storage.parameters import OPTION_DEFAULTS, JobParameters
from storage.settings import Settings
from storage.stores import open_image_store, open_job_store
from tests.unit.producer.conftest import StandInWorker
from tests.web.conftest import BASE, FAILED, JOBS, MARKUP, form_token, post, rules
from web import pages, thumbnails
from web.app import create_app
from web.rendering import FORM_COOKIE, SAID_COOKIE

HELP = ["-h", "--help"]  # a command keeps how it was asked first, and its page in the docs has both
OPTIONS = (
    "negative", "seed", "seed_per_prompt", "images", "steps", "guidance", "sampler", "schedule", "size",
    "width", "height", "eta", "guidance_rescale", "guidance_interval", "prompt_syntax", "image_format",
    "quality",
)  # fmt: skip


def indices(text: str) -> list[int]:
    """Return the jobs whose cells are on a page."""
    return [int(found) for found in re.findall(r'id="job-(\d+)"', text)]


def text_of(page: str) -> str:
    """Return what can be read on a page."""
    return re.sub(r" +", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_start_page_lists_submissions_with_their_progress(client: TestClient, otters: str) -> None:
    """Name, id, state and counts, the bar said in words for who cannot see it."""
    page = client.get("/").text
    assert f'href="/submissions/{otters}"' in page
    assert 'aria-label="8 succeeded, 1 failed of 9"' in page
    assert ">done</span>" in page


def test_older_submissions_are_a_page_further(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty a page; the link leads to exactly those that are missing."""
    monkeypatch.setattr(pages, "SUBMISSIONS", 3)
    for number in range(5):
        store.add_submission(model="demo", source="test", name=f"n{number}")
    first = client.get("/").text
    link = re.search(r'rel="next" href="([^"]+)"', first)
    assert link is not None
    second = client.get(html.unescape(link[1])).text
    names = re.findall(r">(n\d|otters)</a>", first + second)
    assert names == ["n4", "n3", "n2", "n1", "n0", "otters"]
    assert 'rel="next"' not in second


def test_a_home_without_submissions_says_what_to_do(tmp_path: Path) -> None:
    """An empty list is not a blank page."""
    settings = Settings(home=tmp_path / "empty")
    empty = open_job_store(settings)
    app = create_app(settings, empty, open_image_store(settings), rules=rules())
    assert "promptmill submit" in TestClient(app, base_url=BASE).get("/").text
    empty.close()


def test_a_gallery_shows_every_job_in_order(client: TestClient, otters: str) -> None:
    """Pictures by their thumbnails, the failed job by its reason."""
    page = client.get(f"/submissions/{otters}").text
    assert indices(page) == list(range(JOBS))
    assert page.count("/thumbnail?v=") == JOBS - 1
    assert page.count('loading="lazy"') == JOBS - 1
    assert "It came out black." in page


def test_a_gallery_has_pages_that_are_read_by_key(
    client: TestClient, otters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Following the links shows every job once, and a script gets the cells alone."""
    monkeypatch.setattr(pages, "JOBS", 4)
    seen, path = [], f"/submissions/{otters}"
    while path:
        page = client.get(path).text
        seen += indices(page)
        found = re.search(r'<a rel="next" href="([^"]+)"', page)
        path = html.unescape(found[1]) if found else ""
    assert seen == list(range(JOBS))
    piece = client.get(f"/submissions/{otters}?cursor=3", headers={"hx-request": "true"}).text
    assert indices(piece) == [4, 5, 6, 7]
    assert "<html" not in piece


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("status=failed", [FAILED]),
        ("q=NUMBER 3", [3]),
        ("sampler=euler", [1, 3, 5, 7]),
        ("seed=102", [2]),
        ("where=genre=oil", [1, 3, 5, 7]),
        ("where=genre=oil&status=succeeded&q=7", [7]),
        ("q=nothing of the kind", []),
    ],
)
def test_a_filter_shows_only_what_is_meant(
    client: TestClient, otters: str, query: str, meant: list[int]
) -> None:
    """By status, prompt, sampler, seed and a column of the prompt file, alone and together."""
    assert indices(client.get(f"/submissions/{otters}?{query}").text) == meant


def test_a_filter_that_cannot_be_read_is_one_sentence(client: TestClient, otters: str) -> None:
    """And no empty page."""
    answer = client.get(f"/submissions/{otters}?where=genre", headers={"accept": "text/html"})
    assert answer.status_code == 422
    assert "write column=value" in text_of(answer.text)


def test_a_job_shows_everything_and_how_to_render_it_again(client: TestClient, otters: str) -> None:
    """Prompt, settings, columns, hashes, and both commands."""
    page = text_of(client.get(f"/submissions/{otters}/jobs/3").text)
    for told in (
        "An otter, number 3",
        "103",
        "euler",
        "oil",
        "file sha256",
        f"promptmill reproduce {otters}:3",
    ):
        assert told in page
    assert "promptmill render '--prompt=An otter, number 3' --model=demo --seed=103" in page


def test_a_job_leads_to_those_beside_it(client: TestClient, otters: str) -> None:
    """Of those that the filter means, in both directions, and nowhere at the ends."""
    page = client.get(f"/submissions/{otters}/jobs/3?sampler=euler").text
    assert re.findall(r'rel="(prev|next)" href="[^"]*/jobs/(\d+)\?', page) == [("prev", "1"), ("next", "5")]
    assert 'rel="prev"' not in client.get(f"/submissions/{otters}/jobs/0").text
    assert 'rel="next"' not in client.get(f"/submissions/{otters}/jobs/{JOBS - 1}").text


def test_a_job_leads_on_where_the_filter_has_not_looked_at_all(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and behind it: a page looks at so many jobs, and says up to where it did."""
    monkeypatch.setattr("storage.sqljobstore.browsing.LOOK_AT", 1_000)
    jobs = (JobParameters(prompt="rare" if n % 3_000 == 0 else "common", seed=n) for n in range(6_001))
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, jobs)
    store.open_submission(submission.id)

    def beside(index: int) -> dict[str, int]:
        page = client.get(f"/submissions/{submission.id}/jobs/{index}?q=rare").text
        found = re.findall(r'rel="(prev|next)" href="[^"]*/jobs/(\d+)\?', page)
        return {kind: int(number) for kind, number in found}

    at, steps = 0, []
    while "next" in beside(at):
        at = beside(at)["next"]
        steps.append(at)
    assert steps == [1_000, 2_000, 3_000, 4_000, 5_000, 6_000]
    assert beside(3_000)["prev"] == 2_000
    assert beside(1_000) == {"prev": 0, "next": 2_000}


def test_markup_in_a_prompt_is_shown_and_not_run(client: TestClient, otters: str) -> None:
    """On every page that shows prompts."""
    paths = ["", "/jobs/0", "/grid", "/cells?index=0"]
    pages_ = [client.get(f"/submissions/{otters}{path}").text for path in paths]
    pages_.append(client.get(f"/compare?left={otters}:0&right={otters}:1").text)
    for page in pages_:
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page
        assert MARKUP in html.unescape(page)


def test_a_picture_is_sent_as_it_is_stored(client: TestClient, otters: str, store: JobStore) -> None:
    """With its hash as entity tag, which spares the second transfer."""
    image = store.find_job(f"{otters}:2").image
    assert image is not None
    answer = client.get(f"/submissions/{otters}/jobs/2/picture?download=1")
    assert len(answer.content) == image.bytes
    assert answer.headers["etag"] == f'"{image.file_sha256}"'
    assert answer.headers["content-type"] == "image/png"
    assert "attachment; filename*=UTF-8''" in answer.headers["content-disposition"]
    again = client.get(answer.request.url.path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=10-", 206, 10, None),
        ("bytes=-5", 206, -5, None),
        ("bytes=5-1", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=999999999-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_a_range_of_a_picture_is_answered(
    client: TestClient, otters: str, *, asked: str, status: int, start: int, end: int | None
) -> None:
    """As RFC 9110 has it: a range that is none is left unread."""
    path = f"/api/v1/submissions/{otters}/jobs/2/image"
    whole = client.get(path).content
    answer = client.get(path, headers={"range": asked})
    assert answer.status_code == status
    assert answer.content == whole[start:end]
    stale = client.get(path, headers={"range": "bytes=0-9", "if-range": '"another"'})
    assert stale.content == whole


def test_a_thumbnail_is_made_once(
    client: TestClient, otters: str, settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards it comes from the cache, and its address keeps it for ever."""
    image = store.find_job(f"{otters}:2").image
    assert image is not None
    path = f"/submissions/{otters}/jobs/2/thumbnail?v={image.file_sha256[:12]}"
    first = client.get(path)
    assert first.content[8:12] == b"WEBP"
    assert "immutable" in first.headers["cache-control"]
    assert len(list((settings.thumbnails_path / otters).iterdir())) == 1
    monkeypatch.setattr("web.thumbnails.read_picture", None)
    assert client.get(path).content == first.content
    assert client.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 304


def test_a_thumbnail_that_many_ask_for_is_made_once(
    client: TestClient, otters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for somebody else's looks again before he makes his own."""
    shrunk = thumbnails._shrunk
    made: list[str] = []

    def slowly(data: bytes, key: str) -> bytes:
        made.append(key)
        time.sleep(0.2)
        return shrunk(data, key)

    monkeypatch.setattr(thumbnails, "_shrunk", slowly)
    path = f"/submissions/{otters}/jobs/2/thumbnail"
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: client.get(path), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(made) <= thumbnails.AT_ONCE


def test_a_thumbnail_goes_out_also_where_it_cannot_be_kept(
    client: TestClient, otters: str, settings: Settings
) -> None:
    """A full or read-only disk makes it slower, not broken."""
    settings.thumbnails_path.parent.write_text("a file where the folder belongs")
    assert client.get(f"/submissions/{otters}/jobs/2/thumbnail").content[8:12] == b"WEBP"


def test_a_picture_that_is_gone_is_one_sentence(
    client: TestClient, otters: str, settings: Settings, store: JobStore
) -> None:
    """As a problem document, which a browser's img does not read and a person does."""
    image = store.find_job(f"{otters}:2").image
    assert image is not None
    (settings.images_path / image.key).write_bytes(b"something else")
    answer = client.get(f"/submissions/{otters}/jobs/2/thumbnail")
    assert answer.status_code == 503
    assert "promptmill doctor --repair" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/submissions/nowhere", "/submissions/otters/jobs/99", "/submissions/otters/jobs/99999999999999",
        "/submissions/otters/jobs/4/picture", "/compare?left=otters:99&right=otters:1", "/no/such/page",
        "/static/nothing.css",
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_page_that_says_so(client: TestClient, path: str) -> None:
    """Status 404 and a sentence."""
    answer = client.get(path, headers={"accept": "text/html"})
    assert answer.status_code == 404
    assert "Not Found" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_workers_are_listed(client: TestClient) -> None:
    """Device, model, lanes in use, and the last heartbeat."""
    page = text_of(client.get("/workers").text)
    for told in ("demo@here", "cpu", "0 of 2", "ready", "ago"):
        assert told in page


def test_cells_that_were_not_finished_are_drawn_anew(
    client: TestClient, otters: str, store: JobStore, worker: StandInWorker
) -> None:
    """A script asks for those that it shows."""
    store.retry(otters)
    waiting = client.get(f"/submissions/{otters}").text
    assert f'data-unfinished="{FAILED}"' in waiting
    worker.start()
    worker.render()
    fresh = client.get(f"/submissions/{otters}/cells?index={FAILED}&index=0").text
    assert indices(fresh) == [0, FAILED]
    assert "data-unfinished" not in fresh
    assert f'href="/submissions/{otters}/jobs/0"' in fresh


def test_cells_that_are_drawn_anew_keep_the_filter(client: TestClient, otters: str) -> None:
    """Their links lead along the jobs that it means, also from one that it means no more."""
    query = "?q=otter&status=waiting"
    (link,) = re.findall(r'href="([^"]+)"', client.get(f"/submissions/{otters}/cells{query}&index=3").text)
    assert html.unescape(link) == f"/submissions/{otters}/jobs/3{query}"


def test_two_jobs_are_compared(client: TestClient, otters: str) -> None:
    """What differs is said, what does not is left out."""
    page = client.get(f"/compare?left={otters}:1&right=otters:3").text
    assert page.count("/picture?v=") == 2
    rows = dict(re.findall(r'<th scope="row">([^<]+)</th><td>([^<]*)</td>', page))
    assert rows == {"prompt": "An otter, number 1", "seed": "101"}


def test_a_sweep_is_laid_out_as_rows_and_columns(client: TestClient, store: JobStore) -> None:
    """Its axes are the table's headers."""
    sweep = [
        JobParameters(prompt="an otter", seed=1, num_inference_steps=steps, guidance_scale=guidance)
        for steps in (10, 20)
        for guidance in (3.0, 5.0, 7.0)
    ]
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, sweep)
    store.open_submission(submission.id)
    page = client.get(f"/submissions/{submission.id}/grid").text
    assert re.findall(r'scope="row">([^<]+)<', page) == ["steps 10", "steps 20"]
    assert re.findall(r'scope="col">([^<]+)<', page) == ["guidance 3", "guidance 5", "guidance 7"]
    assert indices(page) == list(range(6))


def test_pause_resume_cancel_and_retry_from_the_page(
    client: TestClient, otters: str, store: JobStore
) -> None:
    """Each button says what it did."""
    said = post(client, f"/submissions/{otters}/retry")
    assert "1 job of" in text_of(said)
    assert "Paused" in text_of(post(client, f"/submissions/{otters}/pause"))
    assert store.find_submission(otters).state == "paused"
    assert "goes on" in text_of(post(client, f"/submissions/{otters}/resume"))
    assert "Cancelled" in text_of(post(client, f"/submissions/{otters}/cancel"))
    assert "will be rendered again" in text_of(post(client, f"/submissions/{otters}/jobs/{FAILED}/retry"))
    assert "priority 7" in text_of(post(client, f"/submissions/{otters}/adjust", priority="7"))
    assert "Cancelled" not in client.get(f"/submissions/{otters}").text, "it is said once"


def test_prompts_are_submitted_by_the_form(client: TestClient, store: JobStore) -> None:
    """With the command line's readers: options in a line, and settings that are left to the model."""
    page = post(
        client, "/submit", prompts="a red otter\na blue one --s 12", model="demo", seed="5", name="two"
    )
    assert "Submitted 2 jobs." in page
    jobs = list(store.jobs(store.find_submission("two").id))
    assert [(job.parameters.prompt, job.parameters.seed) for job in jobs] == [
        ("a red otter", 5), ("a blue one", 5),
    ]  # fmt: skip
    assert jobs[1].parameters.num_inference_steps == 12


def test_a_file_is_submitted_by_the_form(client: TestClient, store: JobStore) -> None:
    """Its name says its format, and nothing else."""
    answer = client.post(
        "/submit",
        data={"form_token": form_token(client), "model": "demo", "name": "table"},
        files={"file": ("../../etc/list.csv", b"prompt,genre\nan otter,oil\n")},
    )
    assert answer.status_code == 200
    found = store.find_submission("table")
    assert found.source == "list.csv"
    assert store.find_job("table:0").parameters.extra == {"genre": "oil"}


def test_a_form_with_faults_comes_back_with_all_of_them(client: TestClient, store: JobStore) -> None:
    """What was typed is still there, and nothing was written."""
    before = len(store.submissions())
    answer = client.post(
        "/submit",
        data={"form_token": form_token(client), "prompts": "ok --s 5000\nfine\nbad --w 7", "model": "demo"},
    )
    assert answer.status_code == 422
    told = text_of(answer.text)
    assert "the form:1" in told
    assert "the form:3" in told
    assert "bad --w 7" in told
    assert len(store.submissions()) == before
    missing = client.post("/submit", data={"form_token": form_token(client), "steps": "many", "prompts": "x"})
    assert "steps 'many' cannot be used" in text_of(missing.text)


def test_a_filter_reads_a_bounded_number_of_jobs(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that found nothing so far says so and goes on where it stopped."""
    monkeypatch.setattr("storage.sqljobstore.browsing.LOOK_AT", 2_000)
    jobs = (JobParameters(prompt="rare" if n == 4_500 else "common", seed=n) for n in range(5_000))
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, jobs)
    store.open_submission(submission.id)
    assert LOOK_AT > 2_000
    path, seen, looks = f"/submissions/{submission.id}?q=rare", [], 0
    while path:
        page = client.get(path).text
        seen, looks = seen + indices(page), looks + 1
        found = re.search(r'<a rel="next" href="([^"]+)"', page)
        path = html.unescape(found[1]) if found else ""
    assert (seen, looks) == ([4_500], 3)


def test_the_command_to_copy_makes_the_very_same_job(store: JobStore, otters: str) -> None:
    """What is copied from a page is read by the command line into the same parameters."""
    submission = store.find_submission(otters)
    for index in (0, 3):
        asked = store.find_job(f"{otters}:{index}")
        typed = render_command(asked, submission)
        assert typed is not None
        flags = command.make_context("render", shlex.split(typed)[2:], help_option_names=HELP).params
        options = job_options(**{name: flags[name] for name in OPTIONS})
        (again,) = build_jobs(read_prompts((), flags["texts"], options=options), options, {})
        assert again == replace(asked.parameters, extra={})


def test_every_option_has_a_flag_in_the_command_to_copy(store: JobStore, otters: str) -> None:
    """Those too that are called otherwise on the command line."""
    job = store.find_job(f"{otters}:0")
    digest = "a" * 64
    options = {
        "eta": 0.5, "guidance_rescale": 0.5, "guidance_interval": [0.1, 0.9], "prompt_syntax": "weighted",
        "image_format": "jpeg", "quality": 90, "init_image": digest, "mask_image": digest, "strength": 0.5,
        "control_image": digest, "controlnet_conditioning_scale": 0.5,
        "loras": [["style", 0.8], ["ink", 1.0]],
    }  # fmt: skip
    assert set(options) == set(OPTION_DEFAULTS)
    asked = replace(job, parameters=replace(job.parameters, options=options))
    typed = render_command(asked, store.find_submission(otters))
    assert typed is not None
    flags = command.make_context("render", shlex.split(typed)[2:], help_option_names=HELP).params
    assert flags["loras"] == ("style:0.8", "ink:1")
    assert (flags["mask_image"], flags["control_image"], flags["init_image"]) == (digest,) * 3
    assert flags["controlnet_conditioning_scale"] == flags["strength"] == 0.5


def test_a_list_that_is_no_sweep_has_no_grid(client: TestClient, store: JobStore) -> None:
    """All combinations of what its jobs differ in would be more cells than anybody has memory for."""
    submission, _ = store.add_submission(model="demo", source="test")
    jobs = (
        JobParameters(
            prompt=f"otter {n}", negative_prompt=f"no {n % 50}", seed=n, num_inference_steps=1 + n % 30,
            guidance_scale=1.0 + n % 20,
        )
        for n in range(300)
    )  # fmt: skip
    store.add_jobs(submission.id, jobs)
    store.open_submission(submission.id)
    page = client.get(f"/submissions/{submission.id}/grid").text
    assert "This is no sweep" in page
    assert "<table" not in page


def test_what_is_signed_for_a_form_says_nothing_on_a_page(client: TestClient) -> None:
    """A cookie that somebody else has set is no message of ours, and breaks no page."""
    client.cookies.set(FORM_COOKIE, "A")
    client.cookies.set(SAID_COOKIE, f"A.{form_token(client)}")
    assert client.get("/").status_code == 200
