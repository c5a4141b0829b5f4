"""The chaos harness, briefly: one seeded run on each database, and proof that it can fail."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import pytest

from producer.audit import Kind, audit
from storage.sqljobstore import SqlJobStore
from storage.stores import open_image_store
from tests.acceptance.farm import wait_until
from tests.chaos.__main__ import LEASE, run_once
from tests.chaos.faults import CANCEL_DEATH, SUBMIT_DEATHS
from tests.chaos.plan import Fault, Plan, Planned
from tests.chaos.posts import Posts, is_frozen, is_there
from tests.chaos.run import Run, Wave
from tests.chaos.tiny import make_tiny_model
from tests.chaos.world import Servers, open_world
from tests.servers import S3, Postgres

JOBS = 60  # so many that some are left for every fault, however fast the machine is


@pytest.fixture(scope="module")
def servers(postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Servers:
    """What both runs share."""
    return Servers(postgres=postgres, s3=s3, model=make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


PLANS = {
    "sqlite": (Fault.KILL_WORKER, Fault.HALF_FILES, Fault.REDIS_EMPTY, Fault.KILL_CANCEL),
    "postgres": (Fault.COMMIT_REPLY, Fault.S3_LATE_ERRORS, Fault.REDIS_CLIENTS, Fault.POSTGRES_TERMINATE),
}


@pytest.mark.parametrize("database", PLANS)
def test_nothing_is_lost_and_nothing_is_there_twice(database: str, servers: Servers) -> None:
    """A few of the faults of `make chaos`, one seed: every job has its one picture or its one reason."""
    moments = (0.0, 0.05, 0.15, 0.3)
    faults = (
        Planned(share=share, fault=fault) for share, fault in zip(moments, PLANS[database], strict=True)
    )
    plan = Plan(
        seed=1, database=database, pictures="s3" if database == "postgres" else "folder",
        faults=tuple(faults), markers=("raises",),
    )  # fmt: skip
    outcome = run_once(plan, servers, jobs=JOBS, lease=LEASE, references={})
    verdict = outcome.verdict
    assert (verdict.lost, verdict.duplicated, verdict.wrong) == ([], [], [])
    assert outcome.run.injected == list(PLANS[database]), outcome.run.left_out


@pytest.fixture(scope="module")
def bugs(servers: Servers) -> Iterator[dict[str, list[Kind]]]:
    """What the auditor finds of each job of a run in which bugs were planted, by the bug."""
    plan = Plan(seed=2, database="sqlite", pictures="folder", faults=(), markers=())
    frozen = Wave(
        rows=[
            {"prompt": f"an otter [freeze together]{plant}", "seed": 1, "steps": 4}
            for plant in ("", " [plant fencing]", " [plant key]")
        ]
    )
    dying = Wave(rows=[{"prompt": "an otter [die in the gap] [plant row]", "seed": 1, "steps": 4}])
    with open_world(plan, servers, lease=LEASE) as world:
        posts = Posts(world, names=("one",))
        run = Run(plan=plan, world=world, waves=[frozen, dying], posts=posts, dice=random.Random(1))
        (zombie,) = wait_until(posts.ready, what="a worker is ready")
        run.send(frozen)
        wait_until(lambda: is_frozen(zombie.pid), what="it is frozen between three files and their rows")
        posts.start("two")
        world.farm.wait_for(frozen.submission, len(frozen.rows))
        os.kill(zombie.pid, signal.SIGCONT)
        wait_until(lambda: not is_there(zombie.pid), what="the zombie has done its harm and is gone")
        run.send(dying)
        world.farm.wait_for(dying.submission, 1)
        wait_until(lambda: len(world.farm.workers()) < 2, what="a worker died before its file was there")
        posts.stop()
        found = list(audit(world.farm.store(), open_image_store(world.farm.settings)))
        where = {"none": (frozen, 0), "fencing": (frozen, 1), "key": (frozen, 2), "row": (dying, 0)}
        yield {
            bug: [
                finding.kind
                for finding in found
                if finding.where == f"{wave.submission}:{index}" and finding.is_wrong
            ]
            for bug, (wave, index) in where.items()
        }


def test_the_auditor_is_quiet_about_a_job_without_a_bug(bugs: dict[str, list[Kind]]) -> None:
    """The same fault, and promptmill as it is: the zombie's late result is dropped."""
    assert bugs["none"] == []


def test_fencing_that_is_switched_off_is_caught(bugs: dict[str, list[Kind]]) -> None:
    """Whoever finishes last wins: the row tells of a picture of an attempt that was taken over."""
    assert bugs["fencing"] == [Kind.OTHER_ATTEMPT]


def test_a_key_without_its_attempt_is_caught(bugs: dict[str, list[Kind]]) -> None:
    """Two attempts write one file, and the loser deletes the winner's."""
    assert bugs["key"] == [Kind.OTHER_ATTEMPT]


def test_a_row_before_its_file_is_caught(bugs: dict[str, list[Kind]]) -> None:
    """A worker that dies between the two leaves a row that promises a file which nobody wrote."""
    assert bugs["row"] == [Kind.MISSING]


@pytest.mark.parametrize("place", [*SUBMIT_DEATHS, CANCEL_DEATH])
def test_a_place_to_die_at_is_there(place: str) -> None:
    """A method that has another name by now would be sabotaged by nobody."""
    assert callable(getattr(SqlJobStore, place))
