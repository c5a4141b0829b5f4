"""What every page and every answer is made from: the stores, and what this process keeps open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from producer.models import KnownModel, known_models
from storage.errors import BadInputError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.records import Job, Status, Submission
from storage.settings import Settings
from web.guard import Rules
from web.live import Live
from web.problems import NotThereError
from web.thumbnails import Thumbnails
from web.tokens import FormKey, Token

MAX_DIGITS = 9  # of a job's index


@dataclass(frozen=True, kw_only=True)
class Site:
    """The parts of a running server.

    Attributes:
        rules: who may come in.
        form_key: signs the forms of this process.
    """

    settings: Settings
    jobs: JobStore
    images: ImageStore
    thumbnails: Thumbnails
    live: Live
    rules: Rules
    form_key: FormKey

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
            return self.jobs.find_job(f"{reference}:{index}")
        except BadInputError as error:
            raise NotThereError(str(error)) from error

    def statuses(self, submissions: Sequence[Submission]) -> list[Status]:
        """Return how far some submissions are."""
        return self.jobs.statuses([one.id for one in submissions], lease=self.settings.lease)

    def status(self, submission: Submission) -> Status:
        """Return how far a submission is."""
        return self.jobs.status(submission.id, lease=self.settings.lease)

    def models(self) -> dict[str, KnownModel]:
        """Return the models that can be asked for."""
        return known_models(self.settings, self.jobs.workers())


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteOf = Annotated[Site, Depends(_site)]
