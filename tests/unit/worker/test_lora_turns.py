"""Sets of LoRAs take long turns, and none waits for ever."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tests.unit.worker.test_admission import SMALL, Job
from tests.unit.worker.test_turns import Call
from worker.coalescing.turns import Turns
from worker.engine.admission import Admission, LanePlan
from worker.engine.group_turns import TURNS_A_ROUND
from worker.engine.lora_turns import HOLD, LOWER

A, B = (("a", 1.0),), (("b", 1.0),)


def _switches(loras: Sequence[object]) -> int:
    return sum(one != other for one, other in itertools.pairwise(loras))


def test_a_set_keeps_its_turn_while_others_wait_a_while() -> None:
    """Of three sets that always have something to run, one runs HOLD passes before the next."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    jobs = [Job(number, group=SMALL._replace(loras=loras)) for number, loras in enumerate(((), A, B))]
    run = [admission.choose(jobs)[0][0].group.loras for _ in range(3 * HOLD)]
    assert run == [()] * HOLD + [A] * HOLD + [B] * HOLD


def test_groups_of_one_set_take_turns_step_by_step() -> None:
    """Two sizes with the same LoRAs alternate, while those with others wait."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    small, large = SMALL._replace(loras=A), SMALL._replace(shape=(4, 32, 32), loras=A)
    jobs = [Job(1, group=small), Job(2, group=large), Job(3, group=SMALL)]
    assert [admission.choose(jobs)[0][0].arrival for _ in range(4)] == [1, 2, 1, 2]


def test_a_set_whose_jobs_are_done_gives_its_turn_away() -> None:
    """The next set begins at once, and no pass is lost."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    mine, other = Job(1, group=SMALL._replace(loras=A)), Job(2)
    assert admission.choose([mine, other])[0] == [mine]
    assert admission.choose([other])[0] == [other]


def test_passes_that_nobody_waited_for_do_not_count() -> None:
    """A set that was alone for long keeps its turn for HOLD passes from when somebody came."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    mine, other = Job(1), Job(2, group=SMALL._replace(loras=A))
    for _ in range(3 * HOLD):
        admission.choose([mine])
    run = [admission.choose([mine, other])[0][0] for _ in range(HOLD + 1)]
    assert run == [mine] * HOLD + [other]


def test_calls_of_pipelines_take_the_same_turns() -> None:
    """Calls that agree but for their LoRAs are not run in turn, one pass each."""
    turns, run = Turns(), []
    for _ in range(4 * HOLD):
        calls = [Call("a", ("x", A), loras=A), Call("b", ("x", B), loras=B, rank=(0, 1))]
        run.append(turns.choose(calls, width=lambda _key: 4)[0].loras)
    assert _switches(run) == 3


def test_an_urgent_job_of_another_set_has_the_next_pass() -> None:
    """And keeps the turn, past HOLD passes, as long as it is the more urgent one."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    mine, urgent = Job(1), Job(2, group=SMALL._replace(loras=A), priority=5)
    assert admission.choose([mine])[0] == [mine]
    run = [admission.choose([mine, urgent])[0] for _ in range(2 * HOLD)]
    assert run == 2 * HOLD * [[urgent]]
    assert admission.choose([mine])[0] == [mine]


def test_sets_of_one_priority_share_the_time_that_less_urgent_ones_leave_them() -> None:
    """Two urgent sets take turns; the third has a turn after LOWER passes of both, every time."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    jobs = [
        Job(1),
        Job(2, group=SMALL._replace(loras=A), priority=5),
        Job(3, group=SMALL._replace(loras=B), priority=5),
    ]
    run = [admission.choose(jobs)[0][0].group.loras for _ in range(2 * (LOWER + HOLD))]
    turns = [(loras, len(list(passes))) for loras, passes in itertools.groupby(run)]
    both = LOWER // HOLD
    urgent = [[A, B] * both, [B, A] * both]  # whose turn was cut short goes on as who waited least
    expected = [loras for part in urgent for loras in (*part[:both], ())]
    assert [loras for loras, _ in turns] == expected
    assert {passes for _, passes in turns} == {HOLD}


def test_an_urgent_job_waits_for_a_less_urgent_sets_turn_and_no_longer() -> None:
    """That turn is one of HOLD passes after LOWER; all others are the urgent one's."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    mine, urgent = Job(1), Job(2, group=SMALL._replace(loras=A), priority=5)
    run = [admission.choose([mine, urgent])[0][0] for _ in range(3 * (LOWER + HOLD))]
    assert run == 3 * (LOWER * [urgent] + HOLD * [mine])
    assert LOWER == (TURNS_A_ROUND - 1) * HOLD


def test_a_more_urgent_job_ends_a_less_urgent_sets_turn() -> None:
    """It was let in before others, and not before one that comes with a higher priority than theirs."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    mine, urgent = Job(1), Job(2, group=SMALL._replace(loras=A), priority=5)
    for _ in range(LOWER):
        admission.choose([mine, urgent])
    assert admission.choose([mine, urgent])[0] == [mine]
    latest = Job(3, group=SMALL._replace(loras=B), priority=9)
    assert admission.choose([mine, urgent, latest])[0] == [latest]


def test_passes_that_only_less_urgent_sets_waited_for_do_not_count() -> None:
    """A peer that comes late finds a turn that has just begun."""
    admission = Admission(lambda _: LanePlan(lanes=4))
    low, mine = Job(1), Job(2, group=SMALL._replace(loras=A), priority=5)
    for _ in range(3 * HOLD):
        assert admission.choose([low, mine])[0] == [mine]
    peer = Job(3, group=SMALL._replace(loras=B), priority=5)
    run = [admission.choose([low, mine, peer])[0][0] for _ in range(HOLD + 1)]
    assert run == [mine] * HOLD + [peer]


def test_calls_of_pipelines_go_by_priority_across_sets_too() -> None:
    """An urgent call of another set is next."""
    turns = Turns()
    mine = Call("a", ("x", A), loras=A)
    assert turns.choose([mine], width=lambda _key: 4) == [mine]
    urgent = Call("b", ("x", B), loras=B, rank=(-5, 1))
    assert turns.choose([mine, urgent], width=lambda _key: 4) == [urgent]
