"""The pages in a real browser and the API by a real client, over a real server and a real worker.

Chromium is Debian's (`apt-get install chromium`), or what PROMPTMILL_CHROMIUM names; where there is none,
what needs it is skipped. With PROMPTMILL_SCREENSHOTS=FOLDER every page is also photographed into that folder.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from openai import OpenAI
from PIL import Image as Picture
from playwright.sync_api import Browser, Page, expect, sync_playwright

from storage.inputs import input_key, inputs_of
from storage.parameters import JobParameters
from storage.records import JobStatus
from tests.acceptance.farm import PATIENCE, Farm, wait_until
from tests.chaos.tiny import make_tiny_model

ROOT = Path(__file__).parents[2]
CHROMIUM = (
    os.environ.get("PROMPTMILL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
SCREENSHOTS = os.environ.get("PROMPTMILL_SCREENSHOTS")
TOKEN = "a-token-that-is-long-enough"  # noqa: S105  (of this test)
JOBS = 8  # of the list that is there from the start
SLOW = ("--steps", "1000", "--sampler", "euler")
WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
# Colours and widths are each looked at once; photographs are taken of all four.
LOOKED_AT = {("light", "desktop"), ("dark", "phone")}
# What axe calls serious or worse; what it calls moderate or minor is advice.
GRAVE = {"serious", "critical"}


@dataclass(frozen=True, kw_only=True)
class Mill:
    """A farm with a worker and two servers.

    Attributes:
        url: of the server that serves everybody.
        guarded: of the one that wants TOKEN.
        otters: a submission that is done.
        broken, mendable: each with a job that failed, since the picture that it begins with is gone.
        gone: where the picture of `mendable` was, and where it is now.
    """

    farm: Farm
    url: str
    guarded: str
    otters: str
    broken: str
    mendable: str
    gone: tuple[Path, Path]


@pytest.fixture(scope="module")
def mill() -> Iterator[Mill]:
    """Such a farm; its pictures take milliseconds."""
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = make_tiny_model(folder / "tiny")
        farm = Farm(folder / "home", PROMPTMILL_MODELS=f"tiny={model}")
        try:
            yield _started(farm, folder)
        finally:
            farm.close()


def _started(farm: Farm, folder: Path) -> Mill:
    broken, _ = _without_its_input(farm, folder, "one")
    mendable, gone = _without_its_input(farm, folder, "other")
    (folder / "otters.csv").write_text(
        "prompt,genre,sampler\n"
        + "".join(
            f'"An otter, number {n}, in a prompt that is long enough to be cut off somewhere",'
            f"{('neon', 'oil')[n % 2]},{('lms', 'euler')[n % 2]}\n"
            for n in range(JOBS)
        )
    )
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    farm.start("worker", "start", "--model", "tiny", "--lanes", "2")
    servers = [
        farm.start("web", "--port", "0", *words) for words in ((), ("--token-file", str(folder / "token")))
    ]
    otters = _submitted(farm, str(folder / "otters.csv"), "--seed", "7", "--name", "otters")
    url, guarded = (_address(farm, server) for server in servers)
    farm.wait_for(otters, JOBS)
    for submission in (broken, mendable):
        farm.wait_for(submission, 1, JobStatus.FAILED)
    return Mill(
        farm=farm, url=url, guarded=guarded, otters=otters, broken=broken, mendable=mendable, gone=gone
    )


def _without_its_input(farm: Farm, folder: Path, name: str) -> tuple[str, tuple[Path, Path]]:
    """Submit a job, and take the picture that it begins with out of the store; return where it was and is."""
    picture = folder / f"{name}.png"
    Picture.new("RGB", (64, 64), (200, len(name), 40)).save(picture)
    submission = _submitted(farm, "-p", f"An otter from {name} picture", "--init-image", str(picture))
    inputs = inputs_of(farm.store().find_job(f"{submission}:0").parameters.options)
    kept = farm.settings.images_path / input_key(next(iter(inputs.values())))
    return submission, (kept, kept.rename(folder / f"{name}-gone.png"))


def _submitted(farm: Farm, *words: str) -> str:
    done = farm.run("submit", "--model", "tiny", "--size", "64x64", "--steps", "4", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _address(farm: Farm, process: subprocess.Popen[str]) -> str:
    found = wait_until(
        lambda: process.poll() is not None or re.search(r"http://[\w.:]+", farm.output(process)),
        what="the server serves",
    )
    assert isinstance(found, re.Match), farm.output(process)
    return found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; `apt-get install chromium`, or set PROMPTMILL_CHROMIUM")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE * 1000)
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, mill: Mill) -> Iterator[Page]:
    """A tab; a script that fails anywhere fails the test."""
    faults: list[str] = []
    with _tab(browser, mill) as opened:
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
        yield opened
    assert faults == []


@contextmanager
def _tab(browser: Browser, mill: Mill, **options: Any) -> Iterator[Page]:
    """Open a tab, as patient as all else here."""
    context = browser.new_context(base_url=mill.url, **options)
    context.set_default_timeout(PATIENCE * 1000)
    try:
        yield context.new_page()
    finally:
        context.close()


def _paused(mill: Mill, count: int = 6) -> str:
    """Submit jobs of which at least two wait until somebody resumes it; return its id."""
    store = mill.farm.store()
    made, _ = store.add_submission(model="tiny", source="a test")
    jobs = (
        JobParameters(prompt=f"otter {n}", seed=n, width=64, height=64, num_inference_steps=4)
        for n in range(count)
    )
    store.add_jobs(made.id, jobs)
    store.open_submission(made.id)
    store.pause(made.id)
    # What a lane had taken before goes on to its end.
    wait_until(lambda: not mill.farm.count(made.id, JobStatus.RUNNING, JobStatus.QUEUED), what="none runs")
    assert mill.farm.count(made.id, JobStatus.WAITING) >= 2
    return made.id


def state(page: Page) -> str:
    """Return the selector's text of a submission's state on its own page."""
    return page.locator(".head .tag").inner_text()


def loaded(page: Page, selector: str) -> int:
    """Return how many pictures are there, with pixels."""
    script = f"[...document.querySelectorAll({selector!r})].filter((one) => one.naturalWidth > 0).length"
    return int(page.evaluate(script))


def test_a_list_is_submitted_and_watched_to_its_end(page: Page, mill: Mill) -> None:
    """From the form to the last picture without loading the page again, whatever the keyboard stands on."""
    page.goto("/submit")
    page.get_by_label("Prompts, one a line").fill("".join(f"A red otter, number {n}\n" for n in range(6)))
    page.get_by_label("Model").select_option("tiny")
    page.get_by_label("Steps").fill("60")
    page.get_by_label("Size").fill("64x64")
    page.get_by_label("Name").fill("typed")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="typed")).to_be_visible()
    expect(page.get_by_text("Submitted 6 jobs.")).to_be_visible()
    page.evaluate("window.isTheSame = true")
    page.locator("#gallery .open").first.focus()
    expect(page.locator(".head .tag")).to_have_text("done")
    expect(page.locator("#gallery img")).to_have_count(6)
    wait_until(lambda: loaded(page, "#gallery img") == 6, what="all thumbnails are there")
    assert page.evaluate("window.isTheSame"), "the page was loaded again"
    assert page.evaluate("document.activeElement.closest('.cell').id") == "job-0"
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    assert mill.farm.count(mill.farm.store().find_submission("typed").id, JobStatus.SUCCEEDED) == 6


def test_a_row_keeps_the_keyboard(page: Page, mill: Mill) -> None:
    """The list draws a row anew whenever something is finished, under whoever stands on its link."""
    listed = _paused(mill)
    page.goto("/")
    row = page.locator(f"#submission-{listed}")
    row.get_by_role("link").focus()
    row.evaluate("(one) => { window.first = one; }")
    mill.farm.store().open_submission(listed)
    expect(row.locator(".tag")).to_have_text("done")
    assert row.evaluate("(one) => one !== window.first"), "the row was not drawn anew"
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"/submissions/{listed}"


def test_an_answer_that_was_overtaken_changes_nothing(page: Page, mill: Mill) -> None:
    """It says of a picture that is there that it waits; later ones have drawn that cell."""
    listed = _paused(mill)
    page.goto(f"/submissions/{listed}")
    page.evaluate(
        """(id) => {
            const real = window.fetch;
            window.fetch = async (...asked) => {
                window.fetch = real;
                const answer = await real(...asked);
                await new Promise((go) => { window.release = go; });
                return answer;
            };
            window.overtaken = refreshCells(id, false);
        }""",
        listed,
    )
    wait_until(lambda: page.evaluate("Boolean(window.release)"), what="the server has answered")
    mill.farm.store().open_submission(listed)
    expect(page.locator("#gallery img")).to_have_count(6)
    page.evaluate("() => { window.release(); return window.overtaken; }")
    assert page.locator("#gallery img").count() == 6


def test_the_end_is_shown_also_where_the_server_was_away_for_a_moment(page: Page, mill: Mill) -> None:
    """Nothing is said after it: it is asked for again, and what is half typed beside it stays."""
    listed = _paused(mill)
    page.goto(f"/submissions/{listed}")
    page.evaluate(
        """() => {
            const real = window.fetch;
            window.isAway = true;
            window.fetch = async (...asked) => {
                if (window.isAway) throw new TypeError("nobody answers");
                return real(...asked);
            };
        }"""
    )
    priority = page.get_by_label("Priority")
    priority.fill("7")
    mill.farm.store().open_submission(listed)
    expect(page.locator(".head .tag")).to_have_text("done")
    expect(page.locator("#gallery [data-unfinished]")).not_to_have_count(0)
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(1)
    page.evaluate("window.isAway = false")
    expect(page.locator("#gallery img")).to_have_count(6)
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    expect(priority).to_be_focused()
    expect(priority).to_have_value("7")


def test_who_stands_on_a_button_that_goes_is_not_lost(page: Page, mill: Mill) -> None:
    """The keyboard goes on beside it, on a link: a button could be pressed by mistake."""
    listed = _paused(mill)
    page.goto(f"/submissions/{listed}")
    page.get_by_role("button", name="Cancel", exact=True).focus()
    mill.farm.store().open_submission(listed)
    expect(page.get_by_role("link", name="Grid")).to_be_focused()
    assert mill.farm.store().find_submission(listed).state == "open"


def test_pictures_that_come_later_keep_the_filter(page: Page, mill: Mill) -> None:
    """Along their links only what it means is met."""
    listed = _paused(mill)
    page.goto(f"/submissions/{listed}?q=otter+5")
    mill.farm.store().open_submission(listed)
    expect(page.locator("#gallery img")).to_have_count(1)
    expect(page.locator("#gallery .open")).to_have_attribute(
        "href", f"/submissions/{listed}/jobs/5?q=otter+5"
    )


def test_a_picture_is_opened_and_left_by_keys(page: Page, mill: Mill) -> None:
    """Arrows move among the cells, Enter opens, arrows lead on, Escape leads back."""
    page.goto(f"/submissions/{mill.otters}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/jobs/1$"))
    wait_until(lambda: loaded(page, ".view img") == 1, what="the picture is there")
    expect(page.locator("#prompt")).to_contain_text("An otter, number 1")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(r"/jobs/2$"))
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(rf"/submissions/{mill.otters}#job-2$"))


def test_a_filter_leaves_what_it_means(page: Page, mill: Mill) -> None:
    """At once, in the address too, and along the way through the pictures."""
    page.goto(f"/submissions/{mill.otters}")
    page.get_by_label("Column").fill("genre=oil")
    page.get_by_label("Column").press("Enter")
    expect(page.locator("#gallery .cell")).to_have_count(JOBS // 2)
    expect(page).to_have_url(re.compile("where=genre"))
    page.get_by_label("Prompt has").fill("number 3")
    page.get_by_label("Prompt has").press("Enter")
    expect(page.locator("#gallery .cell")).to_have_count(1)
    page.get_by_label("Prompt has").fill("")
    page.get_by_label("Prompt has").press("Enter")
    expect(page.locator("#gallery .cell")).to_have_count(JOBS // 2)
    page.locator("#gallery .open").first.click()
    page.get_by_role("link", name="3 →").click()
    expect(page).to_have_url(re.compile(r"/jobs/3\?.*where="))


def test_a_failed_job_is_retried(page: Page, mill: Mill) -> None:
    """Its reason is on its cell and its page; once that is mended, a button renders it."""
    page.goto(f"/submissions/{mill.mendable}")
    expect(page.locator("#job-0 .reason")).to_contain_text("not in the picture store")
    page.locator("#job-0 .open").click()
    expect(page.locator(".failure")).to_contain_text("not in the picture store")
    mill.gone[1].rename(mill.gone[0])
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("will be rendered again")
    page.goto(f"/submissions/{mill.mendable}")
    expect(page.locator("#job-0 img")).to_have_count(1)
    expect(page.locator(".head .tag")).to_have_text("done")


def test_a_submission_is_cancelled(page: Page, mill: Mill) -> None:
    """After a question that can be answered with no."""
    long = _submitted(mill.farm, "-p", "A slow otter", "--images", "50", *SLOW, "--name", "slow")
    page.goto(f"/submissions/{long}")
    posted: list[str] = []
    page.on("request", lambda sent: posted.append(sent.url) if sent.method == "POST" else None)
    page.once("dialog", lambda asked: asked.dismiss())
    page.get_by_role("button", name="Cancel", exact=True).click()
    assert mill.farm.store().find_submission(long).state == "open"
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Cancelled")
    expect(page.locator(".head .tag")).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Retry failed and cancelled")).to_be_visible()
    assert posted == [f"{mill.url}/submissions/{long}/cancel"], "it was also sent after the no"


def test_without_scripts_everything_can_be_read_and_steered(browser: Browser, mill: Mill) -> None:
    """Links and forms alone: list, gallery, filter, picture, and a button."""
    with _tab(browser, mill, java_script_enabled=False) as page:
        page.goto("/")
        page.get_by_role("link", name="otters").click()
        expect(page.locator("#gallery .cell")).to_have_count(JOBS)
        page.get_by_role("combobox", name="Status").select_option("failed")
        page.get_by_role("button", name="Filter").click()
        expect(page.get_by_text("No job is so.")).to_be_visible()
        page.get_by_role("link", name="All jobs").click()
        page.locator("#gallery .open").nth(4).click()
        expect(page.locator("#prompt")).to_contain_text("number 4")
        paused = _submitted(mill.farm, "-p", "An otter that waits", "--images", "50", *SLOW)
        page.goto(f"/submissions/{paused}")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".head .tag")).to_have_text("paused")
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.locator(".head .tag")).to_have_text("cancelled")


def pages_of(mill: Mill) -> dict[str, str]:
    """Return where every kind of page is."""
    sweep = mill.farm.run(
        "submit", "--model", "tiny", "--size", "64x64", "-p", "An otter in a sweep", "--seed", "1",
        "--sweep", "steps=2,3,4", "--sweep", "guidance=1,5", "--name", "sweep",
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stderr
    mill.farm.wait_for(sweep.stdout.strip(), 6)
    return {
        "submissions": "/",
        "submission": f"/submissions/{mill.otters}",
        "filtered": f"/submissions/{mill.otters}?q=nothing+of+the+kind",
        "failures": f"/submissions/{mill.broken}",
        "job": f"/submissions/{mill.otters}/jobs/1",
        "failure": f"/submissions/{mill.broken}/jobs/0",
        "compare": f"/compare?left={mill.otters}:0&right={mill.otters}:1",
        "grid": "/submissions/sweep/grid",
        "submit": "/submit",
        "workers": "/workers?all=1",
        "problem": "/submissions/nowhere",
        "login": f"{mill.guarded}/login",
    }


def _faults(page: Page, paths: dict[str, str], scheme: str, width: str) -> Iterator[str]:
    """Yield what is wrong with every page."""
    for name, path in paths.items():
        page.goto(path, wait_until="networkidle" if SCREENSHOTS else "load")
        if name == "submit":
            page.get_by_label("Prompts, one a line").fill("an otter --s 5000\na fox --w 7")
            page.get_by_role("button", name="Submit").click()
            expect(page.get_by_role("alert")).to_be_visible()
        where = f"{name}, {scheme}, {width}"
        if page.evaluate("document.scrollingElement.scrollWidth > innerWidth"):
            yield f"{where}: wider than the screen"
        found = Axe().run(page).response["violations"]
        for fault in found:
            if fault["impact"] in GRAVE:
                nodes = [node["html"][:200] for node in fault["nodes"][:3]]
                yield f"{where}: {fault['id']}: {fault['help']}: {nodes}"
        if SCREENSHOTS:
            target = Path(SCREENSHOTS) / f"{name}-{width}-{scheme}.png"
            page.screenshot(path=target, full_page=width == "desktop")


def test_every_page_fits_its_reader(browser: Browser, mill: Mill) -> None:
    """In light and dark, wide and narrow: nothing that axe calls serious, and nothing beside the screen."""
    paths = pages_of(mill)
    faults: list[str] = []
    for scheme in ("light", "dark"):
        for width, (across, down) in WIDTHS.items():
            if not SCREENSHOTS and (scheme, width) not in LOOKED_AT:
                continue
            with _tab(
                browser, mill, color_scheme=scheme, viewport={"width": across, "height": down},
                is_mobile=width == "phone", device_scale_factor=1,
            ) as page:  # fmt: skip
                faults += _faults(page, paths, scheme, width)
    assert faults == []


def test_openais_client_gets_the_bytes_of_the_command_line(mill: Mill) -> None:
    """For the same job: what it is told as base64 is the file that `export` writes."""
    openai = OpenAI(base_url=f"{mill.url}/v1", api_key="any", timeout=PATIENCE)
    answer = openai.images.generate(
        model="tiny", prompt="An otter for two", n=2, size="64x64", extra_body={"seed": 9, "steps": 5}
    )
    told = [base64.b64decode(one.b64_json or "") for one in answer.data or []]
    words = ("-p", "An otter for two", "--seed", "9", "--images", "2", "--steps", "5", "--again")
    again = _submitted(mill.farm, *words)
    mill.farm.wait_for(again, 2)
    out = mill.farm.home.parent / "exported"
    exported = mill.farm.run("export", again, "--to", str(out))
    assert exported.returncode == 0, exported.stderr
    assert [path.read_bytes() for path in sorted(out.glob("*.png"))] == told
    assert len(told) == 2
    assert (answer.model_extra or {}).get("submission") not in (None, again), "it was rendered only once"


def test_the_server_answers_head_without_a_body(mill: Mill) -> None:
    """On the wire, where a body would be taken for the next answer."""
    address = urlsplit(mill.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE)
    for path in ("/", f"/submissions/{mill.otters}/jobs/1/picture"):
        connection.request("GET", path)
        whole = connection.getresponse()
        length = len(whole.read())
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
        assert int(head.headers["content-length"]) == length
    connection.close()
