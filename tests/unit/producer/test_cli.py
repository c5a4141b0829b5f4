"""The command line as such: what it imports, how errors end, what is documented."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from producer.cli import LazyGroup, cli
from producer.clidoc import command_docs
from producer.follow import PlainLines, display
from producer.output import print_table
from storage.jobstore import JobStore
from storage.records import SubmissionState
from storage.settings import Settings

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "diffusers", "transformers", "accelerate")
SLOW = (*HEAVY, "sqlalchemy", "pydantic", "rich", "celery", "fsspec", "alembic", "PIL")


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Start the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "producer.cli", *args],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,  # type: ignore[call-overload]
    )  # fmt: skip


def imported_by(*args: str) -> set[str]:
    """Return the top-level packages that a command line has imported when it ends."""
    code = (
        "import sys, json\n"
        "from producer.cli import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "finally: print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True, text=True, check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "args", [["--help"], *([name, "--help"] for name in ("submit", "render", "worker", "export"))]
)
def test_help_imports_nothing_slow(args: list[str]) -> None:
    """Help pages need neither a database nor a table library."""
    imported = imported_by(*args) & set(SLOW)
    assert imported <= {"PIL"} if args[0] == "render" else not imported


@pytest.mark.parametrize("args", [["submit", "-p", "an otter"], ["list"], ["models"], ["worker", "list"]])
def test_submitting_and_reading_never_import_torch(args: list[str]) -> None:
    """The bare install has no torch, and loading it would take seconds."""
    assert not imported_by(*args) & set(HEAVY)


def test_status_imports_neither_torch_nor_stores(store: object) -> None:
    """Status reads rows only."""
    del store
    run("submit", "-p", "an otter")
    assert not imported_by("status", "--json") & {*HEAVY, "fsspec", "celery", "rich", "PIL"}


def every_command() -> list[tuple[str, click.Command, str | None]]:
    """All commands with their path, and the short help that their group gives without importing them."""
    found: list[tuple[str, click.Command, str | None]] = []

    def walk(group: LazyGroup, path: str) -> None:
        context = click.Context(group, info_name=path)
        for name, (_, short) in group.lazy.items():
            command = group.get_command(context, name)
            assert command is not None
            found.append((f"{path} {name}", command, short))
            if isinstance(command, LazyGroup):
                walk(command, f"{path} {name}")

    walk(cli, "promptmill")
    return found


COMMANDS = every_command()
IDS = [path for path, _, _ in COMMANDS]


@pytest.mark.parametrize(("path", "command", "short"), COMMANDS, ids=IDS)
def test_every_command_is_named_helped_and_shown_by_example(
    path: str, command: click.Command, short: str | None
) -> None:
    """A command has the name it is listed under, a short help, a help, and examples that call it."""
    assert command.name == path.rsplit(" ", 1)[-1]
    assert short
    assert command.help
    if not isinstance(command, click.Group):
        assert command.epilog is not None
        assert path in command.epilog


def test_cli_page_is_current() -> None:
    """docs/cli.md says what --help says, of every command."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == command_docs(), "run `make docs`"
    for path in IDS:
        assert f"## {path}\n" in page


READING = ["status", "list", "show", "samplers", "models", "doctor", "worker list"]


@pytest.mark.parametrize("path", READING)
def test_every_reading_command_offers_json(path: str) -> None:
    """Whatever reads can be read by a program."""
    command = next(command for name, command, _ in COMMANDS if name == f"promptmill {path}")
    assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    """Each shell gets a script that calls us back."""
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_PROMPTMILL_COMPLETE" in done.stdout


def test_usage_error_is_one_sentence_with_exit_code_2() -> None:
    """A mistyped option is named, with where to look."""
    done = run("submit", "--setps", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: No such option")
    assert done.stderr.count("\n") == 1
    assert "promptmill submit --help" in done.stderr


def test_unexpected_error_is_one_sentence_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bug is reported as such; --debug adds the traceback."""

    def broken(_self: object, **_settings: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Settings, "__init__", broken)
    for args, shows in ((["models"], False), (["--debug", "models"], True)):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(args)
        err = capfd.readouterr().err
        assert exit_info.value.code == 1
        assert "Error: Unexpected ZeroDivisionError: oh; run it again as `promptmill --debug …`" in err
        assert ("Traceback" in err) is shows


def test_reader_that_goes_away_is_no_error() -> None:
    """`promptmill samplers | head -1` prints no complaint."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m producer.cli samplers | head -1"],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


def test_call_without_a_command_shows_the_help_and_no_error() -> None:
    """Whoever types the bare name wants to know what there is; --help has nothing to add."""
    for args in ([], ["worker"]):
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: promptmill")
        assert "Error" not in done.stderr
        assert "See `promptmill" not in done.stderr


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `promptmill` is this program; its own output is not captured away."""
    return subprocess.run(
        ["/bin/sh", "-c", f'promptmill() {{ {sys.executable} -m producer.cli "$@"; }}; {command}'],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_closed_standard_streams_do_no_harm(store: JobStore) -> None:
    """A caller may have closed them; what is submitted is safe, and no file takes their place."""
    assert _shell("promptmill samplers >&-").stderr == ""
    assert _shell("promptmill submit -p otter >&- 2>&-").returncode == 0
    assert _shell("promptmill submit -p fox <&- >&-").returncode == 0
    assert [found.total for found in store.submissions()] == [1, 1]


def test_submit_is_complete_when_nobody_reads_its_id(store: JobStore) -> None:
    """Rows count, not the reader of a pipe: the id goes to stderr then."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "producer.cli", "submit", "-p", "an otter"],
            stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    submission = store.find_submission("@last")
    assert done.returncode == 0
    assert f"Submission {submission.id}" in done.stderr
    assert (submission.state, submission.total) == (SubmissionState.OPEN, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_below_stdout_is_one_sentence() -> None:
    """What cannot be written is exit code 3, not a bug."""
    done = _shell("promptmill samplers >/dev/full")
    assert done.returncode == 3
    assert done.stderr == "Error: No space is left to write to; free some, then run it again.\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that cannot be redrawn would show nothing until the end."""
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(), PlainLines)


@pytest.mark.parametrize(("columns", "in_blocks"), [(200, False), (40, False), (20, True)])
def test_table_cuts_nothing_whatever_the_width(
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    in_blocks: bool,  # noqa: FBT001  (pytest passes by name)
) -> None:
    """Ids stay whole; long cells are folded, and a row becomes a block where even that is too wide."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    print_table(["ID", "STATE", "SOURCE"], [["gz4h52q7", "open", "a-long-file-name-of-prompts.txt"]])
    shown = click.unstyle(terminal.getvalue())
    assert "gz4h52q7" in shown
    assert "…" not in shown
    assert ("ID: gz4h52q7\n" in shown) is in_blocks
    assert in_blocks or max(map(len, shown.splitlines())) <= columns


def test_version_is_printed() -> None:
    """--version names the program and its version."""
    assert run("--version").stdout.startswith("promptmill ")
