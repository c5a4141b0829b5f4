"""`promptmill completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from producer.cli import cli

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
Examples:
  eval "$(promptmill completion bash)"                                         (in ~/.bashrc)
  eval "$(promptmill completion zsh)"                                          (in ~/.zshrc)
  promptmill completion fish > ~/.config/fish/completions/promptmill.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(*, shell: str) -> None:
    """Print a shell's completion script: commands, options, ids and names of submissions."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  (click knows all of SHELLS)
    click.echo(kind(cli, {}, "promptmill", "_PROMPTMILL_COMPLETE").source())
