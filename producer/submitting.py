"""Turn checked prompts into a submission whose rows are safe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.jobs import JobOptions, build_jobs, count_jobs
from producer.output import count_of, remark, timestamp
from producer.prompts import PromptList
from storage.errors import BadInputError
from storage.fingerprint import hash_of
from storage.jobstore import JobStore
from storage.records import JobStatus, Submission, SubmissionState, being_pruned

if TYPE_CHECKING:
    from producer.inputs import Inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """All that one submit needs, checked.

    Attributes:
        defaults: what the model recommends, as far as it is known; the claim fills in the rest.
        revision: of the model, where it is known.
        origin: where the model comes from, as `KnownModel.origin` says it.
        again: render what an earlier submission has already.
        reuse: take over pictures that are there already, job by job.
        inputs: pictures that its jobs begin with; None for none.
    """

    prompts: PromptList
    options: JobOptions
    model: str
    defaults: Mapping[str, Any]
    revision: str | None = None
    origin: str = ""
    name: str | None
    priority: int
    weight: float
    max_running: int | None
    key: str | None
    again: bool = False
    reuse: bool = False
    inputs: Inputs | None = None

    @property
    def total(self) -> int:
        """How many jobs it has."""
        return count_jobs(self.prompts.wanted, self.options)

    @property
    def draws_seeds(self) -> bool:
        """Whether some of its seeds are drawn, so that submitting it again makes other pictures."""
        given = self.options.seeds or "seed" in self.options.swept
        return self.prompts.draws or (not given and any(not seeds for seeds, _ in self.prompts.wanted))

    @property
    def content_hash(self) -> str:
        """Sha256 of what it asks for: the model, the prompts and the settings, drawn seeds apart."""
        options = dataclasses.asdict(self.options)
        del options["said"], options["swept"]
        asked = [self.model, self.origin, self.prompts.digest, options]
        return hash_of(asked)


def submit_order(
    store: JobStore, order: Order, *, committed: Callable[[Submission], None]
) -> tuple[Submission, bool]:
    """Insert the submission and its jobs, and open it; with a known key, finish or return the first.

    Without a key, an earlier submission of the very same jobs, seeds included, is returned.

    Args:
        store: the job store.
        order: what to submit.
        committed: called as soon as the submission's row is safe, before its jobs are.

    Returns:
        The submission, and whether this call has put jobs into it.

    Raises:
        BadInputError: when the key belongs to a submission of another model.
    """
    content_hash = order.content_hash
    if not order.again and order.key is None and (earlier := _earlier(store, order, content_hash)):
        committed(earlier)
        return earlier, False
    submission, new = store.add_submission(
        model=order.model,
        source=order.prompts.source,
        name=order.name,
        idempotency_key=order.key,
        priority=order.priority,
        weight=order.weight,
        max_running=order.max_running,
        content_hash=content_hash,
        reuse=order.reuse,
    )
    if submission.model != order.model:
        raise BadInputError(
            f"--key {order.key} belongs to submission {submission.id} of model {submission.model}, not "
            f"{order.model}; choose another key."
        )
    if submission.state is SubmissionState.PRUNING:
        raise BadInputError(f"{being_pruned(submission.id)} Then --key {order.key} is free again.")
    committed(submission)
    if not new and submission.content_hash not in (None, content_hash):
        _remark_other_list(submission, order)
    if not new and submission.state is not SubmissionState.LOADING:
        _remark_repeated(submission, order)
        return submission, False
    try:
        inserted = _insert(store, submission, order)
    except BaseException as error:  # also an interrupt: the user has to know what was kept
        found = _finished_by_another(store, submission) if isinstance(error, BadInputError) else None
        if found is None:
            remark(_unfinished(submission))
            raise
        _remark_repeated(found, order)
        return found, False
    if inserted != order.total:
        remark(
            f"Warning: submission {submission.id} has {count_of(inserted, 'job')}, and this list makes "
            f"{order.total:,}: its key was used with another list before."
        )
    return _open(store, submission), True


def _open(store: JobStore, submission: Submission) -> Submission:
    """Open the submission; where Ctrl-C comes between, say whether it was opened."""
    try:
        return store.open_submission(submission.id)
    except KeyboardInterrupt:
        opened = store.find_submission(submission.id).state is SubmissionState.OPEN
        remark(_complete(submission) if opened else _unfinished(submission))
        raise


def _insert(store: JobStore, submission: Submission, order: Order) -> int:
    """Write the inputs, then the jobs, and look again: who pruned in between found no job that needs them."""
    if order.inputs:
        order.inputs.keep()
    inserted = store.add_jobs(submission.id, build_jobs(order.prompts, order.options, order.defaults))
    if order.inputs:
        order.inputs.keep(again=True)
    return inserted


def _finished_by_another(store: JobStore, submission: Submission) -> Submission | None:
    """Return the submission if another submit with its key has opened it meanwhile."""
    if not submission.idempotency_key:
        return None
    found = store.find_submission(submission.id)
    return found if found.state is SubmissionState.OPEN else None


def _earlier(store: JobStore, order: Order, content_hash: str) -> Submission | None:
    """Return an earlier submission that makes the very same pictures; say so where it only may."""
    earlier = store.find_content(content_hash)
    if earlier is None:
        return None
    when = timestamp(earlier.created_at)
    if order.draws_seeds:
        remark(f"The same list was submitted before, as {earlier.id} at {when}; this one draws new seeds.")
        return None
    counts = store.counts(earlier.id)
    if earlier.state is SubmissionState.PAUSED or counts[JobStatus.FAILED] or counts[JobStatus.CANCELLED]:
        mend = "resume" if earlier.state is SubmissionState.PAUSED else "retry"
        remark(
            f"Submission {earlier.id} of {when} has the same jobs, not all of them rendered; "
            f"`promptmill {mend} {earlier.id}` goes on with it. They are submitted anew."
        )
        return None
    done = next(store.jobs(earlier.id, statuses=(JobStatus.SUCCEEDED,), limit=1), None)
    if done and done.image and order.revision not in (None, done.image.numerics.get("model_revision")):
        return None  # the model has changed since
    if order.name not in (None, earlier.name):
        doing = "taking its pictures over" if order.reuse else "rendering them again"
        remark(f"Submission {earlier.id} of {when} has the same jobs; {doing} as {order.name}.")
        return None
    remark(
        f"Submission {earlier.id} of {when} has the very same jobs, so nothing was added; --again renders "
        f"them once more."
    )
    return earlier


def _remark_other_list(submission: Submission, order: Order) -> None:
    """Say that a key was used with another list; refuse to mix the two."""
    if submission.state is SubmissionState.LOADING:
        raise BadInputError(
            f"--key {order.key} belongs to submission {submission.id}, which another list began and did not "
            f"finish; submit that list, with the same flags and --template-seed, or take another key."
        )
    remark(f"Warning: --key {order.key} was used with another list, model or settings before.")


def _remark_repeated(submission: Submission, order: Order) -> None:
    remark(f"Submission {submission.id} was made with this key before; nothing was added.")
    if submission.total != order.total:
        remark(
            f"Warning: it has {count_of(submission.total, 'job')}, and this list makes {order.total:,}; "
            f"another list needs another --key."
        )


def _complete(submission: Submission) -> str:
    return (
        f"Submission {submission.id} is complete and will be rendered; drop it with "
        f"`promptmill cancel {submission.id}`."
    )


def _unfinished(submission: Submission) -> str:
    finish = "submit it again with the same --key, or " if submission.idempotency_key else ""
    return (
        f"Submission {submission.id} is not complete and will not be rendered; {finish}drop it with "
        f"`promptmill cancel {submission.id}`."
    )
