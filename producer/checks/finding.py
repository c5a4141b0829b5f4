"""What one check of `doctor` says."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, BROKEN = "ok", "warning", "broken"
Verdict = tuple[str, str]  # a finding's state and detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        state: ok, warning (something optional is missing, or slow, or not as it should be) or broken.
        detail: what was found, and where it is not ok how to mend it.
    """

    check: str
    state: str
    detail: str
