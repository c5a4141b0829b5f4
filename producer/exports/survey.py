"""One look at all jobs of an export before anything is written: how many, which columns, which names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from producer.exports.kinds import Columns, add_row
from producer.exports.names import Distinct, NameTemplate
from producer.exports.options import CSV, NAMED, ExportOptions
from producer.exports.rows import Sample, image_of, link_row, picture_row
from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.parameters import suffix_of
from storage.records import Job, Submission

KEPT = 10_000  # jobs that stay in memory, so that a small export reads them once
SHOWN_NAMES = 12
FEW = 12  # values of a setting that are listed one by one
DESCRIBED = ("sampler", "schedule", "num_inference_steps", "guidance_scale", "width", "height", "seed")


@dataclass(slots=True)
class Values:
    """What values a setting has: each of a few, else the smallest and the largest."""

    few: dict[Any, int] | None = field(default_factory=dict)
    least: Any = None
    most: Any = None

    def add(self, value: Any) -> None:
        """Take one more into account."""
        if value is None:
            return
        if self.few is not None:
            self.few[value] = self.few.get(value, 0) + 1
            if len(self.few) > FEW:
                self.few = None
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)


@dataclass(kw_only=True, slots=True)
class Survey:
    """What is known of an export before it is written.

    Attributes:
        submission: whose jobs.
        options: what is wanted.
        template: of the pictures' names.
        count: jobs that are meant.
        bytes: of their pictures.
        columns: what rows have, and of which kind each is.
        names: the first ones.
        values: of each of DESCRIBED.
        revisions: of the model, with how many pictures each made.
        suffixes: of the pictures' files, with how many have each.
    """

    submission: Submission
    options: ExportOptions
    template: NameTemplate
    count: int = 0
    bytes: int = 0
    columns: Columns = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    values: dict[str, Values] = field(default_factory=lambda: {name: Values() for name in DESCRIBED})
    revisions: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    _chosen: bytearray = field(default_factory=bytearray)  # a bit for each index
    _jobs: list[Job] | None = field(default_factory=list)

    def take(self, job: Job) -> None:
        """Take one more job into account."""
        self.count += 1
        byte, bit = divmod(job.index, 8)
        if byte >= len(self._chosen):
            self._chosen.extend(bytes(byte + 1 - len(self._chosen)))
        self._chosen[byte] |= 1 << bit
        if self._jobs is not None:
            self._jobs.append(job)
            if len(self._jobs) > KEPT:
                self._jobs = None
        for name, values in self.values.items():
            values.add(getattr(job.parameters, name))
        if job.image is not None:
            self.bytes += job.image.bytes
            self.revisions[job.image.numerics.get("model_revision") or ""] += 1

    def jobs(self, store: JobStore) -> Iterator[Job]:
        """Yield the same jobs again, also where more have succeeded since; memory stays flat.

        Raises:
            UnreachableError: when some are not there any more.
        """
        if self._jobs is not None:
            yield from self._jobs
            return
        seen = 0
        meant = self.options.meant or None
        for job in store.jobs(self.submission.id, statuses=self.options.statuses, meant=meant):
            byte, bit = divmod(job.index, 8)
            if byte < len(self._chosen) and self._chosen[byte] >> bit & 1:
                seen += 1
                yield job
        if seen != self.count:
            raise UnreachableError(
                f"{self.count - seen} of the {self.count} jobs have changed meanwhile; run the export again."
            )

    def samples(self, store: JobStore) -> Iterator[Sample]:
        """Yield the same jobs with their pictures' records and names."""
        for job in self.jobs(store):
            yield Sample(job=job, image=image_of(job), name=self.template.name(job, self.submission))


def survey(store: JobStore, submission: Submission, options: ExportOptions, template: NameTemplate) -> Survey:
    """Look at all jobs that are meant.

    Raises:
        BadInputError: when a name is too long, or two are the same.
        UnreachableError: when a succeeded job has no picture.
    """
    found = Survey(submission=submission, options=options, template=template)
    # The usual template begins with the index; other names are compared.
    distinct = Distinct(template) if options.name is not None and options.format in NAMED else None
    for job in store.jobs(submission.id, statuses=options.statuses, meant=options.meant or None):
        found.take(job)
        if options.format == CSV:
            add_row(found.columns, link_row(job, submission, None))
            continue
        # To put a name together takes a while; the usual ones need no look.
        name = template.name(job, submission) if distinct or len(found.names) < SHOWN_NAMES else ""
        sample = Sample(job=job, image=image_of(job), name=name)
        if distinct is not None:
            distinct.add(sample.name, job)
        if len(found.names) < SHOWN_NAMES:
            found.names.append(sample.file_name)
        found.suffixes[suffix_of(sample.image.format)] += 1
        add_row(found.columns, picture_row(sample, submission))
    return found
