"""What is counted, how it gets from a worker process to Prometheus, and that nobody is kept waiting by it."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import create_autospec

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from storage.devices import Device
from storage.dispatch import REPUBLISH_AFTER, Dispatcher
from storage.errors import BadInputError, UnreachableError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.queue import JobQueue
from storage.records import Failure
from storage.worker_options import WorkerOptions
from tests.clock import FakeClock
from tests.records import worker_record
from worker import child, exposition, heartbeat
from worker.engine.errors import RenderError
from worker.exposition import Counted, Exposition, Families, snapshot
from worker.heartbeat import Heartbeat
from worker.metrics import OUTCOMES, PATIENCE, PROCESS, SUPERVISOR, StepMeter, note_failure
from worker.nursery import Nursery
from worker.orders import METRICS, STOP, ChildOrder, read_event
from worker.ticking import Ticker, dispatch
from worker.timed import timed_images, timed_jobs

ANSWER = """
import json, sys
print(json.dumps({'event': 'listening'}), flush=True)
for number, line in enumerate(sys.stdin):
    if line.strip() == 'metrics':
        sample = ['promptmill_pictures_total', {'model': 'demo', 'how': 'rendered'}, number + 1.0]
        families = [['promptmill_pictures', 'Pictures.', 'counter', [sample]]]
        print(json.dumps({'event': 'metrics', 'families': families}), flush=True)
    else:
        sys.exit(0)
"""
DEAF = """
import json, sys, time
print(json.dumps({'event': 'listening'}), flush=True)
for line in sys.stdin:
    if line.strip() == 'stop':
        sys.exit(0)
"""
WAIT = 20.0
ROOT = Path(__file__).parents[3] / "worker"
DISPATCHING = ("promptmill_dispatched_total", "promptmill_republished_total")


def value(name: str, registry: CollectorRegistry = PROCESS, **labels: str) -> float:
    """Return what a series has now; 0 where there is none."""
    return registry.get_sample_value(name, labels) or 0.0


def answers(families: Families) -> float:
    """Return what is said of whether the process answers."""
    (family,) = [family for family in families if family[0] == exposition.ANSWERS]
    return float(family[3][0][2])


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Nursery]:
    """A nursery whose one child runs the script that the test names."""
    script: str = request.param
    monkeypatch.setattr(ChildOrder, "command", lambda _order: [sys.executable, "-c", script])
    store = create_autospec(JobStore, instance=True)
    store.release_incarnation.return_value = 2
    store.workers.return_value = []
    made = Nursery(
        WorkerOptions(model="demo=./demo"),
        [Device(kind="cpu", environment={})],
        cast("JobStore", store),
        name="demo@here",
        on_event=lambda _event: None,
    )
    made.start()
    yield made
    made.tell(STOP)
    until(lambda: made.look() or made.over)  # type: ignore[func-returns-value]


def until(condition: Any) -> None:
    """Wait until something is so."""
    for _ in range(int(WAIT * 50)):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen")


def test_steps_are_counted_with_the_lanes_that_were_idle() -> None:
    """The share of idle lanes follows from two counters."""
    meter = StepMeter("counted")
    meter.note(lanes=3, room=8, seconds=0.5)
    meter.note(lanes=8, room=8, seconds=0.5)
    assert value("promptmill_lanes_run_total", model="counted") == 11
    assert value("promptmill_lanes_offered_total", model="counted") == 16
    assert value("promptmill_step_seconds_sum", model="counted") == 1.0


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (RenderError("black"), "RenderError"),
        (BadInputError("no such sampler"), "BadInputError"),
        (type("Made" + "Up", (Exception,), {})(), "other"),
    ],
)
def test_errors_have_few_names(error: Exception, label: str) -> None:
    """Whatever a library raises, no new series comes of it."""
    note_failure("failing", error, "failed")
    assert value("promptmill_failures_total", model="failing", error=label, outcome="failed") == 1


def test_stores_are_timed_by_operation_also_when_they_fail() -> None:
    """What they return and raise comes through."""
    jobs, images = create_autospec(JobStore, instance=True), create_autospec(ImageStore, instance=True)
    jobs.model_of.return_value = "demo"
    images.write.side_effect = UnreachableError("full")
    before = value("promptmill_store_seconds_count", operation="write")
    assert timed_jobs(jobs).model_of(1) == "demo"
    with pytest.raises(UnreachableError):
        timed_images(images).write("key", b"")
    assert value("promptmill_database_seconds_count", operation="model_of") > 0
    assert value("promptmill_store_seconds_count", operation="write") == before + 1


def test_a_snapshot_survives_json_and_reads_as_prometheus_reads() -> None:
    """What a child sends comes out as if the supervisor had counted it, with the worker's name."""
    StepMeter("sent").note(lanes=1, room=2, seconds=0.01)
    sent: Families = json.loads(json.dumps(snapshot(PROCESS)))
    registry = CollectorRegistry()
    registry.register(Exposition("w", lambda: {"w-0": sent, "w-1": sent}))
    text = generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE promptmill_lanes_run_total counter") == 1
    assert {
        (sample.labels["worker"], sample.value)
        for sample in families["promptmill_lanes_run"].samples
        if sample.labels["model"] == "sent"
    } == {("w-0", 1.0), ("w-1", 1.0)}
    assert {sample.labels["worker"] for sample in families["promptmill_restarts"].samples} == {"w"}


