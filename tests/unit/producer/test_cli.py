"""The command line as such: what it imports, how errors end, what is documented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from producer.cli import LazyGroup, cli
from producer.clidoc import command_docs
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
    "args", [["--help"], ["submit", "--help"], ["render", "--help"], ["worker", "--help"]]
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

    def broken(_self: object) -> None:
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


def test_version_is_printed() -> None:
    """--version names the program and its version."""
    assert run("--version").stdout.startswith("promptmill ")
