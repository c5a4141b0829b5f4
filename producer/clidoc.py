"""Write docs/cli.md from the `--help` of every command: `python -m producer.clidoc docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from producer.cli import cli

WIDTH = 100
_HEAD = """# The command line

Generated from `--help` by `make docs`; a test holds it against the program. Do not edit it by hand.
"""


def command_docs() -> str:
    """Return the help pages of all commands as one Markdown page."""
    return "\n".join([_HEAD, *(_section(path, context) for path, context in _walk(cli, "promptmill", None))])


def _walk(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, click.Context]]:
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, help_option_names=["-h", "--help"]
    )
    yield context.command_path, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _walk(found, child, context)


def _section(path: str, context: click.Context) -> str:
    return f"## {path}\n\n```text\n{context.get_help().rstrip()}\n```\n"


def main() -> None:
    """Write the page to the file that the first argument names."""
    Path(sys.argv[1]).write_text(command_docs(), encoding="utf-8")


if __name__ == "__main__":
    main()
