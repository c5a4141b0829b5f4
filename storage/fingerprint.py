"""Hashes of what was asked for: equal facts have equal hashes, on every machine and in every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from storage.parameters import JobParameters, parameters_of


def hash_of(facts: Any) -> str:
    """Return the sha256 of anything that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def render_fingerprint(
    parameters: JobParameters, *, model: str, source: str | None, version: str, numerics: Mapping[str, Any]
) -> str:
    """Return the hash of all that determined a picture's file: two jobs with one hash have the same file.

    Args:
        parameters: the job's, all filled in; `extra` does not count.
        model: its name, which is in the file's infotext.
        source: its hub repo, which is in the file's record; None for a folder.
        version: promptmill's, likewise.
        numerics: the record of the worker that renders it.
    """
    return hash_of([parameters_of(parameters), model, source, version, numerics])
