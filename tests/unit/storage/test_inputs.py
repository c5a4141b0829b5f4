"""Inputs are named by the hash of their file, and by nothing else."""

from __future__ import annotations

import pytest

from storage.errors import BadInputError
from storage.inputs import hash_in, input_key
from storage.parameters import JobParameters, check_job


@pytest.mark.parametrize(
    "value", ["../../etc/passwd", "a.png", "A" * 64, "a" * 63, "a" * 64 + "/..", "", 7, None]
)
def test_an_input_is_named_by_its_hash_alone(value: object) -> None:
    """A path, or anything else that is no sha256, is refused by whoever reads a job, and makes no key."""
    for name in ("init_image", "mask_image", "control_image"):
        with pytest.raises(BadInputError, match="is no sha256 of a file"):
            check_job(JobParameters(prompt="x", seed=1, options={name: value}))
    with pytest.raises(BadInputError, match="is no hash of an input"):
        input_key(str(value))


def test_only_a_key_of_ours_holds_an_input() -> None:
    """A file in another folder, or half-written, is none."""
    sha256 = "ab" + "0" * 62
    assert hash_in(input_key(sha256)) == sha256
    for name in (
        f"inputs/{sha256}",
        f"inputs/cd/{sha256}",
        f"inputs/ab/.{sha256}.1-ab.part",
        sha256,
        "inputs/ab",
    ):
        assert hash_in(name) is None