def test_a_line_of_metrics_is_an_event() -> None:
    """It goes up the same pipe as all that a worker process reports."""
    line = json.dumps({"event": "metrics", "families": snapshot(PROCESS)})
    event = read_event(line)
    assert event is not None
    assert event["event"] == METRICS


@pytest.mark.parametrize("nursery", [ANSWER], indirect=True)
def test_a_worker_process_is_asked_when_somebody_looks(nursery: Nursery) -> None:
    """Each look hears the newest; one that has ended leaves nothing."""
    only = nursery._children[0]
    until(lambda: only.listening)
    first, second = nursery.metrics()["demo@here"], nursery.metrics()["demo@here"]
    assert [families[0][3][0][2] for families in (first, second)] == [1.0, 2.0]
    assert [answers(families) for families in (first, second)] == [1.0, 1.0]
    takeovers = value("promptmill_takeovers_total", SUPERVISOR)
    assert only._process is not None
    only._process.kill()
    until(lambda: nursery.look() or not only.alive)  # type: ignore[func-returns-value]
    left = nursery.metrics()["demo@here"]
    assert (len(left), answers(left)) == (1, 0.0)
    assert value("promptmill_takeovers_total", SUPERVISOR) == takeovers + 2


@pytest.mark.parametrize("nursery", [DEAF], indirect=True)
def test_one_that_does_not_answer_is_waited_for_once_and_asked_once(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process neither holds up the look for ever nor has its pipe filled with questions."""
    monkeypatch.setattr("worker.nursery.ANSWER_TIMEOUT", 0.01)
    until(lambda: nursery._children[0].listening)
    sent: list[str] = []
    send = nursery._children[0]._send
    monkeypatch.setattr(nursery._children[0], "_send", lambda line: (sent.append(line), send(line)))
    for _ in range(3):
        said = nursery.metrics()["demo@here"]
        assert (len(said), answers(said)) == (1, 0.0)
    assert sent == [METRICS]


def test_an_answer_wakes_who_waits() -> None:
    """What was counted before is shown where no answer comes in time; how it was then is no news."""
    counted = Counted()
    counted.ask(lambda: None)
    total: Families = [["a", "b", "counter", []]]
    answer = [*total, ["c", "d", "gauge", []]]
    threading.Timer(0.05, counted.hear, [answer]).start()
    heard = counted.wait(time.monotonic() + WAIT)
    assert (heard[:-1], answers(heard)) == (answer, 1.0)
    counted.ask(lambda: None)
    stale = counted.wait(time.monotonic())
    assert (stale[:-1], answers(stale)) == (total, 0.0)
    counted.hear([])  # it could not look
    stale = counted.wait(time.monotonic())
    assert (stale[:-1], answers(stale)) == (total, 0.0)
    counted.forget()
    assert [family[0] for family in counted.wait(time.monotonic())] == [exposition.ANSWERS]


def test_a_question_that_was_lost_is_asked_again(clock: FakeClock) -> None:
    """After some seconds, and more rarely each time: a frozen process must not have its pipe filled."""
    counted = Counted(clock=clock)
    asked: list[float] = []
    for _ in range(1000):
        counted.ask(lambda: asked.append(clock()))
        clock.advance(1.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0]
    counted.hear([["a", "b", "counter", []]])
    counted.ask(lambda: asked.append(clock()))
    assert asked[-1] == clock(), "it answers again"


def test_a_snapshot_that_fails_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one: who waits for it would never ask again."""
    said: list[tuple[str, Any]] = []
    monkeypatch.setattr(child, "report", lambda event, **facts: said.append((event, facts["families"])))
    device = create_autospec(Collector, instance=True)
    device.collect.side_effect = RuntimeError("the device is lost")
    monkeypatch.setattr(child, "PROCESS", device)
    child._tell_metrics()
    assert said == [(METRICS, [])]


def test_the_answer_of_a_child_comes_before_a_scrape_is_given_up() -> None:
    """Prometheus gives up after ten seconds by default."""
    assert exposition.ANSWER_TIMEOUT < 10


def test_beats_and_ticks_that_fail_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of the database shows in both."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    jobs = create_autospec(JobStore, instance=True)
    jobs.heartbeat.side_effect = jobs.workers.side_effect = UnreachableError("down")
    nobody: Any = lambda *_: None  # noqa: E731
    heart = Heartbeat(
        jobs, "w1", progress=dict, lanes_used=int, drop=nobody, stray=nobody, drain=nobody, stale=nobody
    )
    ticker = Ticker(jobs, [], None, lease=30.0, dispatches=lambda: True, too_old=nobody)
    beats = value("promptmill_beat_failures_total")
    ticks = value("promptmill_tick_failures_total", SUPERVISOR)
    heart.start()
    ticker.start()
    until(lambda: value("promptmill_beat_failures_total") > beats)
    until(lambda: value("promptmill_tick_failures_total", SUPERVISOR) > ticks)
    heart.stop()
    ticker.stop()
    assert heart.age > 0


def test_messages_that_are_sent_again_are_counted(clock: FakeClock) -> None:
    """A Redis that forgets shows, and so do the window and what was queued."""
    jobs = create_autospec(JobStore, instance=True)
    jobs.workers.return_value = [worker_record("w1")]
    jobs.rendered_since.return_value = 0
    jobs.take_for_dispatch.side_effect = [[1, 2], [], []]
    jobs.queued.return_value = [1, 2]
    queue = create_autospec(JobQueue, instance=True)
    queue.pending.return_value = set()
    dispatcher = Dispatcher(jobs, queue, "demo", clock=clock)
    before = {name: value(name, SUPERVISOR, model="demo") for name in DISPATCHING}
    for _ in range(3):
        dispatch(dispatcher)
        clock.advance(REPUBLISH_AFTER)
    after = {name: value(name, SUPERVISOR, model="demo") for name in DISPATCHING}
    assert {name: after[name] - before[name] for name in DISPATCHING} == dict.fromkeys(DISPATCHING, 2.0)
    assert value("promptmill_dispatch_window", SUPERVISOR, model="demo") == 3


def test_what_is_rare_is_there_before_it_happens() -> None:
    """Prometheus does not see a counter grow that begins at 1."""
    StepMeter("new")
    assert set(OUTCOMES) == {outcome.value for outcome in Failure}
    there = {
        (sample.name, *sample.labels.values()) for family in PROCESS.collect() for sample in family.samples
    }
    assert {("promptmill_failures_total", "new", "other", outcome) for outcome in OUTCOMES} <= there
    assert {("promptmill_suspects_total", "new"), ("promptmill_backoffs_total", "save")} <= there
    said = re.findall(r"what=\"([\w ]+)\"", "".join(path.read_text() for path in ROOT.rglob("*.py")))
    assert set(said) == set(PATIENCE)
