"""Whether prompts that were read go with what their model recommends, which is known only then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from producer.jobchecks import clash
from producer.jobs import JobOptions
from producer.lines import Line, Problem
from producer.problems import Problems
from producer.prompts import MAX_COMBINATIONS, PromptList, clash_key
from storage.errors import BadInputError


def fitting(
    prompts: PromptList, options: JobOptions, defaults: Mapping[str, Any], *, model: str, skip_bad: bool
) -> PromptList:
    """Return the prompts that go with what the model recommends; with `skip_bad` the others are left out.

    Raises:
        BadInputError: listing what does not go, or saying that the flags alone do not.
    """

    @lru_cache(MAX_COMBINATIONS)
    def reason_of(key: str) -> str | None:
        settings = json.loads(key) if key else {}
        sample = Line(file="", line=0, prompt="any", settings=settings)
        return clash(sample, options, defaults, model=model)

    # Where they are too many to be remembered, the lines are gone through once more.
    keys = map(clash_key, prompts) if prompts.combinations is None else prompts.combinations
    if all(reason_of(key) is None for key in keys):
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
