"""The contract of the job store: every change of a job's state goes through one of these methods.

One implementation (`storage.sqljobstore`) serves SQLite and PostgreSQL; `tests/contract/test_job_store.py`
states each promise below as a test that runs against both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from storage.browsing import Browsing
from storage.filters import JobFilter
from storage.hooks import Telling
from storage.keeping import Keeping
from storage.measured import Measurements
from storage.parameters import JobParameters
from storage.records import (
    Claim,
    Failure,
    Finish,
    Heard,
    Image,
    Job,
    JobStatus,
    Refusal,
    Status,
    Submission,
    Worker,
    WorkerState,
)
from storage.served import TakingTurns
from storage.surveying import Surveying

ADD_CHUNK = 5_000  # rows a commit; commits of this size never make another writer wait 0.2 s
MAX_FAILURES = 3


class JobStore(Keeping, Browsing, Measurements, Surveying, TakingTurns, Telling, Protocol):
    """Submissions, jobs, images and workers.

    All methods are thread-safe. They raise `UnreachableError` when the database is down or full, and
    `BadInputError` for a reference that names nothing.
    """

    # -- producer: submitting -------------------------------------------------------------------------

    def add_submission(
        self,
        *,
        model: str,
        source: str,
        name: str | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        weight: float = 1.0,
        max_running: int | None = None,
        content_hash: str | None = None,
        reuse: bool = False,
    ) -> tuple[Submission, bool]:
        """Insert a submission in state `loading` and commit; return it and whether it is new.

        With a key that exists already the existing submission is returned, in whatever state it is. By its
        `content_hash`, a hash of all that is asked for, `find_content` finds it again. With `reuse` its
        claims say that a picture may be taken over (`find_rendered`).
        """
        ...

    def add_jobs(self, submission: str, jobs: Iterable[JobParameters], *, first_index: int = 0) -> int:
        """Insert jobs as `waiting` in commits of ADD_CHUNK and return how many the submission has now.

        Jobs whose index is there already are left alone, so that a killed submit can be finished. At most two
        chunks are held: one is written while the next is made of `jobs`. Ctrl-C does not wait for that one.
        """
        ...

    def open_submission(self, submission: str) -> Submission:
        """Flip `loading` (or `paused`, clearing its note) to `open`: its jobs may be dispatched from now on.

        `total` becomes the number of its jobs; `pass` that of the other open ones, if there are any.
        """
        ...

    # -- producer: reading and steering ---------------------------------------------------------------

    def find_submission(self, reference: str) -> Submission:
        """Find by id, unique id prefix, name (the newest) or `@last`; BadInputError if none or several."""
        ...

    def find_content(self, content_hash: str) -> Submission | None:
        """Find the newest submission with this hash that is open or paused."""
        ...

    def submissions(self, *, limit: int = 50) -> list[Submission]:
        """Return the newest submissions, newest first."""
        ...

    def find_job(self, reference: str) -> Job:
        """Find a job by `SUBMISSION:INDEX` (the submission as in `find_submission`), with its image."""
        ...

    def find_pictures(self, file_sha256: str, *, limit: int = 50) -> list[Job]:
        """Return the jobs whose picture has these bytes, the newest first; equal jobs make equal ones."""
        ...

    def jobs(
        self,
        submission: str,
        *,
        statuses: Sequence[JobStatus] = (),
        meant: JobFilter | None = None,
        after: int = -1,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Yield jobs in the order of their index, with their images, in pages (memory stays flat).

        Only those that have one of the statuses, if any is given, and that the filter means.
        """
        ...

    def columns(self, submission: str) -> list[str]:
        """Return the names of the prompt file's own columns that any job of a submission has, sorted."""
        ...

    def counts(self, submission: str) -> dict[JobStatus, int]:
        """Count a submission's jobs by status; every status is present."""
        ...

    def status(self, submission: str, *, lease: float) -> Status:
        """Counts, recent images/s, time left and why it is waiting, if it is."""
        ...

    def adjust(
        self,
        submission: str,
        *,
        priority: int | None = None,
        weight: float | None = None,
        max_running: int | None = None,
    ) -> Submission:
        """Change a submission's share; None leaves one, 0 is no limit.

        It counts from the next dispatch on, and priority also from the next claim on.
        """
        ...

    def cancel(self, submission: str) -> Submission:
        """Set the cancel flag: effective at once in dispatch, claim and heartbeat."""
        ...

    def sweep_cancelled(self, submission: str | None = None, *, seconds: float = math.inf) -> int:
        """End waiting and queued jobs of cancelled ones, for so long or until none is left; say how many."""
        ...

    def pause(self, submission: str, *, note: str | None = None) -> Submission:
        """Pause an open submission: its queued jobs go back to waiting, running ones finish."""
        ...

    def retry(self, submission: str, *, index: int | None = None) -> int:
        """Bring failed and cancelled jobs (or only one) back to `waiting` and reopen; say how many."""
        ...

    # -- dispatch -------------------------------------------------------------------------------------

    def take_for_dispatch(self, model: str, *, window: int) -> list[int]:
        """Mark waiting jobs `queued` until `window` jobs of open submissions are; return the new ones' ids.

        By priority, then stride scheduling between submissions, then index; of a submission with
        `max_running` no more than are then queued and running. Behind a lock that at most one process
        holds; an empty list when another one does.
        """
        ...

    def queued(self, model: str) -> list[int]:
        """Ids of the model's queued jobs, for reconciliation with the messages in Redis."""
        ...

    def rendered_since(self, model: str, since: datetime) -> int:
        """How many pictures of this model were finished since then, for the dispatch window."""
        ...

    # -- worker and reaper ---------------------------------------------------------------------------

    def add_worker(self, worker: Worker) -> None:
        """Insert the row of a new incarnation, or replace what it inserted before.

        Raises:
            StaleWorkerError: when the incarnation has ended already; it never comes back.
        """
        ...

    def claim(
        self, job: int, incarnation: str, *, defaults: Mapping[str, Any], alone: bool = False
    ) -> Claim | Refusal:
        """`queued -> running`, attempt + 1, open parameters filled in from `defaults`; or say why not.

        A suspect job is only granted with `alone`, and only while the incarnation runs nothing else.
        """
        ...

    def find_rendered(self, fingerprint: str) -> list[Job]:
        """Find the jobs whose pictures have this fingerprint: the newest few, newest first."""
        ...

    def oldest_worker_version(self) -> str:
        """Return the oldest promptmill version whose workers this schema allows."""
        ...

    def heartbeat(self, incarnation: str, progress: Mapping[int, float], *, lanes_used: int = 0) -> Heard:
        """Advance the beat, store progress, and hear which jobs are still this incarnation's.

        A running job of this incarnation that is not in the answer was cancelled or taken over: drop it.

        Raises:
            StaleWorkerError: when the incarnation was expired; the process must exit.
        """
        ...

    def finish(self, claim: Claim, image: Image, *, warnings: Sequence[str] = ()) -> Finish:
        """Set `succeeded` and insert the image row in one transaction, if the claim still holds."""
        ...

    def fail(
        self,
        claim: Claim,
        *,
        error_type: str,
        message: str,
        traceback: str | None = None,
        permanent: bool = False,
        max_failures: int = MAX_FAILURES,
    ) -> Failure:
        """Charge a failure to the job: back to `waiting` with exponential backoff, or `failed`."""
        ...

    def release(self, claim: Claim) -> bool:
        """Give the job back uncharged: to `waiting`, or `cancelled` if its submission was; False if lost."""
        ...

    def release_stray(self, job: int, incarnation: str) -> bool:
        """Give back, uncharged, a job that runs under this incarnation but is held by nobody there."""
        ...

    def release_orphans(self) -> int:
        """Give back, uncharged, jobs that run under incarnations that have ended; say how many.

        A claim that was committed while its worker was expired leaves such a job.
        """
        ...

    def set_worker_state(self, incarnation: str, state: WorkerState, *, note: str | None = None) -> None:
        """Record what the incarnation does now; never brings an expired one back."""
        ...

    def workers(self, *, alive_only: bool = False) -> list[Worker]:
        """All incarnations, newest first; `alive_only` leaves out stopped and expired ones."""
        ...

    def speed(self, model: str) -> float | None:
        """What the model's workers got through lately, in `estimate_cost` units/s; None if nothing is known.

        Measured from picture to picture over the latest ones, breaks and what was only copied left out.
        """
        ...

    def rates(self, *, over: float) -> dict[str, float]:
        """Images/s of each incarnation in the last `over` seconds; who finished none is left out."""
        ...

    def drain_workers(self, name: str, *, timeout: float) -> list[Worker]:
        """Ask the live workers of a name to finish: from now on they claim nothing.

        Where no worker has exactly this name, those of `NAME-0`, `NAME-1` … are asked.

        Raises:
            BadInputError: when there is none.
        """
        ...

    def release_incarnation(self, incarnation: str, *, crashed: bool) -> int:
        """End an incarnation and free its running jobs in one transaction; say how many.

        `crashed` makes them suspects, or charges a failure to the one that ran alone; otherwise (an
        orderly stop) nothing is charged. Jobs of cancelled submissions become `cancelled`.
        """
        ...

    def close(self) -> None:
        """Close all connections."""
        ...
