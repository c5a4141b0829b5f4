"""`submit --on-done`: URLs are kept for supervisors, commands are run by who waits, and nowhere else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from producer import on_done
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.settings import Settings
from tests.unit.producer.conftest import Invoke, StandInWorker

URL = "https://example.org/hooks/secret"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr(on_done.run_command, "__kwdefaults__", {"sleep": lambda _seconds: None})


@pytest.fixture
def rendered(stand_in: StandInWorker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a worker render what is submitted, before who waits looks for the first time."""
    stand_in.start()

    def prepare(**how: set[int]) -> None:
        from producer.commands import submit  # noqa: PLC0415 - where it is looked up

        follow = submit.follow

        def render_first(*given: object, **named: object) -> object:
            stand_in.render(**how)
            return follow(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(submit, "follow", render_first)

    return prepare


def test_a_url_is_kept_with_the_submission(invoke: Invoke, store: JobStore) -> None:
    """And `status` says so, without what may be secret in it."""
    result = invoke("submit", "-p", "an otter", "--on-done", URL)
    assert result.exit_code == 0, result.output
    submission = result.stdout.strip()
    assert [hook.url for hook in store.hooks(submission)] == [URL]
    shown = invoke("status").stdout
    assert "https://example.org will be told" in shown
    assert "secret" not in shown


def test_status_says_what_became_of_it(invoke: Invoke, store: JobStore) -> None:
    """Tried in vain, told, or given up."""
    submission = invoke("submit", "-p", "an otter", "--on-done", URL).stdout.strip()
    invoke("cancel", submission)
    hook = store.take_hook()
    assert hook is not None
    store.end_hook(hook, error="it answers 500")
    assert "tried 1 times, the last one failed: it answers 500" in invoke("status").stdout
    store.end_hook(hook, error=None)
    assert "https://example.org was told at" in invoke("status").stdout


def test_the_same_list_submitted_again_is_told_of_the_first(invoke: Invoke, store: JobStore) -> None:
    """Who submits what is there already wants to know when it is done."""
    first = invoke("submit", "-p", "an otter", "--seed", "1").stdout.strip()
    again = invoke("submit", "-p", "an otter", "--seed", "1", "--on-done", URL).stdout.strip()
    assert first == again
    assert [hook.url for hook in store.hooks(first)] == [URL]


def test_a_command_gets_the_status_on_its_standard_input(
    invoke: Invoke, rendered: Callable[..., None], tmp_path: Path
) -> None:
    """By who waits, once everything is there."""
    rendered()
    heard = tmp_path / "heard.json"
    result = invoke("submit", "-p", "an otter", "--wait", "--on-done", f"cat > {heard}")
    assert result.exit_code == 0, result.output
    told = json.loads(heard.read_text())
    assert told["version"] == 1
    assert told["submission"]["state"] == "done"
    assert told["submission"]["counts"]["succeeded"] == 1
    assert told == json.loads(invoke("status", "--json").stdout)


def test_a_command_hears_of_failures_too(
    invoke: Invoke, rendered: Callable[..., None], tmp_path: Path
) -> None:
    """And the exit code is still that of a list with failed jobs."""
    rendered(fail={0})
    heard = tmp_path / "heard.json"
    result = invoke("submit", "-p", "an otter", "--wait", "--on-done", f"cat > {heard}")
    assert result.exit_code == 1
    assert json.loads(heard.read_text())["submission"]["counts"]["failed"] == 1


def test_what_a_command_prints_is_no_data(
    invoke: Invoke, rendered: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes to standard error, so that standard output has the id alone."""
    rendered()
    result = invoke("submit", "-p", "an otter", "--wait", "--on-done", "echo heard of it")
    assert result.exit_code == 0, result.output
    printed = capfd.readouterr()
    assert "heard of it" not in printed.out + result.stdout
    assert "heard of it" in printed.err


def test_the_id_is_printed_although_the_url_cannot_be_kept(
    invoke: Invoke, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submitted knows what is there already."""

    def down(*_: object) -> None:
        raise UnreachableError("the database is gone")

    monkeypatch.setattr("storage.sqljobstore.SqlJobStore.add_hook", down)
    result = invoke("submit", "-p", "an otter", "--on-done", URL)
    assert result.exit_code == 3
    assert [submission.id for submission in store.submissions()] == [result.stdout.strip()]


def test_a_command_that_fails_is_tried_again(
    invoke: Invoke, rendered: Callable[..., None], tmp_path: Path
) -> None:
    """Until it succeeds; one that never does ends with exit code 1."""
    rendered()
    tries = tmp_path / "tries"
    third = f'echo x >> {tries}; test "$(wc -l < {tries})" -ge 3'
    assert invoke("submit", "-p", "an otter", "--wait", "--on-done", third).exit_code == 0
    assert tries.read_text() == "x\n" * 3
    result = invoke("submit", "-p", "a fox", "--wait", "--on-done", "exit 7")
    assert result.exit_code == 1
    assert f"failed {on_done.TRIES} times, last with exit code 7" in result.stderr


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["--on-done", "rm -rf pictures"], "needs --wait"),
        (["--on-done", " "], "is empty"),
        (["--on-done", "file:///etc/passwd"], "http:// or https://"),
        (["--on-done", "ftp://example.org", "--wait"], "http:// or https://"),
        (["--on-done", "https://me:swordfish@example.org"], "password"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    invoke: Invoke, settings: Settings, asked: list[str], reason: str
) -> None:
    """With exit code 2."""
    result = invoke("submit", "-p", "an otter", *asked)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert "swordfish" not in result.stderr
    assert not settings.database_path.exists()


def test_a_command_is_written_down_nowhere(
    invoke: Invoke, rendered: Callable[..., None], settings: Settings
) -> None:
    """Whoever can write into the database must not have programs run by workers, so no row has any."""
    rendered()
    invoke("submit", "-p", "an otter", "--wait", "--on-done", "true # an unheard-of command")
    with closing(sqlite3.connect(settings.database_path)) as connection:
        assert "unheard-of" not in "\n".join(connection.iterdump())
        assert connection.execute("SELECT count(*) FROM hooks").fetchone() == (0,)
