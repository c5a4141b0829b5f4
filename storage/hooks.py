"""Exit hooks: a URL that is told when a submission is done, and the part of the job store's contract for it.

A row holds a URL, never a command: whoever can write rows must not be able to run programs (decision 0018).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from storage.errors import BadInputError

MAX_URL = 2_000  # characters: an index holds them
MAX_TRIES = 12  # the last one about an hour after the first
BACKOFF_BASE, BACKOFF_LIMIT = 2.0, 600.0  # seconds between tries: 2, 4, 8 … 600
HELD_FOR = 60.0  # seconds after which a hook that was taken and not ended is anybody's: its taker has died


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """One URL to be told of one submission.

    Attributes:
        attempts: how often it was tried.
        ended_at: when it was told, or given up; None until then.
        error: why the last try failed; None where there was none.
    """

    id: int
    submission: str
    url: str
    attempts: int
    ended_at: datetime | None
    error: str | None

    @property
    def host(self) -> str:
        """Where it leads; the rest of a URL often is a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


class Telling(Protocol):
    """See `storage.jobstore.JobStore`."""

    def add_hook(self, submission: str, url: str) -> None:
        """Let a URL be told once the submission is done; nothing happens if it is to be told already."""
        ...

    def hooks(self, submission: str) -> list[Hook]:
        """Return a submission's hooks, in the order in which they were added."""
        ...

    def take_hook(self) -> Hook | None:
        """Take one that is due, its submission being done, for HELD_FOR seconds; None where there is none.

        Nobody else gets it meanwhile. Taken and never ended, it comes again: a URL is told at least once. One
        that was taken MAX_TRIES times and never ended is given up instead.
        """
        ...

    def end_hook(self, hook: Hook, *, error: str | None) -> bool:
        """Say what came of a hook that was taken; after an error it comes again, MAX_TRIES in all.

        Returns:
            Whether it has ended.
        """
        ...


def check_hook_url(url: str) -> str:
    """Return a URL that may be told; BadInputError about any other."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise BadInputError(
            f"{url[:100]!r} cannot be told when a submission is done; give a URL that begins with http:// or "
            f"https://, of at most {MAX_URL:,} characters."
        )
    if parts.username or parts.password:
        raise BadInputError("A URL to be told must not have a password in it; give one with a token instead.")
    return url
