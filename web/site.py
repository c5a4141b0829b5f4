"""What every page and every answer is made from: the stores, and what this process keeps open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from producer.models import KnownModel, known_models
from storage.browsing import JobPage
from storage.errors import BadInputError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.records import Job, Status, Submission, Worker
from storage.settings import Settings
from web.discretion import Discretion, folders_of
from web.filters import Wanted
from web.guard import Rules
from web.limits import Places
from web.live import Live
from web.problems import NotThereError
from web.threads import Threads
from web.thumbnails import Thumbnails
from web.tokens import FormKey, Token

MAX_DIGITS = 9  # of a job's index
MAX_WATCHERS = 500  # that hear of progress
MAX_GENERATING = 100  # of OpenAI's clients that wait for their pictures
MAX_SUBMITTING = 10  # lists that are worked on or wait for it, each with a body of up to 64 MiB


@dataclass(frozen=True, kw_only=True)
class Site:
    """The parts of a running server.

    What it reads is discreet: see `web.discretion`.

    Attributes:
        rules: who may come in.
        form_key: signs the forms of this process.
        watchers, generating, submitting: who waits for news of submissions, who for pictures, and whose list
            is submitted.
    """

    settings: Settings
    jobs: JobStore
    images: ImageStore
    thumbnails: Thumbnails
    rules: Rules
    form_key: FormKey = field(default_factory=FormKey)
    threads: Threads = field(default_factory=Threads)
    watchers: Places = field(
        default_factory=lambda: Places(MAX_WATCHERS, "Too many are watching; try again later.")
    )
    generating: Places = field(
        default_factory=lambda: Places(MAX_GENERATING, "Too many are waiting; try again later.")
    )
    submitting: Places = field(
        default_factory=lambda: Places(MAX_SUBMITTING, "Too many are submitting lists; try again later.")
    )

    @cached_property
    def live(self) -> Live:
        """Who tells of progress."""
        return Live(self.statuses)

    @cached_property
    def discretion(self) -> Discretion:
        """What keeps to itself where things are here."""
        return Discretion(folders_of(self.settings))

    @property
    def token(self) -> Token | None:
        """The token that callers have to know; None where everybody may come."""
        return self.rules.token

    def submission(self, reference: str) -> Submission:
        """Find a submission; NotThereError if there is none, or several begin so."""
        try:
            return self.jobs.find_submission(reference)
        except BadInputError as error:
            raise NotThereError(str(error)) from error

    def job(self, reference: str, index: int) -> Job:
        """Find a job with its picture; NotThereError if there is none."""
        if not 0 <= index < 10**MAX_DIGITS:
            raise NotThereError(f"Submission {reference} has no job {index}.")
        try:
            return self.discretion.job(self.jobs.find_job(f"{reference}:{index}"))
        except BadInputError as error:
            raise NotThereError(str(error)) from error

    def jobs_of(self, submission: Submission, *, limit: int | None = None) -> Iterator[Job]:
        """Yield the jobs of a submission in the order of their index."""
        return map(self.discretion.job, self.jobs.jobs(submission.id, limit=limit))

    def these(self, submission: Submission, indices: Sequence[int]) -> list[Job]:
        """Return some jobs by their indices, in their order."""
        return [self.discretion.job(job) for job in self.jobs.these(submission.id, indices)]

    def page(
        self,
        submission: str,
        wanted: Wanted,
        *,
        cursor: int | None,
        backwards: bool = False,
        limit: int,
    ) -> JobPage:
        """Return some of the jobs that a filter means; see `JobStore.page`."""
        found = self.jobs.page(
            submission, statuses=wanted.statuses, meant=wanted.meant, cursor=cursor, backwards=backwards,
            limit=limit,
        )  # fmt: skip
        return self.discretion.page(found)

    def statuses(self, submissions: Sequence[str]) -> list[Status]:
        """Return how far some submissions are, by their ids."""
        return [
            self.discretion.status(one) for one in self.jobs.statuses(submissions, lease=self.settings.lease)
        ]

    def status(self, submission: Submission) -> Status:
        """Return how far a submission is."""
        return self.discretion.status(self.jobs.status(submission.id, lease=self.settings.lease))

    def workers(self, *, alive_only: bool) -> list[Worker]:
        """Return the workers, newest first."""
        return [self.discretion.worker(one) for one in self.jobs.workers(alive_only=alive_only)]

    def models(self) -> dict[str, KnownModel]:
        """Return the models that can be asked for."""
        return known_models(self.settings, self.jobs.workers())


async def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteOf = Annotated[Site, Depends(_site)]
