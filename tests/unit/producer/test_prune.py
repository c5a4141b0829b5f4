"""`prune`: rows and files go together, or stay together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from producer.pruning import parse_age
from storage.errors import BadInputError, UnreachableError
from storage.imagestore import FsspecImageStore
from storage.jobstore import JobStore
from storage.records import Submission, SubmissionState
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore

Invoke = Callable[..., Result]


def render(invoke: Invoke, stand_in: Any, store: JobStore, name: str, count: int = 3) -> Submission:
    """Submit and render so many pictures."""
    done = invoke("submit", "-p", name, "--images", str(count), "--name", name)
    assert done.exit_code == 0, done.stderr
    stand_in.start()
    stand_in.render()
    stand_in.stop()
    return store.find_submission(name)


@pytest.fixture
def otters(invoke: Invoke, stand_in: Any, store: JobStore) -> Submission:
    """Three pictures."""
    return render(invoke, stand_in, store, "otters")


def test_rows_and_files_go_together(
    invoke: Invoke, otters: Submission, stand_in: Any, store: JobStore, settings: Settings
) -> None:
    """Of the submissions that are named, and of no other; leftovers of killed writes go, too."""
    foxes = render(invoke, stand_in, store, "foxes")
    (settings.images_path / otters.id / "0000" / ".000001.png.1-ab.part").write_bytes(b"half")
    done = invoke("prune", "otters", "--yes")
    assert done.exit_code == 0, done.stderr
    assert otters.id in done.stdout
    assert "Removed 1 submission with 3 jobs and 3 pictures" in done.stderr
    assert store.submissions() == [foxes]
    assert [path.name for path in settings.images_path.iterdir()] == [foxes.id]
    assert invoke("verify", "--all").exit_code == 0
    assert invoke("prune", "otters", "--yes").exit_code == 2


def test_the_database_gets_smaller(invoke: Invoke, store: JobStore, tmp_path: Path) -> None:
    """Prune gives the room of its rows back to the disk and says so; `db vacuum` finds nothing more."""
    lines = tmp_path / "prompts.txt"
    lines.write_text("".join(f"an otter with {number} whiskers\n" * 3 for number in range(200)))
    assert invoke("submit", str(lines), "--name", "whiskers").exit_code == 0
    assert invoke("cancel", "whiskers").exit_code == 0
    done = invoke("prune", "whiskers", "--yes")
    assert "The database is" in done.stderr
    assert "smaller" in done.stderr
    before = store.compact().before
    done = invoke("db", "vacuum")
    assert done.exit_code == 0, done.stderr
    assert "The database has" in done.stderr
    assert store.compact().before == before


def test_a_dry_run_and_an_unasked_question_remove_nothing(
    invoke: Invoke, otters: Submission, store: JobStore
) -> None:
    """Both show what would go; without a terminal --yes has to be said."""
    done = invoke("prune", "otters", "--dry-run")
    assert done.exit_code == 0
    assert otters.id in done.stdout
    done = invoke("prune", "otters")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert store.submissions() == [otters]
    assert invoke("verify", "otters").exit_code == 0


def test_what_is_unfinished_stays_unless_it_was_cancelled(
    invoke: Invoke, otters: Submission, store: JobStore
) -> None:
    """One that cannot go keeps the others, too: nothing was removed."""
    invoke("submit", "-p", "a fox", "--name", "foxes")
    done = invoke("prune", "otters", "foxes", "--yes")
    assert done.exit_code == 2
    assert "not finished" in done.stderr
    assert len(store.submissions()) == 2
    invoke("cancel", "foxes")
    assert invoke("prune", "foxes", "--yes").exit_code == 0
    assert store.submissions() == [otters]


def test_age_chooses_what_has_ended(
    invoke: Invoke, otters: Submission, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was submitted longer ago; what is unfinished is named and stays."""
    invoke("submit", "-p", "a fox", "--name", "foxes")
    done = invoke("prune", "--older-than", "1h", "--yes")
    assert done.exit_code == 0
    assert "nothing to remove" in done.stderr
    monkeypatch.setattr("producer.commands.prune.parse_age", lambda _text: timedelta(hours=-1))
    done = invoke("prune", "--older-than", "0m", "--yes")
    assert done.exit_code == 0, done.stderr
    foxes = store.find_submission("foxes")
    assert f"Not finished, so they stay: {foxes.id}" in done.stderr
    assert store.submissions() == [foxes]
    assert otters.id in done.stdout


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 days", "9999999d"])
def test_an_age_that_is_none_is_refused(text: str) -> None:
    """With what can be written instead."""
    with pytest.raises(BadInputError, match="30d"):
        parse_age(text)


