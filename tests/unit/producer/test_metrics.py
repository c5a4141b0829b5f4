"""`promptmill metrics`: what it prints, what it serves, and what it says of parts that are down."""

from __future__ import annotations

import threading
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from producer import farm_metrics
from producer.farm_metrics import KEPT_FOR, KEPT_MOST, FarmMetrics
from storage.errors import UnreachableError
from storage.imagestore import FsspecImageStore
from storage.metrics_server import metrics_url, serve_metrics
from storage.settings import Settings
from tests.clock import FakeClock
from tests.unit.producer.conftest import Invoke, StandInWorker

WAIT = 20.0  # seconds: only how long a broken test may hang


@pytest.fixture(autouse=True)
def _redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm_metrics, "ping", lambda _settings: None)


def samples(text: str) -> dict[str, float]:
    """Read what Prometheus would, by `name{label=value,…}`."""
    return {
        f"{one.name}{{{','.join(f'{name}={one.labels[name]}' for name in sorted(one.labels))}}}": one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_once_to_standard_output(invoke: Invoke, stand_in: StandInWorker) -> None:
    """Jobs, submissions, workers and parts, as Prometheus reads them."""
    stand_in.start()
    assert invoke("submit", "-p", "an otter", "-p", "a fox", "-p", "a hare", "--seed", "1").exit_code == 0
    stand_in.render(fail={2})
    assert invoke("submit", "-p", "a bear").exit_code == 0
    result = invoke("metrics")
    assert result.exit_code == 0, result.output
    found = samples(result.stdout)
    assert found["promptmill_jobs{model=demo,status=succeeded}"] == 2
    assert found["promptmill_jobs{model=demo,status=failed}"] == 1
    assert found["promptmill_jobs{model=demo,status=waiting}"] == 1
    assert found["promptmill_oldest_waiting_seconds{model=demo}"] > 0
    assert found["promptmill_submissions{model=demo,state=open}"] == 2
    assert found["promptmill_workers{model=demo,state=ready}"] == 1
    assert found["promptmill_workers{model=demo,state=silent}"] == 0
    assert found["promptmill_worker_lanes{model=demo,worker=demo@here}"] == 2
    assert found["promptmill_store_free_bytes{}"] > 0
    assert [found[f"promptmill_up{{part={part}}}"] for part in ("database", "redis", "store")] == [1, 1, 1]


def test_a_database_that_is_down_is_said_and_ends_with_3(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other parts are looked at all the same."""
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    result = invoke("metrics")
    found = samples(result.stdout)
    assert result.exit_code == 3
    assert found["promptmill_up{part=database}"] == 0
    assert found["promptmill_up{part=store}"] == 1
    assert not any(name.startswith("promptmill_jobs") for name in found)


def test_what_comes_back_is_up_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves metrics outlives an outage of each part."""
    clock = FakeClock()
    farm = FarmMetrics(settings, clock=clock)

    def down(*_: Any) -> None:
        raise UnreachableError("down")

    with monkeypatch.context() as outage:
        outage.setattr(farm_metrics, "ping", down)
        outage.setattr(farm_metrics, "open_job_store", down)
        outage.setattr(FsspecImageStore, "free_bytes", down)
        assert _up(farm) == {"database": 0, "redis": 0, "store": 0}
    assert _up(farm) == {"database": 0, "redis": 0, "store": 0}, "what was seen is kept for a while"
    clock.advance(KEPT_FOR)
    assert _up(farm) == {"database": 1, "redis": 1, "store": 1}
    farm.close()


def _up(farm: FarmMetrics) -> dict[str, float]:
    (family,) = [family for family in farm.collect() if family.name == "promptmill_up"]
    return {sample.labels["part"]: sample.value for sample in family.samples}


def test_a_look_that_takes_long_is_kept_for_longer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching takes at most a tenth of a slow database's time."""
    clock = FakeClock()
    looks = 0

    def slow(_farm: FarmMetrics) -> None:
        nonlocal looks
        looks += 1
        clock.advance(3.0)

    monkeypatch.setattr(FarmMetrics, "_survey", slow)
    monkeypatch.setattr(farm_metrics, "described", lambda *_, **__: iter(()))
    farm = FarmMetrics(settings, clock=clock)
    for _ in range(29):
        list(farm.collect())
        clock.advance(1.0)
    assert looks == 1
    clock.advance(1.0)
    list(farm.collect())
    assert looks == 2


def test_a_part_that_hangs_holds_up_nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is down after some seconds, and not asked again until it has answered; the others are up."""
    monkeypatch.setattr(farm_metrics, "PATIENCE", 0.5)
    clock, goes_on = FakeClock(), threading.Event()
    asked: list[threading.Thread] = []

    def hang(_settings: Settings) -> None:
        asked.append(threading.current_thread())
        goes_on.wait(WAIT)

    monkeypatch.setattr(farm_metrics, "ping", hang)
    farm = FarmMetrics(settings, clock=clock)
    for _ in range(3):
        clock.advance(KEPT_FOR)
        assert _up(farm)["redis"] == 0
    assert "has not answered within" in str(farm.failures["redis"])
    assert len(asked) == 1
    goes_on.set()
    asked[0].join(WAIT)
    clock.advance(KEPT_FOR)
    assert _up(farm)["redis"] == 1
    farm.close()


def test_waiting_for_a_part_that_is_down_keeps_no_old_numbers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the database had to do counts, and not for longer than a minute."""
    clock = FakeClock()
    monkeypatch.setattr(farm_metrics, "described", lambda *_, **__: iter(()))

    def survey(_farm: FarmMetrics) -> None:
        clock.advance(60.0)
        if down:
            raise UnreachableError("down")

    monkeypatch.setattr(FarmMetrics, "_survey", survey)
    farm = FarmMetrics(settings, clock=clock)
    looks = []
    for down in (True, False):
        assert _up(farm)["database"] == (not down)
        looks.append(farm._fresh_until - clock())
        clock.advance(KEPT_FOR)
    assert looks == [KEPT_FOR, KEPT_MOST]


def test_a_scrape_gets_what_there_is(settings: Settings) -> None:
    """Over HTTP, in the text format; a port that is taken is one sentence."""
    farm = FarmMetrics(settings)
    server = serve_metrics(farm, host="127.0.0.1", port=0)
    try:
        with urllib.request.urlopen(metrics_url(server)) as answer:  # noqa: S310 - our own server
            assert "promptmill_up{part=database}" in samples(answer.read().decode())
        with pytest.raises(UnreachableError, match="choose another port"):
            serve_metrics(farm, host="127.0.0.1", port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        farm.close()


def test_metrics_tell_nothing_private(
    invoke: Invoke, stand_in: StandInWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither prompts nor ids, nor what a URL has in it."""
    stand_in.start()
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://:swordfish@127.0.0.1:1/0")
    submission = invoke("submit", "-p", "an unheard-of otter", "--name", "listname").stdout.strip()
    text = invoke("metrics").stdout
    for private in (submission, "otter", "listname", "swordfish", stand_in.incarnation):
        assert private not in text
