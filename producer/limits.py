"""How much one submit may make: counted while its lists are read, before anything of it fills a disk."""

from __future__ import annotations

from dataclasses import dataclass

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
        characters: of its prompts with all that is kept of them, templates expanded; None for any number.
        instead: what to do where it is more.
    """

    jobs: int = MAX_JOBS
    characters: int | None = None
    instead: str = "split it"

    def check_characters(self, characters: int) -> None:
        """Raise BadInputError where these are too many."""
        if self.characters is not None and characters > self.characters:
            raise BadInputError(
                f"These prompts, with all that is kept of each, have more than {self.characters:,} "
                f"characters; {self.instead}."
            )


class Tally:
    """Counts the jobs that lines make."""

    def __init__(self, most: Most, options: JobOptions) -> None:
        self._most = most
        self._options = options
        self._jobs = 0
        self._plain = count_jobs({PLAIN: 1}, options)

    def add(self, line: Line) -> None:
        """Count a line; BadInputError once they are too many."""
        wanted = wanted_by(line)
        self._jobs += self._plain if wanted == PLAIN else count_jobs({wanted: 1}, self._options)
        if self._jobs > self._most.jobs:
            raise BadInputError(
                f"This makes more than {self._most.jobs:,} jobs, the most of a submission; "
                f"{self._most.instead}."
            )


def wanted_by(line: Line) -> tuple[int, int | None]:
    """Return how many seeds (0: it does not say) and images of each a line wants."""
    return (1 if line.drawn else len(line.seeds)), line.images