def test_ages_are_read() -> None:
    """Minutes, hours, days and weeks."""
    assert [parse_age(text) for text in ("90m", "12H", "30 d", "2w")] == [
        timedelta(minutes=90), timedelta(hours=12), timedelta(days=30), timedelta(weeks=2),
    ]  # fmt: skip


def test_prune_wants_to_know_what(invoke: Invoke) -> None:
    """Submissions or an age."""
    for arguments in ([], ["otters", "--older-than", "1d"]):
        assert invoke("prune", *arguments).exit_code == 2


def test_a_killed_prune_is_completed_by_the_next_one(
    invoke: Invoke, otters: Submission, store: JobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ended, nothing but another prune works on the submission any more."""
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> int:
            raise UnreachableError("The database is down.")

        patch.setattr(SqlJobStore, "prune_jobs", killed)
        assert invoke("prune", "otters", "--yes").exit_code == 3
    assert store.find_submission("otters").state is SubmissionState.PRUNING
    assert "pruning" in invoke("list").stdout
    assert "pruning" in invoke("status", "otters").stdout
    for command in (
        ["retry", "otters"], ["resume", "otters"], ["pause", "otters"], ["verify", "otters"],
        ["export", "otters", "--to", "o"], ["render", "--resume", "otters"], ["reproduce", "otters"],
        ["doctor", "--repair", "otters", "--yes"],
    ):  # fmt: skip
        done = invoke(*command)
        assert done.exit_code == 2, command
        assert "prun" in done.stderr, command
    assert invoke("verify", "--all").exit_code == 0
    foxes = invoke("submit", "-p", "a fox").stdout.strip()
    done = invoke("prune", "--older-than", "1h", "--yes")
    assert done.exit_code == 0
    assert otters.id in done.stdout
    assert [found.id for found in store.submissions()] == [foxes]
    assert list(settings.images_path.iterdir()) == []


def test_a_key_is_free_again_once_its_submission_is_gone(
    invoke: Invoke, stand_in: Any, store: JobStore
) -> None:
    """While it is being removed, a submit says so instead of promising its pictures."""
    submitted = ("submit", "-p", "an otter", "--key", "k")
    first = invoke(*submitted).stdout.strip()
    stand_in.start()
    stand_in.render()
    store.begin_pruning(first)
    done = invoke(*submitted)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "being removed" in done.stderr
    assert invoke("prune", first, "--yes").exit_code == 0
    assert invoke(*submitted).stdout.strip() not in ("", first)


def test_files_that_cannot_be_reached_keep_their_rows(
    invoke: Invoke, otters: Submission, store: JobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store is down or not mounted, nothing is begun; where it fails half-way, rows stay."""
    settings.images_path.rename(settings.home / "elsewhere")
    assert invoke("prune", "otters", "--yes").exit_code == 3
    assert store.find_submission("otters") == otters
    (settings.home / "elsewhere").rename(settings.images_path)
    with monkeypatch.context() as patch:

        def down(*_: object) -> None:
            raise UnreachableError("The picture store is down.")

        patch.setattr(FsspecImageStore, "delete_folder", down)
        assert invoke("prune", "otters", "--yes").exit_code == 3
    assert store.holdings(otters.id).pictures == 3
    assert invoke("prune", "otters", "--yes").exit_code == 0
    assert store.submissions() == []


def test_copies_that_were_put_aside_go_with_their_jobs(
    invoke: Invoke, settings: Settings, stand_in: Any, store: JobStore
) -> None:
    """What `doctor --repair` rescued of a submission is nobody's once that is removed; other copies stay."""
    invoke("submit", "-p", "an otter", "-p", "a cat", "--name", "gone")
    invoke("submit", "-p", "a fox", "--name", "staying")
    stand_in.start()
    stand_in.render()
    folders = {}
    for name, label in (("gone", "gone:1"), ("staying", "staying:0")):
        image = store.find_job(label).image
        assert image is not None
        folders[name] = settings.images_path / "rescued" / image.file_sha256
        folders[name].mkdir(parents=True)
        (folders[name] / "picture.png").write_bytes(b"a copy")
    assert invoke("prune", "gone", "--yes").exit_code == 0
    assert [folders["gone"].exists(), folders["staying"].exists()] == [False, True]


def test_its_thumbnails_go_along(
    invoke: Invoke, otters: Submission, stand_in: Any, store: JobStore, settings: Settings
) -> None:
    """Those that the web pages of this host have made; another submission's stay."""
    other = render(invoke, stand_in, store, "other", 1)
    folders = [settings.thumbnails_path / one.id for one in (otters, other)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a.webp").write_bytes(b"small")
    assert invoke("prune", "otters", "--yes").exit_code == 0
    assert [folder.exists() for folder in folders] == [False, True]
