"""Admission decides which requests get the lanes of the next step."""

from __future__ import annotations

import heapq
import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.engine.admission import OVERTAKEN, Admission, Group, LanePlan
from worker.engine.group_turns import TURNS_A_ROUND

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


def _advance(admission: Admission, jobs: list[Job]) -> list[int]:
    """Run a step; who is done leaves."""
    chosen, _ = admission.choose(jobs)
    for job in chosen:
        job.started = True
        job.evaluations_left -= 1
    jobs[:] = [job for job in jobs if job.evaluations_left]
    return [job.arrival for job in chosen]


@pytest.mark.parametrize(("lanes", "held"), [(2, 5), (4, 6), (8, 12)])
def test_a_request_is_overtaken_only_so_often_by_those_that_fit(lanes: int, held: int) -> None:
    """A stream of unguided jobs that end one by one never leaves two lanes free at once, until it has to."""
    steps = 20
    admission = Admission(lambda _: LanePlan(lanes=lanes))
    guided = Job(0, evaluations_left=steps)
    running = [
        Job(n, lanes=1, started=True, evaluations_left=steps - (n - 1) * steps // lanes)
        for n in range(1, lanes + 1)
    ]
    jobs, arrivals = [guided, *running], itertools.count(lanes + 1)
    began: list[int] = []
    used: list[int] = []
    while not guided.started and len(began) <= OVERTAKEN:
        jobs += [Job(next(arrivals), lanes=1, evaluations_left=steps) for _ in range(held - len(jobs))]
        starting = {job.arrival for job in jobs if not job.started}
        lanes_of = {job.arrival: job.lanes for job in jobs}
        chosen = _advance(admission, jobs)
        began += [arrival for arrival in chosen if arrival in starting]
        used.append(sum(lanes_of[arrival] for arrival in chosen))
    assert began[OVERTAKEN:] == [0]
    # Running requests go on, and no more than one lane is kept free, for less than a job's steps.
    assert set(used) == {lanes, lanes - 1}
    assert used.count(lanes - 1) <= steps


def test_free_lanes_are_kept_only_from_those_that_wait() -> None:
    """Whoever has started goes on, also one of lower priority than the request that was overtaken."""
    admission = Admission(lambda _: LanePlan(lanes=2))
    jobs = [Job(0, lanes=1, priority=1, started=True), Job(1, priority=1)]
    for number in range(2, 2 + OVERTAKEN):
        assert _choose(admission, [*jobs, Job(number, lanes=1)]) == [0, number]
    assert _choose(admission, [*jobs, Job(number + 1, lanes=1)]) == [0]
    assert _choose(admission, [*jobs, Job(number, lanes=1, started=True)]) == [0, number]


STEPS = 4  # at most, of a job
WIDTHS_AND_STEPS = st.lists(
    st.tuples(st.sampled_from((1, 1, 1, 2)), st.integers(1, STEPS)), min_size=1, max_size=8
)


@given(
    lanes=st.integers(2, 6),
    ahead=st.integers(1, 3),
    first=WIDTHS_AND_STEPS,
    then=WIDTHS_AND_STEPS,
    pauses=st.lists(st.integers(0, 2 * STEPS), min_size=1, max_size=5),
)
@example(lanes=2, ahead=3, first=[(1, 4), (1, 4), (2, 4)], then=[(1, 4)], pauses=[0, 2, 0, 0, 0])
@settings(max_examples=60, deadline=None)
def test_every_request_starts_within_a_bound(
    lanes: int,
    ahead: int,
    first: list[tuple[int, int]],
    then: list[tuple[int, int]],
    pauses: list[int],
) -> None:
    """Whatever the widths, the steps and the order in which they arrive, in an endless stream.

    Before a request there can start those that waited when it came or came in the STEPS turns after it: later
    ones have no more passes before them than it has waited. Each of these, and it, lets OVERTAKEN others by
    if it takes two lanes. And somebody starts at least every STEPS turns, in which all that runs is done.
    """
    admission = Admission(lambda _: LanePlan(lanes=lanes))
    arriving = _arriving(itertools.chain(first, itertools.cycle(then)), itertools.cycle(pauses))
    jobs: list[Job] = []
    came: list[tuple[int, Job]] = []
    before: dict[int, list[Job]] = {}
    began: dict[int, int] = {}
    turns = 400
    due, job = next(arriving)
    for turn in range(turns):
        while due <= turn and len(jobs) < lanes + ahead:
            before[job.arrival] = [other for other in jobs if not other.started]
            came.append((turn, job))
            jobs.append(job)
            due, job = next(arriving)
        for arrival in _advance(admission, jobs):
            began.setdefault(arrival, turn)
    for turn, job in came:
        soon = [other for when, other in came if turn <= when < turn + STEPS and other.arrival > job.arrival]
        ahead_of_it = before[job.arrival] + soon
        guided = sum(other.lanes == 2 for other in (job, *ahead_of_it))
        bound = STEPS * (1 + len(ahead_of_it) + OVERTAKEN * guided)
        assert began.get(job.arrival, turns) - turn <= bound


def _arriving(
    widths_and_steps: Iterable[tuple[int, int]], pauses: Iterable[int]
) -> Iterator[tuple[int, Job]]:
    """Yield jobs, each with the turn in which it is due."""
    due = 0
    for number, ((width, steps), pause) in enumerate(zip(widths_and_steps, pauses, strict=False)):
        due += pause
        yield due, Job(number, lanes=width, evaluations_left=steps)


def test_the_benchmarks_mix_ends_as_early_as_an_ideal_list_schedule() -> None:
    """All of one width, as in benchmarks/engine_mixed.py: no lane is kept free, and the tail is as short."""
    admission = Admission(lambda _: LanePlan(lanes=8))
    steps = [(10, 15, 20, 25, 30)[7 * number // 12 % 5] for number in range(32)]
    places = [0] * 4
    for each in sorted(steps, reverse=True):
        heapq.heapreplace(places, places[0] + each)
    jobs = [Job(number, evaluations_left=each) for number, each in enumerate(steps)]
    taken = 0
    while jobs:
        _advance(admission, jobs)
        taken += 1
    assert taken == max(places)


def test_who_goes_on_keeps_its_place(admission: Admission) -> None:
    """Places are by start, not by age: a batch that moved for nothing would be gathered anew."""
    jobs = [Job(1), Job(2, evaluations_left=1), Job(3, evaluations_left=30), Job(4, evaluations_left=20)]
    assert [_advance(admission, jobs) for _ in range(2)] == [[3, 4]] * 2
    jobs = [job for job in jobs if job.arrival != 4]
    assert [_advance(admission, jobs) for _ in range(2)] == [[3, 1]] * 2


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


def test_a_group_of_higher_priority_goes_first(admission: Admission) -> None:
    """One that waits or runs is enough, and the others get the last turn of each round, in their order."""
    jobs = [Job(1), Job(2, group=LARGE, priority=9), Job(3, group=LONG), Job(4, group=LARGE)]
    turns = [_choose(admission, jobs) for _ in range(3 * TURNS_A_ROUND)]
    urgent = [[2, 4]] * (TURNS_A_ROUND - 1)
    assert turns == [*urgent, [1], *urgent, [3], *urgent, [1]]
    jobs[1].started = True
    assert _choose(admission, jobs) == [2, 4]


def test_the_same_priority_in_two_groups_takes_turns(admission: Admission) -> None:
    """Each has the steps that the other leaves, also where both come before a third."""
    jobs = [Job(1), Job(2, group=LARGE, priority=1), Job(3, group=LONG, priority=1)]
    assert [_choose(admission, jobs) for _ in range(4)] == [[2], [3], [2], [3]]


def test_shapes_that_come_and_go_do_not_starve_one_that_stays(admission: Admission) -> None:
    """A shape that is met anew each step waits since then, and not longer than all others."""
    stays = Job(0)
    turns = [_choose(admission, [stays, Job(number, group=LARGE)]) for number in (1, 1, 2)]
    assert turns == [[0], [1], [0]]
    new = [Group(shape=(4, 8, 8 * width), tokens=77) for width in range(1, 9)]
    turns = [_choose(admission, [stays, Job(number, group=group)]) for number, group in enumerate(new, 3)]
    assert turns.count([0]) == 4


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
