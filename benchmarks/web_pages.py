"""How long the web pages take: a thousand submissions of a million jobs, a gallery of ten thousand pictures.

Half of the jobs are finished: a page has to count both halves. Each figure is the time from request to
answer, in this process, the median of five; thumbnails are counted one by one, as they are made and as they
come from the cache. A first screen is the page and what is to be seen of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

from report import arguments, median, seconds, show
from sqlalchemy import update
from starlette.testclient import TestClient

from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.records import JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.sqljobstore.base import JOBS
from storage.stores import open_image_store, open_job_store
from tests.unit.producer.conftest import StandInWorker
from web.app import create_app
from web.guard import Rules
from web.hosts import Hosts
from web.limits import RateLimit

TIMES = 5
SCREEN = 28  # thumbnails that are to be seen of 60, 1280 x 800 pixels
PLENTY = RateLimit(rate=1e9, burst=10**9)


def submit(store: JobStore, name: str, count: int) -> str:
    """Add a submission of so many jobs."""
    submission, _ = store.add_submission(model=name, source="benchmark", name=name)
    store.add_jobs(submission.id, (JobParameters(prompt=f"an otter, {n}", seed=n) for n in range(count)))
    store.open_submission(submission.id)
    return submission.id


def finish_half(store: JobStore) -> None:
    """Let every other job have succeeded; without pictures, which no list looks for."""
    with cast("SqlJobStore", store).database.write() as connection:
        every_other = JOBS.c.index % 2 == 0
        connection.execute(update(JOBS).where(every_other).values(status=JobStatus.SUCCEEDED.value))


def timed(client: TestClient, what: str, path: str) -> dict[str, Any]:
    """Ask for a page a few times."""
    answer = client.get(path)
    answer.raise_for_status()
    return {
        "what": what,
        "s": median([seconds(lambda: client.get(path)) for _ in range(TIMES)]),
        "kB": len(answer.content) / 1000,
    }


def thumbnails(client: TestClient, submission: str) -> list[dict[str, Any]]:
    """Ask for the thumbnails of a gallery's first page, twice."""
    page = seconds(lambda: client.get(f"/submissions/{submission}"))
    paths = [f"/submissions/{submission}/jobs/{index}/thumbnail" for index in range(60)]
    made = [seconds(lambda path=path: client.get(path)) for path in paths]  # type: ignore[misc]
    kept = [seconds(lambda path=path: client.get(path)) for path in paths]  # type: ignore[misc]
    return [
        {"what": "a first screen, thumbnails made", "s": page + sum(made[:SCREEN]), "kB": ""},
        {"what": "a first screen, thumbnails cached", "s": page + sum(kept[:SCREEN]), "kB": ""},
        {"what": "a thumbnail, made", "s": median(made), "kB": len(client.get(paths[0]).content) / 1000},
        {"what": "a thumbnail, from the cache", "s": median(kept), "kB": ""},
        {"what": "the slowest of 60 from the cache", "s": max(kept), "kB": ""},
    ]


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    submissions, jobs, pictures = (100, 500, 500) if options.quick else (1_000, 500, 10_000)
    large = submissions * jobs  # the other half of the million
    with tempfile.TemporaryDirectory(prefix="pm-") as folder:
        settings = Settings(home=Path(folder) / "home")
        store = open_job_store(settings)
        for number in range(submissions):
            submit(store, f"s{number}", jobs)
        large_one = submit(store, "large", large)
        finish_half(store)
        gallery = submit(store, "gallery", pictures)
        worker = StandInWorker(store, settings, model="gallery")
        worker.colour = lambda claim: claim.index % 256  # the first thumbnails are all different
        worker.start()
        worker.render()
        rules = Rules(hosts=Hosts(), reading=PLENTY, writing=PLENTY, guessing=PLENTY)
        app = create_app(settings, store, open_image_store(settings), rules=rules)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            rows = [
                timed(client, f"submissions: 50 of {submissions:,}", "/"),
                timed(client, "submissions, the last page", "/?cursor=51"),
                timed(client, f"a gallery of {pictures:,} pictures", f"/submissions/{gallery}"),
                timed(client, "its last page", f"/submissions/{gallery}?cursor={pictures - 60}"),
                timed(
                    client, "a filter that means one job of it", f"/submissions/{gallery}?seed={pictures - 1}"
                ),
                timed(client, f"a submission of {large:,} jobs", f"/submissions/{large_one}"),
                timed(client, "its failed jobs, none", f"/submissions/{large_one}?status=failed"),
                timed(client, "a filter that means no job of it", f"/submissions/{large_one}?q=nothing"),
                *thumbnails(client, gallery),
            ]
        store.close()
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
