"""The fingerprint: equal for equal files, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from storage.fingerprint import render_fingerprint
from storage.parameters import JobParameters

JOB = JobParameters(
    prompt="an otter", seed=1, num_inference_steps=20, guidance_scale=4.0, width=64, height=64,
    options={"eta": 0.5}, extra={"id": 1},
)  # fmt: skip
NUMERICS = {"lanes": 4, "versions": {"torch": "2"}}
FACTS: dict[str, Any] = {"model": "demo", "source": None, "version": "1", "numerics": NUMERICS}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "an otter."},
        {"negative_prompt": "blurry"},
        {"seed": 2},
        {"num_inference_steps": 21},
        {"guidance_scale": 4.5},
        {"width": 72},
        {"height": 72},
        {"sampler": "euler"},
        {"schedule": "karras"},
        {"options": {}},
        {"model": "other"},
        {"source": "someone/demo"},
        {"version": "2"},
        {"numerics": {"lanes": 8, "versions": {"torch": "2"}}},
        {"numerics": {"lanes": 4, "versions": {"torch": "3"}}},
    ],
    ids=str,
)
def test_whatever_is_in_the_file_is_in_its_fingerprint(changes: dict[str, Any]) -> None:
    """Each parameter, the model's name and promptmill's version, and every fact of the numerics record."""
    job = replace(JOB, **{name: value for name, value in changes.items() if name not in FACTS})
    facts = FACTS | {name: value for name, value in changes.items() if name in FACTS}
    assert render_fingerprint(job, **facts) != render_fingerprint(JOB, **FACTS)


def test_what_is_not_in_the_file_is_not_in_its_fingerprint() -> None:
    """The columns that a list brings along, the order of a record, and how a whole number was written."""
    same = replace(JOB, extra={"id": 2}, guidance_scale=4)
    facts = FACTS | {"numerics": {"versions": {"torch": "2"}, "lanes": 4}}
    assert render_fingerprint(same, **facts) == render_fingerprint(JOB, **FACTS)
