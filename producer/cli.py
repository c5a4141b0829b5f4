"""The console entry `promptmill`: which commands there are, and how an error reaches the user.

A command's module is imported when the command is called for, so that `--help` stays instant.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from producer.session import Session
from storage.errors import PromptmillError

UNREACHABLE = 3  # or full
INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line of help, and imports them on demand.

    Args:
        lazy: for each command `module:attribute` and its short help.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the commands in the order of a submission's life, not of the alphabet."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (likewise)
        """Import and return a command; None when there is none by that name."""
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (likewise)
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in self.lazy.items()])


class PromptmillGroup(LazyGroup):
    """The outermost group: every error ends as one sentence on stderr and the documented exit code."""

    def main(  # type: ignore[override]  # click declares one overload per standalone_mode; we always exit
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "promptmill",
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; like click's own `main`, it exits unless `standalone_mode` is off."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        _open_missing_streams()
        session = Session()
        try:
            code = super().main(args, prog_name, standalone_mode=False, **(extra | {"obj": session}))
            sys.stdout.flush()
        except BrokenPipeError:
            silence_stdout()
            code = 1
        except BaseException as error:  # noqa: BLE001  (the outermost boundary: whatever it is becomes a sentence)
            if session.debug and not isinstance(error, SystemExit):
                import traceback  # noqa: PLC0415  (only to show one)

                traceback.print_exc()
            code = _report(error)
            if isinstance(error, OSError):
                silence_stdout()  # what it could not write, it would try to write once more at the very end
        finally:
            session.close()
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException) -> int:  # noqa: PLR0911  (one for each kind of error)
    """Say on stderr what went wrong, in one sentence, and return the exit code."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case KeyboardInterrupt() | click.Abort():
            return _fail("Interrupted.", INTERRUPTED, prefix="")
        case PromptmillError():
            return _fail(str(error), error.exit_code)
        case click.exceptions.NoArgsIsHelpError():
            return _fail(error.format_message(), error.exit_code, prefix="")
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "promptmill"
            return _fail(f"{_sentence(error.format_message())} See `{path} --help`.", error.exit_code)
        case click.ClickException():
            return _fail(_sentence(error.format_message()), 2)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _fail("No space is left to write to; free some, then run it again.", UNREACHABLE)
        case _:
            what = f"Unexpected {type(error).__name__}: {error}".rstrip(": ")
            return _fail(f"{what}; run it again as `promptmill --debug …` to see where, and report it.", 1)


def _fail(message: str, code: int, *, prefix: str = "Error: ") -> int:
    click.echo(f"{prefix}{message}", err=True)
    return code


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _open_missing_streams() -> None:
    """Put nothing where the caller closed standard input, output or error.

    Python has None there, and the first file that is opened, the database for one, would take its place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None and _is_closed(number):
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            if number:
                setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def silence_stdout() -> None:
    """Keep the interpreter from complaining when it flushes a pipe that nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  (click's)
    if value and not ctx.resilient_parsing:
        from storage.version import promptmill_version  # noqa: PLC0415  (importlib.metadata is slow to import)

        click.echo(f"promptmill {promptmill_version()}")
        ctx.exit()


_COMMANDS = {
    "render": ("producer.commands.render:render", "Render prompts into a folder: everything in one go."),
    "submit": ("producer.commands.submit:submit", "Submit prompts to be rendered by workers."),
    "status": ("producer.commands.status:status", "Show how far a submission is."),
    "list": ("producer.commands.status:list_submissions", "List the newest submissions."),
    "show": ("producer.commands.status:show", "Show everything known about one job."),
    "watch": ("producer.commands.watch:watch", "Follow a submission live."),
    "wait": ("producer.commands.watch:wait", "Wait until a submission is done."),
    "cancel": ("producer.commands.steer:cancel", "Cancel a submission's unfinished jobs."),
    "retry": ("producer.commands.steer:retry", "Bring failed and cancelled jobs back."),
    "pause": ("producer.commands.steer:pause", "Start no more jobs of a submission."),
    "resume": ("producer.commands.steer:resume", "Let a paused submission go on."),
    "adjust": ("producer.commands.steer:adjust", "Change a submission's priority, weight or limit."),
    "reproduce": (
        "producer.commands.again:reproduce_command",
        "Render pictures again, and say whether they are the same.",
    ),
    "verify": ("producer.commands.again:verify_command", "Hash every stored picture again."),
    "prune": ("producer.commands.prune:prune_command", "Remove submissions, rows and files together."),
    "export": ("producer.commands.export:export", "Write a submission's pictures in many formats."),
    "inspect": ("producer.commands.inspect:inspect_pictures", "Show what pictures say of themselves."),
    "web": ("producer.commands.web:web", "Serve the gallery and the HTTP API."),
    "metrics": ("producer.commands.metrics:metrics", "Show the farm's numbers to Prometheus."),
    "samplers": ("producer.commands.tables:samplers", "List the samplers and their schedules."),
    "models": ("producer.commands.tables:models", "List the models that can be asked for."),
    "worker": ("producer.commands.worker:worker", "Start and list workers."),
    "db": ("producer.commands.db:db", "Look after the database."),
    "doctor": ("producer.commands.doctor:doctor", "Check the installation, and say how to mend it."),
    "completion": ("producer.commands.completion:completion", "Print a shell's completion script."),
}

EPILOG = """\b
Examples:
  promptmill render prompts.txt --out pictures
  promptmill submit prompts.txt --steps 20
  promptmill status @last
  promptmill worker start --model sd15=stable-diffusion-v1-5/stable-diffusion-v1-5

\b
Exit codes:
  0    ok
  1    some jobs failed, or `verify` or `reproduce` found a difference
  2    usage or bad input; nothing was written
  3    a backend or the store is unreachable, full or has an old schema
  4    a wait timed out
  5    a model cannot be loaded
  130  interrupted

With nothing set, everything is kept in ~/.promptmill; PROMPTMILL_HOME moves it.
"""


@click.group(
    cls=PromptmillGroup,
    lazy=_COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.pass_obj
def cli(session: Session, *, debug: bool) -> None:
    """Render lists of prompts with text-to-image diffusion models, in bulk.

    A submission is a list of prompts; each prompt with a seed is a job and becomes one picture. `render`
    does everything in one go; `submit` leaves the jobs to workers, which `worker start` starts.

    An ID is a submission's id, a unique beginning of it, its --name, or @last. A job is ID:INDEX.
    """
    session.debug = debug


def main() -> NoReturn:
    """Run the command line and exit."""
    # Importing makes no garbage, but looking for it takes a tenth of a short command's time.
    gc.set_threshold(50_000, 20, 20)
    cli.main()
    raise AssertionError  # pragma: no cover  (cli.main always exits)


if __name__ == "__main__":
    main()
