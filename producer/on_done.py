"""`submit --on-done`: a URL goes into the database, for supervisors; a command is run here, by who waits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from producer.output import remark, timestamp
from storage.errors import BadInputError, PromptmillError
from storage.hooks import Hook, check_hook_url
from storage.records import Status
from storage.status_object import status_object

TRIES = 5
STDERR = 2  # the file descriptor
BACKOFF_BASE = 1.0  # seconds between tries: 1, 2, 4, 8


class HookFailedError(PromptmillError):
    """A submission is done, and the command that was to hear of it failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDone:
    """What is to happen at a submission's end: one of the two, or nothing."""

    url: str | None = None
    command: str | None = None


def read_on_done(text: str | None, *, wait: bool) -> OnDone:
    """Tell a URL from a command; BadInputError about what cannot be used."""
    if text is None:
        return OnDone()
    if re.match(r"\w+://", text):
        return OnDone(url=check_hook_url(text))
    if not text.strip() or "\0" in text:
        raise BadInputError("--on-done is empty; give a URL or a command.")
    if not wait:
        raise BadInputError(
            "--on-done with a command needs --wait, since commands are run by who waits, never by workers; "
            "add --wait, or give a URL."
        )
    return OnDone(command=text)


def run_command(command: str, status: Status, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Give a command the status JSON on its standard input; try again while it fails.

    What it prints goes to standard error: on standard output is the submission's id, and nothing else.

    Raises:
        HookFailedError: when it has failed too often.
    """
    given = json.dumps(status_object(status), ensure_ascii=False)
    for number in range(TRIES):
        # The user's own words, as in their shell; what was written before it stays ahead of what it writes.
        sys.stderr.flush()
        done = subprocess.run(  # noqa: S602
            command, shell=True, input=given, text=True, check=False, stdout=STDERR
        )
        if done.returncode == 0:
            return
        if number + 1 < TRIES:
            pause = BACKOFF_BASE * 2.0**number
            remark(f"--on-done ended with exit code {done.returncode}; trying again in {pause:g} s.")
            sleep(pause)
    raise HookFailedError(
        f"Submission {status.submission.id} is done, but --on-done failed {TRIES} times, last with exit code "
        f"{done.returncode}; run it yourself: `promptmill status {status.submission.id} --json | …`."
    )


def told_words(hook: Hook) -> str:
    """Say what became of a hook, without what may be secret in its URL."""
    if hook.ended_at is None:
        tries = f"; tried {hook.attempts} times, the last one failed: {hook.error}" if hook.error else ""
        return f"{hook.host} will be told{tries}"
    moment = timestamp(hook.ended_at)
    return (
        f"{hook.host} was told at {moment}"
        if hook.error is None
        else f"{hook.host} given up at {moment}: {hook.error}"
    )
