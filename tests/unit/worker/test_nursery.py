"""The supervisor's children, played by tiny scripts: heard, restarted, given up, stopped, released."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from storage.devices import Device
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.records import Worker
from storage.worker_options import WorkerOptions
from tests.records import worker_record
from worker import nursery as nursery_module
from worker.exits import Exit
from worker.nursery import Nursery
from worker.orders import DRAIN, STOP, ChildOrder

READY = "import sys, json; print(json.dumps({'event': 'ready'}), flush=True)\n"
OBEY = f"""{READY}
for line in sys.stdin:
    print(json.dumps({{'event': 'told', 'order': line.strip()}}), flush=True)
    sys.exit(0)
"""
FAIL = """
import sys, json
print(json.dumps({'event': 'failed', 'message': 'No such model.'}), flush=True)
sys.exit(5)
"""
PATIENCE = 20.0


class FakeStore:
    """Remembers which incarnations were released, and how."""

    def __init__(self) -> None:
        self.released: dict[str, bool] = {}
        self.failures = 0
        self.draining = False

    def release_incarnation(self, incarnation: str, *, crashed: bool) -> int:
        """Free what it held."""
        if self.failures:
            self.failures -= 1
            raise UnreachableError("down")
        assert incarnation not in self.released
        self.released[incarnation] = crashed
        return 1

    def workers(self) -> list[Worker]:
        """Return rows of those that were released."""
        timeout = 60.0 if self.draining else None
        return [replace(worker_record(one), drain_timeout=timeout) for one in self.released]


class Family:
    """A nursery whose children run the next of its scripts at each start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts: list[str] = []
        self.started: list[ChildOrder] = []
        self.store = FakeStore()
        self.events: list[dict[str, Any]] = []
        family = self

        def command(order: ChildOrder) -> list[str]:
            family.started.append(order)
            script = family.scripts.pop(0) if len(family.scripts) > 1 else family.scripts[0]
            return [sys.executable, "-c", script]

        monkeypatch.setattr(ChildOrder, "command", command)

    def start(self, *scripts: str, devices: int = 1) -> Nursery:
        """Start children that run these scripts, one after the other."""
        self.scripts = list(scripts)
        self.nursery = Nursery(
            WorkerOptions(model="demo=./demo"),
            [Device(kind="cpu", environment={"NUMBER": str(number)}) for number in range(devices)],
            cast("JobStore", self.store),
            name="demo@here",
            on_event=self.events.append,
        )
        self.nursery.start()
        return self.nursery

    def look_until(self, condition: Callable[[], object]) -> None:
        """Look after the children until something has happened."""
        for _ in range(int(PATIENCE * 50)):
            self.nursery.look()
            if condition():
                return
            threading.Event().wait(0.02)
        pytest.fail(f"it did not happen; events: {self.events}")

    def heard(self, event: str) -> int:
        """Count the events of a kind."""
        return sum(found["event"] == event for found in self.events)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """A family without children yet, which restarts fast and leaves nobody behind."""
    monkeypatch.setattr(nursery_module, "BACKOFF_BASE", 0.01)
    made = Family(monkeypatch)
    yield made
    made.nursery.tell(STOP)
    made.look_until(lambda: made.nursery.over)


def test_a_child_that_does_not_listen_yet_is_not_waited_for(family: Family) -> None:
    """One that still imports its libraries holds nothing: it is ended at once, and nobody is suspect."""
    nursery = family.start("import time; time.sleep(60)")
    nursery.tell(STOP)
    family.look_until(lambda: nursery.over)
    assert list(family.store.released.values()) == [False]


def test_a_child_is_told_and_goes_in_order(family: Family) -> None:
    """One order is enough, a repeated one is not sent again; nobody is suspect afterwards."""
    nursery = family.start(OBEY)
    family.look_until(lambda: family.heard("ready"))
    nursery.tell(DRAIN)
    nursery.tell(DRAIN)
    family.look_until(lambda: nursery.over)
    assert [event["order"] for event in family.events if event["event"] == "told"] == [DRAIN]
    assert nursery.failure is None
    assert list(family.store.released.values()) == [False]
    assert len(family.started) == 1


