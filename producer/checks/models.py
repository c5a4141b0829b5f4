"""Checks of the configured models: whole files, their licences, and what workers measured of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from producer.checks.finding import BROKEN, OK, WARNING, Verdict
from producer.exports.licences import licence_of
from producer.output import count_of, minute, size_of, timestamp
from producer.session import Session
from storage.measured import SELF_TEST, Measured
from storage.models import SINGLE_FILE, ModelReference, configured_models

LONGEST_HEADER = 100 * 10**6  # bytes, safetensors' own limit
SHORT = 8  # characters of a revision
SHOWN = 4  # tunings


def model_files(session: Session) -> Verdict:
    """Whether the files of each configured model are here and whole, and under which licence they are."""
    said, wrong = [], []
    for reference in configured_models(session.settings.models).values():
        problem, size = _examined(reference)
        licence = licence_of(reference) or "licence not stated"
        if problem is not None:
            wrong.append(f"{reference.name}: {problem}")
        said.append(f"{reference.name} ({size}, {licence})")
    if wrong:
        # Without torch nothing is rendered here, and the files may lie on the workers' hosts alone.
        state = WARNING if find_spec("torch") is None else BROKEN
        return state, f"{'; '.join(wrong)}; a worker with it will not start here"
    return OK, ", ".join(said)


def _examined(reference: ModelReference) -> tuple[str | None, str]:
    """Return what is wrong with a model's files, if anything, and how large they are."""
    source = Path(reference.source)
    if not source.is_absolute():
        return None, "from the hub, see `hf cache ls`"
    if not source.exists():
        return f"there is nothing at {source}", "missing"
    files = [source] if source.is_file() else sorted(source.rglob(f"*{SINGLE_FILE}"))
    if not files:
        return f"{source} holds no {SINGLE_FILE} file", "no weights"
    problem = next((fault for path in files if (fault := fault_of(path)) is not None), None)
    size = size_of(sum(path.stat().st_size for path in files))
    return problem, f"{size} in {count_of(len(files), 'file')}"


def fault_of(path: Path) -> str | None:
    """Say what is wrong with a safetensors file that its first bytes and its length tell; None if nothing.

    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > LONGEST_HEADER:  # noqa: PLR2004  (the length's own bytes)
                return f"{path} is no safetensors file"
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{path} is damaged or cut short"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{path} has {size:,} bytes and should have {expected:,}"


def tunings(session: Session) -> Verdict:
    """How the kinds of workers that this database has seen run their models."""
    found = [one for one in session.jobs.measured() if SELF_TEST not in one.facts]
    if not found:
        return OK, "none yet; the first worker of each kind measures how it runs its model best"
    shown = list(map(_tuning, found[:SHOWN])) + [f"{len(found) - SHOWN} more"] * (len(found) > SHOWN)
    return OK, "; ".join(shown)


def _tuning(one: Measured) -> str:
    return ", ".join(_parts(one.facts, one.found)) + f" (since {minute(timestamp(one.created_at) or '')})"


def _parts(facts: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    revision = str(facts.get("model_revision", "unknown"))[:SHORT]
    yield f"model {revision} on {facts.get('device', 'any device')}"
    yield f"{found.get('lanes')} lanes"
    yield from (str(found[name]) for name in ("dtype", "layout") if name in found)
    torch = facts.get("versions", {}).get("torch")
    yield from [f"torch {torch}"] * (torch is not None)
