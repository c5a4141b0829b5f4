"""What to do about a fault of a server: known by what the server or its library says of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

Hints = Sequence[
    tuple[re.Pattern[str], str]
]  # what is said, and what to do about it; the first that fits counts


def hint(hints: Hints, said: str) -> str | None:
    """Return what to do about what was said; None where nothing is known."""
    return next((mend for pattern, mend in hints if pattern.search(said)), None)
