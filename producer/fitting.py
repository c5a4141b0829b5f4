"""Whether prompts that were read go with what their model recommends, which is known only then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from producer.jobchecks import clash
from producer.jobs import JobOptions
from producer.lines import Problem
from producer.loras import unknown_loras
from producer.problems import Problems
from producer.prompts import MAX_COMBINATIONS, PromptList, clash_key, sample_of
from storage.errors import BadInputError
from storage.scheduler_limits import Limits


def fitting(
    prompts: PromptList,
    options: JobOptions,
    defaults: Mapping[str, Any],
    *,
    model: str,
    loras: Collection[str] = (),
    limits: Limits | None = None,
    skip_bad: bool,
) -> PromptList:
    """Return the prompts that go with what the model recommends; with `skip_bad` the others are left out.

    Args:
        prompts: what was read.
        options: the flags.
        defaults: what the model recommends.
        model: its name.
        loras: names of those that are known for it.
        limits: what it can do, where that is known.
        skip_bad: see above.

    Raises:
        BadInputError: listing what does not go, or saying that the flags alone do not.
    """

    @lru_cache(MAX_COMBINATIONS)
    def reason_of(key: str) -> str | None:
        sample = sample_of(key)
        return unknown_loras(sample, options, loras) or clash(
            sample, options, defaults, model=model, limits=limits
        )

    if all(reason_of(key) is None for key in prompts.all_combinations()):
        return prompts
    problems, left = Problems(), PromptList(source=prompts.source)
    for line in prompts:
        key = clash_key(line)
        reason = reason_of(key)
        if reason is None:
            left.append(line)
        elif not key:  # no line's fault
            raise BadInputError(reason)
        else:
            problems.add(Problem(file=line.file, line=line.line or None, reason=reason))
    problems.settle(skip_bad=skip_bad, left=left.count)
    return left
