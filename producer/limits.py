"""How much one submit may make: counted while its lists are read, before anything of it fills a disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from producer.jobs import JobOptions, count_jobs
from producer.lines import Line
from storage.errors import BadInputError

MAX_JOBS = 10_000_000  # of a submission: a week's work of many GPUs, and 10 GB of rows
PLAIN = (0, None)  # a line that says neither seeds nor images


@dataclass(frozen=True, kw_only=True, slots=True)
class Most:
    """The most that a submit may make.

    Attributes:
        jobs: of the submission.
        characters: of its jobs, templates expanded: each row has its own copy of prompt, columns and what the
            flags say; None for any number.
        instead: what to do where it is more.
    """

    jobs: int = MAX_JOBS
    characters: int | None = None
    instead: str = "split it"


class Tally:
    """Counts the jobs that lines make, and what is written of them."""

    def __init__(self, most: Most, options: JobOptions) -> None:
        self._most = most
        self._options = options
        self._jobs = self._characters = 0
        self._plain = count_jobs({PLAIN: 1}, options)
        self._of_flags = len(options.negative_prompt) + _length(options.options)
        self._of_sweep = sum(map(_length, options.sweep))  # of its combinations together

    def add(self, line: Line) -> int:
        """Count a line; return how many jobs it makes.

        Raises:
            BadInputError: once they are too many.
        """
        wanted = wanted_by(line)
        jobs = self._plain if wanted == PLAIN else count_jobs({wanted: 1}, self._options)
        self._jobs += jobs
        if self._jobs > self._most.jobs:
            raise BadInputError(
                f"This makes more than {self._most.jobs:,} jobs, the most of a submission; "
                f"{self._most.instead}."
            )
        return jobs

    def keep(self, characters: int, *, jobs: int) -> None:
        """Count what is written of a line.

        Args:
            characters: of the line.
            jobs: that it makes; as many times it is written.

        Raises:
            BadInputError: once it is too much.
        """
        self._characters += jobs * (characters + self._of_flags)
        self._characters += jobs // len(self._options.sweep) * self._of_sweep
        if self._most.characters is not None and self._characters > self._most.characters:
            raise BadInputError(
                f"These jobs, with all that is kept of each, have more than {self._most.characters:,} "
                f"characters; {self._most.instead}."
            )


def _length(settings: dict[str, Any]) -> int:
    return len(json.dumps(settings)) if settings else 0


def wanted_by(line: Line) -> tuple[int, int | None]:
    """Return how many seeds (0: it does not say) and images of each a line wants."""
    return (1 if line.drawn else len(line.seeds)), line.images
