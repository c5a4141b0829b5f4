"""The dashboard and the alerts ask for what there is; that it moves is tests/acceptance/test_metrics.py's."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from producer.farm_metrics import FarmMetrics, described
from storage.records import JobStatus, SubmissionState
from storage.settings import Settings
from storage.surveying import FarmView
from tests.queries import ALERTS, MONITORING, ROOT, asked, grouped_by, panels, queries, rules
from tests.records import worker_record
from worker.exposition import ANSWERS
from worker.metrics import PROCESS, SUPERVISOR

TARGET = {"instance", "job", "worker"}  # labels that Prometheus and supervisors add to every series
VIEW = FarmView(
    clock=datetime(2026, 1, 2, tzinfo=UTC),
    jobs={("demo", JobStatus.WAITING): 3},
    oldest={"demo": datetime(2026, 1, 1, tzinfo=UTC)},
    submissions={("demo", SubmissionState.OPEN): 1},
    workers=[worker_record("w1")],
)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every series that workers, supervisors and `promptmill metrics` have, by its name."""
    # What a running process alone knows; the acceptance test sees it there.
    known = {
        "promptmill_lanes": {"model"},
        "promptmill_lanes_in_use": {"model"},
        "promptmill_device_memory_bytes": {"kind"},
        "promptmill_held_jobs": set(),
        "promptmill_beat_age_seconds": set(),
        "promptmill_struggles": set(),
        ANSWERS: set(),
        "up": set(),  # of Prometheus' own, for each target
    }
    farm = CollectorRegistry()
    farm.register(FarmMetrics(Settings(home=tmp_path_factory.mktemp("home") / "home")))
    families: list[Metric] = [*farm.collect(), *described(VIEW, lease=30.0)]
    for family in families:
        for sample in family.samples:
            known[sample.name] = set(sample.labels)
    for registry in (PROCESS, SUPERVISOR):
        for collector in registry._collector_to_names:
            own = set(collector._labelnames)  # type: ignore[attr-defined]  # of metrics, which all of these are
            for family in collector.collect():
                suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
                for suffix in suffixes.get(family.type, ("",)):
                    known[family.name + suffix] = own | ({"le"} if suffix == "_bucket" else set())
    return known


@pytest.mark.parametrize("where", queries())
def test_a_query_asks_for_what_there_is(where: str, labels: dict[str, set[str]]) -> None:
    """It is a query, and each series and each label in it exists."""
    query = queries()[where]
    wanted = asked(query)
    assert wanted
    assert {one.name for one in wanted} <= set(labels)
    for one in wanted:
        assert {name for name, _ in one.labels} <= labels[one.name] | TARGET, one.name
    assert grouped_by(query) <= set().union(*(labels[one.name] for one in wanted), TARGET)


def test_what_is_no_query_is_found_out() -> None:
    """The parser is one."""
    with pytest.raises(ValueError, match="parenthesis"):
        asked("sum by (model (promptmill_jobs)")


def test_every_metric_is_shown_or_watched(labels: dict[str, set[str]]) -> None:
    """What is counted and never looked at need not be counted."""
    looked_at = {one.name for query in queries().values() for one in asked(query)}
    stems = {re.sub("_(bucket|sum|count)$", "", name) for name in looked_at}
    counted = {re.sub("_(bucket|sum|count)$", "", name) for name in labels}
    assert counted - stems == {"promptmill_build_info"}


def test_values_that_are_compared_are_ones_that_there_are() -> None:
    """A status or state that is misspelt would match nothing for ever."""
    known = {
        "status": {str(status) for status in JobStatus},
        "state": {"starting", "ready", "draining", "silent"},
        "part": {"database", "redis", "store"},
        "outcome": {"waiting", "failed", "lost"},
        "cache": {"hit", "miss"},
        "operation": {"claim", "finish", "heartbeat"},
        "job": {"promptmill.*"},
    }
    compared = {pair for query in queries().values() for one in asked(query) for pair in one.labels}
    for label, value in compared - {("model", "$model")}:
        assert set(value.split("|")) <= known[label], (label, value)
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert all(re.fullmatch("promptmill.*", one["job_name"]) for one in scraped)


def test_each_alert_is_explained_and_has_a_unit_test() -> None:
    """docs/operations.md has a section for each, and promtool's file names it."""
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    sections = re.findall(
        r"^#### (Promptmill\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    assert sorted(sections) == sorted(names)
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fires = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fires == set(names)
    assert all(rule["labels"]["severity"] in ("page", "ticket") for rule in rules())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_each_alert_fires_when_it_should() -> None:
    """Prometheus' own tool, on series that are made up."""
    for words in (["check", "rules", str(ALERTS)], ["test", "rules", str(MONITORING / "alerts_test.yml")]):
        ran = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)  # noqa: S607
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_panels_have_their_own_places() -> None:
    """Ids are unique, and no panel covers another."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels()], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())


def test_ages_are_told_by_the_databases_clock() -> None:
    """A worker whose clock is ahead has an age below 0; one that is silent for a lease is no live worker."""
    moment = VIEW.clock
    workers = [
        worker_record("ahead", name="ahead", beat_at=moment + timedelta(seconds=7)),
        worker_record("gone", name="gone", beat_at=moment - timedelta(seconds=31)),
    ]
    view = FarmView(clock=moment, jobs={}, oldest={}, submissions={}, workers=workers)
    registry = CollectorRegistry()

    class Once:
        def collect(self) -> list[Metric]:
            return list(described(view, lease=30.0))

    registry.register(Once())  # type: ignore[arg-type]  # all that it needs
    age = {
        name: registry.get_sample_value("promptmill_worker_beat_age_seconds", {"worker": name})
        for name in ("ahead", "gone")
    }
    assert age == {"ahead": -7.0, "gone": 31.0}
    states = {
        state: registry.get_sample_value("promptmill_workers", {"model": "demo", "state": state})
        for state in ("ready", "silent")
    }
    assert states == {"ready": 1.0, "silent": 1.0}
