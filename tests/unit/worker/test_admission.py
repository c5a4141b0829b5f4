"""Admission decides which requests get the lanes of the next step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from worker.engine.admission import Admission, Group, LanePlan

SMALL = Group(shape=(4, 16, 16), tokens=77)
LARGE = Group(shape=(4, 64, 64), tokens=77)
LONG = Group(shape=(4, 16, 16), tokens=154)


@dataclass
class Job:
    """What admission sees of a request."""

    arrival: int
    lanes: int = 2
    group: Group = SMALL
    priority: int = 0
    started: bool = False
    evaluations_left: int = 10


def _choose(admission: Admission, jobs: Sequence[Job]) -> list[int]:
    chosen, _ = admission.choose(jobs)
    return [job.arrival for job in chosen]


@pytest.fixture
def admission() -> Admission:
    """Return a policy that gives every group four lanes."""
    return Admission(lambda _: LanePlan(lanes=4))


def test_nothing_to_choose(admission: Admission) -> None:
    """Without candidates nobody is chosen."""
    assert admission.choose([]) == ([], None)


def test_oldest_first_until_the_lanes_are_full(admission: Admission) -> None:
    """The oldest requests get lanes, whatever order they are listed in."""
    assert _choose(admission, [Job(3), Job(1), Job(2)]) == [1, 2]


def test_a_younger_request_fills_what_an_older_one_cannot(admission: Admission) -> None:
    """A guided request that does not fit sits the step out, and an unguided one takes the free lane."""
    jobs = [Job(1), Job(2, lanes=1), Job(3, lanes=2), Job(4, lanes=1)]
    assert _choose(admission, jobs) == [1, 2, 4]


def test_priority_goes_before_age(admission: Admission) -> None:
    """A request of higher priority goes first."""
    assert _choose(admission, [Job(1), Job(2), Job(3, priority=1)]) == [3, 1]


def test_among_equals_the_longest_starts_first(admission: Admission) -> None:
    """A long job that starts last would run alone at the end."""
    jobs = [Job(1, evaluations_left=5), Job(2, evaluations_left=50), Job(3, evaluations_left=20)]
    assert _choose(admission, jobs) == [2, 3]


def test_who_has_started_stays_although_a_longer_one_comes(admission: Admission) -> None:
    """Half-rendered requests that sit out would help nobody; only priority makes them."""
    jobs = [
        Job(1, started=True, evaluations_left=2),
        Job(2, evaluations_left=50),
        Job(3, evaluations_left=60),
    ]
    assert _choose(admission, jobs) == [1, 3]
    assert _choose(admission, [*jobs, Job(4, priority=1, evaluations_left=1)]) == [4, 1]


def test_a_stream_of_longer_jobs_does_not_starve_a_short_one(admission: Admission) -> None:
    """Each step of waiting counts as one pass more."""
    short = Job(0, evaluations_left=5)
    for step in range(1, 30):
        long = [Job(2 * step, evaluations_left=20), Job(2 * step + 1, evaluations_left=20)]
        if 0 in _choose(admission, [short, *long]):
            break
    assert step == 16


def test_shapes_do_not_mix(admission: Admission) -> None:
    """One step holds requests of one latent shape only."""
    assert _choose(admission, [Job(1, group=LARGE), Job(2), Job(3, group=LARGE)]) == [1, 3]


def test_shapes_take_turns(admission: Admission) -> None:
    """A crowd of one shape cannot starve a single request of another."""
    jobs = [*(Job(n) for n in range(6)), Job(6, group=LARGE)]
    turns = [_choose(admission, jobs) for _ in range(4)]
    assert turns == [[0, 1], [6], [0, 1], [6]]


def test_prompts_of_another_length_take_turns_too(admission: Admission) -> None:
    """One step holds requests of one prompt length, and a crowd of one length starves nobody of another."""
    jobs = [Job(0), Job(1, group=LONG), Job(2), Job(3), Job(4, group=LONG), Job(5, group=LARGE)]
    turns = [_choose(admission, jobs) for _ in range(4)]
    assert turns == [[0, 2], [1, 4], [5], [0, 2]]


def test_a_new_shape_gets_the_next_turn(admission: Admission) -> None:
    """A shape that had no turn yet goes before those that had one."""
    crowd = [Job(1), Job(2, group=LARGE)]
    _choose(admission, crowd)
    assert _choose(admission, [*crowd, Job(3, group=Group(shape=(4, 8, 8), tokens=77))]) == [2]
    assert _choose(admission, [*crowd, Job(3, group=Group(shape=(4, 8, 8), tokens=77))]) == [3]


def test_alone_means_one_request_from_start_to_end() -> None:
    """A shape that is not exact in company runs one request at a time, and finishes what it started."""
    admission = Admission(lambda _: LanePlan(lanes=2, alone=True))
    assert _choose(admission, [Job(1, lanes=1), Job(2, lanes=1)]) == [1]
    assert _choose(admission, [Job(1, lanes=1), Job(2, lanes=1, started=True)]) == [2]


def test_the_plan_is_the_chosen_shapes() -> None:
    """The plan that comes back is that of the chosen shape."""
    admission = Admission(lambda group: LanePlan(lanes=2 if group == LARGE else 8))
    assert admission.choose([Job(1, group=LARGE)])[1] == LanePlan(lanes=2)


def test_admission_is_tensor_free() -> None:
    """Importing admission loads neither torch nor numpy."""
    code = "import sys, worker.engine.admission; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