def test_each_device_has_a_child_with_a_name_and_a_life_of_its_own(family: Family) -> None:
    """Two devices are two processes with different names, incarnations and environments."""
    family.start(
        "import os, json, sys; print(json.dumps({'event': 'ready', 'number': os.environ['NUMBER'], "
        "'mps': os.environ['PYTORCH_ENABLE_MPS_FALLBACK']}), flush=True); sys.stdin.read()",
        devices=2,
    )
    family.look_until(lambda: family.heard("ready") == 2)
    assert sorted(event["number"] for event in family.events) == ["0", "1"]
    assert [order.name for order in family.started] == ["demo@here-0", "demo@here-1"]
    assert len({order.incarnation for order in family.started}) == 2
    for child in family.nursery._children:
        assert child._process is not None
        child._process.kill()


def test_a_crash_makes_suspects_and_starts_another_incarnation(family: Family) -> None:
    """The jobs of the dead are released at once, and a new life begins."""
    family.start(READY + "import os; os.kill(os.getpid(), 9)", OBEY)
    family.look_until(lambda: family.heard("ready") == 2)
    first, second = family.started
    assert first.incarnation != second.incarnation
    assert family.store.released == {first.incarnation: True}
    assert family.heard("restarting") == 1


def test_the_pauses_between_crashes_grow(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each crash waits longer than the one before, up to a limit."""
    monkeypatch.setattr(nursery_module, "BACKOFF_LIMIT", 0.03)
    family.start(READY + "sys.exit(71)")
    family.look_until(lambda: family.heard("restarting") >= 3)
    pauses = [event["seconds"] for event in family.events if event["event"] == "restarting"]
    assert pauses[:3] == [0.01, 0.02, 0.03]


@pytest.mark.parametrize("script", [FAIL, FAIL.replace("print", "sys.stdout.flush(); print")])
def test_a_model_that_cannot_be_loaded_ends_all_with_its_sentence(family: Family, script: str) -> None:
    """The last words of a child are heard, however fast it ended, and the other children are stopped."""
    nursery = family.start(script, OBEY, devices=2)
    family.look_until(lambda: nursery.over)
    assert nursery.failure == ("No such model.", Exit.MODEL)
    assert family.heard("restarting") == 0
    assert list(family.store.released.values()) == [False, False]


def test_an_end_without_a_word_is_reported_with_its_code(family: Family) -> None:
    """A child that gives no reason still ends in a sentence."""
    nursery = family.start("raise SystemExit(3)")
    family.look_until(lambda: nursery.over)
    assert nursery.failure is not None
    assert "exit code 3" in nursery.failure[0]


@pytest.mark.parametrize("code", [Exit.MODEL, Exit.SURROUNDINGS, Exit.BAD_INPUT])
def test_one_that_was_ready_once_is_started_again_when_it_cannot_load(family: Family, code: Exit) -> None:
    """After a crash, a database or a model folder that is away for a moment does not end the supervisor."""
    family.start(READY + "sys.exit(71)", f"raise SystemExit({int(code)})", OBEY)
    family.look_until(lambda: family.heard("ready") == 2)
    assert family.nursery.failure is None
    assert family.heard("restarting") == 2


def test_one_that_gives_up_ends_the_supervisor(family: Family) -> None:
    """A store that stayed full is final, although the child had been ready."""
    nursery = family.start(READY + "print(json.dumps({'event': 'failed', 'message': 'full'})); sys.exit(3)")
    family.look_until(lambda: nursery.over)
    assert nursery.failure == ("full", Exit.SURROUNDINGS)


def test_one_that_never_gets_ready_is_given_up(family: Family) -> None:
    """A process that dies again and again while it starts ends in a sentence, not in endless restarts."""
    nursery = family.start("raise SystemExit(139)")
    family.look_until(lambda: nursery.over)
    assert nursery.failure is not None
    assert "before it was ready" in nursery.failure[0]
    assert "139" in nursery.failure[0]


def test_a_slow_death_before_ready_counts_as_any_other(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model may take long to be killed while it loads: that is no steady life."""
    monkeypatch.setattr(nursery_module, "STEADY_AFTER", 0.0)
    nursery = family.start("raise SystemExit(137)")
    family.look_until(lambda: nursery.over)
    assert nursery.failure is not None
    assert "before it was ready" in nursery.failure[0]


def test_a_host_without_room_for_a_process_is_tried_again(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that the system refuses does not end the supervisor."""
    popen = subprocess.Popen
    refusals = [OSError(errno.ENOMEM, "Cannot allocate memory")] * 2

    def refuse(*arguments: Any, **named: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return popen(*arguments, **named)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    family.start(OBEY)
    family.look_until(lambda: family.heard("ready"))
    assert family.nursery.failure is None


def test_the_reason_of_an_earlier_life_is_not_repeated(family: Family) -> None:
    """A silent crash is not explained by what another incarnation once said."""
    family.start(
        READY + "print(json.dumps({'event': 'failed', 'message': 'old'})); sys.exit(71)",
        "raise SystemExit(1)",
    )
    family.look_until(lambda: family.heard("restarting") >= 2)
    assert family.nursery._children[0].message == ""


def test_a_child_that_does_not_stop_is_killed_and_its_jobs_are_no_suspects(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed on purpose did not crash because of its jobs."""
    monkeypatch.setattr(nursery_module, "STOP_TIMEOUT", 0.05)
    nursery = family.start(READY + "import time; time.sleep(600)")
    family.look_until(lambda: family.heard("ready"))
    nursery.tell(STOP)
    family.look_until(lambda: nursery.over)
    assert list(family.store.released.values()) == [False]
    assert nursery.failure is None


def test_jobs_are_released_once_the_database_is_back(family: Family) -> None:
    """An outage at the moment of a crash only delays the release."""
    family.store.failures = 3
    family.start("raise SystemExit(71)", OBEY)
    family.look_until(lambda: family.store.released)
    assert list(family.store.released.values()) == [True]


def test_other_output_does_not_disturb(family: Family) -> None:
    """What a library prints is not taken for an event."""
    family.start(
        "import os; os.write(1, b'caf\\xe9\\n'); print('hello'); print('[]'); print('{}'); print('null')\n"
        + OBEY
    )
    family.look_until(lambda: family.heard("ready"))


def test_an_order_to_one_that_is_gone_is_no_error(family: Family) -> None:
    """Telling a child that has just ended does nothing."""
    nursery = family.start("import os; os.close(0)\n" + READY + "sys.exit(0)")
    child = nursery._children[0]
    assert child._process is not None
    child._process.wait()
    nursery.tell(DRAIN)
    nursery.tell(STOP)
    family.look_until(lambda: nursery.over)
    child.tell(STOP)
    assert child.ended() is None


@pytest.mark.parametrize("code", [0, 71, Exit.STALE])
def test_one_that_was_asked_to_end_is_not_started_again(family: Family, code: int) -> None:
    """However it ends on the way; without it the supervisor has nothing to do."""
    retiring = f"{READY}print(json.dumps({{'event': 'retiring'}}), flush=True)\nsys.exit({int(code)})\n"
    nursery = family.start(retiring)
    family.look_until(lambda: nursery.over)
    assert nursery.failure is None
    assert len(family.started) == 1
    assert family.store.released == {family.started[0].incarnation: code != 0}


def test_one_that_died_before_it_heard_of_its_end_is_not_started_again(family: Family) -> None:
    """`worker drain` wrote it into the row; the crash came before the next heartbeat."""
    family.store.draining = True
    nursery = family.start(READY + "sys.exit(71)")
    family.look_until(lambda: nursery.over)
    assert nursery.failure is None
    assert len(family.started) == 1


def test_who_has_loaded_its_model_is_counted_while_it_lives(family: Family) -> None:
    """For probes: how many render."""
    nursery = family.start(OBEY, devices=2)
    family.look_until(lambda: nursery.ready == 2)
    nursery.tell(DRAIN)
    family.look_until(lambda: nursery.over)
    assert nursery.ready == 0
