"""A real worker and `promptmill metrics` have every metric that a panel or an alert names, and they move."""

from __future__ import annotations

import json
import re
import signal
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from storage.parameters import JobParameters
from storage.records import JobStatus
from tests.acceptance.farm import Farm, wait_until
from tests.queries import ROOT, all_names

Key = tuple[str, tuple[tuple[str, str], ...]]
# What does not move here, and the test in which it does.
METRICS, TASKS = "tests/unit/worker/test_metrics.py", "tests/unit/worker/test_tasks.py"
ELSEWHERE = {
    "promptmill_beat_failures_total": (METRICS, "test_beats_and_ticks_that_fail_are_counted"),
    "promptmill_tick_failures_total": (METRICS, "test_beats_and_ticks_that_fail_are_counted"),
    "promptmill_republished_total": (METRICS, "test_messages_that_are_sent_again_are_counted"),
    "promptmill_lost_pictures_total": (TASKS, "test_a_lost_picture_that_cannot_be_deleted_harms_nobody"),
}


class Scraper:
    """Reads what Prometheus would, and remembers which series have ever been something else than 0."""

    def __init__(self, *urls: str) -> None:
        self._urls = urls
        self.values: dict[Key, float] = {}
        self.there: set[str] = set()
        self.moved: set[str] = set()

    def look(self) -> dict[Key, float]:
        """Read all of it once, and return the values by name and labels."""
        self.values = {}
        for url in self._urls:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - on this machine
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    key = sample.name, tuple(sorted(sample.labels.items()))
                    assert key not in self.values, f"{key} is there twice"
                    self.values[key] = sample.value
        self.there |= {name for name, _ in self.values}
        self.moved |= {name for (name, _), value in self.values.items() if value}
        return self.values

    def total(self, name: str, **labels: str) -> float:
        """Look, and add up the series of a name that have these labels."""
        return sum(
            value
            for (found, own), value in self.look().items()
            if found == name and labels.items() <= dict(own).items()
        )

    def wait(self, name: str, at_least: float, **labels: str) -> None:
        """Look until a sum is large enough."""
        wait_until(lambda: self.total(name, **labels) >= at_least, what=f"{name} {labels} is {at_least}")


def url_in(farm: Farm, process: object) -> str:
    """Wait until a process says where its metrics are."""
    found = wait_until(
        lambda: re.search(r"http://127\.0\.0\.1:\d+/metrics", farm.output(process)),  # type: ignore[arg-type]
        what="metrics are served",
    )
    return str(found[0])


def broken(farm: Farm) -> str:
    """Submit a job that no worker can render, as only an older or foreign submit would; return the id."""
    store = farm.store()
    submission, _ = store.add_submission(model="demo", source="test")
    job = JobParameters(prompt="an otter", seed=1, sampler="lms", options={"eta": 0.5})
    store.add_jobs(submission.id, [job])
    return store.open_submission(submission.id).id


def test_every_metric_of_panels_and_alerts_is_there_and_moves(farm: Farm) -> None:
    """Pictures, a copy, a failure, a full store, a kill: each shows, in the worker and in the whole farm."""
    # Of 4 lanes: it holds six of the jobs of `kill_one`, and the others wait.
    worker = farm.start_worker("--lanes", "4", "--metrics-port", "0", "--log-format", "json")
    watcher = farm.start("metrics", "--port", "0")
    scraper = Scraper(url_in(farm, worker), url_in(farm, watcher))
    scraper.look()

    rendered = farm.submit(3, "--steps", "4", "--seed", "7")
    farm.wait_for(rendered, 3)
    farm.submit(4, "--steps", "4", "--seed", "7", "--reuse")
    failing = broken(farm)
    farm.wait_for(failing, 1, JobStatus.FAILED)
    scraper.wait("promptmill_pictures_total", 3, how="copied")
    scraper.wait("promptmill_pictures_total", 4, how="rendered")
    scraper.wait("promptmill_jobs", 7, model="demo", status="succeeded")
    assert scraper.total("promptmill_pictures_total", how="rendered") == 4
    assert (
        scraper.total("promptmill_failures_total", model="demo", error="BadInputError", outcome="failed") == 1
    )
    assert scraper.total("promptmill_jobs", status="failed") == 1
    assert scraper.total("promptmill_stage_seconds_count", stage="denoise") == 4
    assert scraper.total("promptmill_workers", model="demo", state="ready") == 1
    lanes = scraper.total("promptmill_lanes_run_total")
    assert 0 < lanes <= scraper.total("promptmill_lanes_offered_total")

    images = farm.settings.images_path
    images.rename(images.with_name("away"))
    images.write_text("a disk that is not mounted")
    kept = farm.submit(1, "--steps", "4", "--seed", "8")
    scraper.wait("promptmill_backoffs_total", 1, what="save")
    scraper.wait("promptmill_struggles", 1)
    images.unlink()
    images.with_name("away").rename(images)
    farm.wait_for(kept, 1)

    kill_one(farm, scraper)

    wanted = all_names()
    assert wanted - scraper.there == set()
    assert wanted - scraper.moved <= set(ELSEWHERE)  # a slow machine moves more
    missing = [name for file, name in ELSEWHERE.values() if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []
    check_log(farm.output(worker), {rendered: 3, failing: 1})
    assert farm.stop(worker) == 0
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(timeout=60) == 0
    assert farm.processes() == {}


def kill_one(farm: Farm, scraper: Scraper) -> None:
    """Kill the worker process while it renders: its jobs are taken from it, and rendered alone."""
    long = farm.submit(12, "--steps", "1000", "--sampler", "euler", "--schedule", "default", "--seed", "9")
    wait_until(lambda: farm.furthest(long) > 0, what="some are rendered")
    scraper.wait("promptmill_lanes_in_use", 2)
    scraper.wait("promptmill_held_jobs", 1)
    scraper.wait("promptmill_worker_lanes_in_use", 2)
    scraper.wait("promptmill_oldest_waiting_seconds", 0.001)
    farm.kill_worker_process()
    scraper.wait("promptmill_restarts_total", 1)
    scraper.wait("promptmill_takeovers_total", 1)
    scraper.wait("promptmill_suspects_total", 1)
    assert farm.run("cancel", long).returncode == 0
    scraper.wait("promptmill_jobs", 1, status="cancelled")


def check_log(text: str, ended: dict[str, int]) -> None:
    """Check that each line is an object, and that what is said of a job names it and its submission."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    for submission, count in ended.items():
        about = [line for line in lines if line.get("submission") == submission]
        assert {line["job"] for line in about} == {f"{submission}:{index}" for index in range(count)}
    for line in lines:
        if line.get("action") in ("finish", "fail", "save", "lost", "drop"):
            assert line["job"].startswith(f"{line['submission']}:"), line


def test_a_port_that_is_taken_is_one_sentence(farm: Farm) -> None:
    """A worker whose metrics nobody could read does not start."""
    first = farm.start("metrics", "--port", "0")
    port = url_in(farm, first).rpartition(":")[2].removesuffix("/metrics")
    second = farm.run("worker", "start", "--model", "demo", "--metrics-port", port)
    assert second.returncode == 3
    assert "choose another port" in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    assert farm.processes() == {}
