"""What a target was made for, kept in it: an export goes on where it was stopped, never into another."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from producer.exports.options import ExportOptions
from producer.exports.target import Target
from producer.pictures import HIDDEN_MARKER
from storage.errors import BadInputError
from storage.filters import JobFilter
from storage.records import Submission

LAYOUT = 1  # of what the formats hold; another one is not mixed with this one


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard that is complete.

    Attributes:
        first, last: indices of its jobs.
        count: of its pictures.
        fingerprint: sha256 over all that is said in it, and its pictures' hashes.
        files: names and sizes in bytes.
    """

    first: int
    last: int
    count: int
    fingerprint: str
    files: dict[str, int]


@dataclass(kw_only=True, slots=True)
class Marker:
    """The content of a target's hidden file.

    Attributes:
        submission: whose pictures these are.
        options: see `ExportOptions.noted`.
        shards: those that are complete, in order; none for formats without shards.
        card: sha256 of the README.md that was written, so that one that somebody has changed is kept.
    """

    submission: Submission
    options: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    card: str | None = None

    def save(self, target: Target) -> None:
        """Write it."""
        content = {
            "version": 1,
            "submission": self.submission.id,
            "key": self.submission.idempotency_key,
            "export": {"layout": LAYOUT, **self.options},
            "shards": [asdict(shard) for shard in self.shards],
            "card": self.card,
        }
        target.write(HIDDEN_MARKER, json.dumps(content, ensure_ascii=False).encode() + b"\n")


def check_target(target: Target, submission: Submission, options: ExportOptions) -> Marker:
    """Check, without writing anything, that an export may go to a target; return the marker to go on with.

    Raises:
        BadInputError: when other files are there, or those of another submission or other options.
    """
    new = Marker(submission=submission, options=options.noted())
    if target.is_empty():
        return new
    made = _read(target)
    if not made:
        raise BadInputError(f"{target} holds other files; choose another place, or an empty one.")
    if made["submission"] != submission.id:
        raise BadInputError(
            f"{target} holds an export of submission {made['submission']}; choose another place for "
            f"{submission.id}."
        )
    # Before there were other formats and filters, only the submission was noted.
    earlier = made.get("export") or {"layout": LAYOUT, **ExportOptions(meant=JobFilter()).noted()}
    if earlier.get("layout") != LAYOUT:
        raise BadInputError(f"{target} holds an export of another promptmill version; choose another place.")
    if different := [name for name, value in new.options.items() if earlier.get(name) != value]:
        raise BadInputError(
            f"{target} holds an export with {_shown(earlier, different)}, not "
            f"{_shown(new.options, different)}; repeat those options, or choose another place."
        )
    try:
        new.shards = [Shard(**shard) for shard in made.get("shards", ())]
    except TypeError:
        new.shards = []
    new.card = made.get("card")
    return new


def _shown(options: dict[str, Any], names: list[str]) -> str:
    """Write options as the flags that ask for them."""
    return " ".join(_flag(name, options.get(name)) for name in names)


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    match value:
        case None | "" | False | []:
            return f"no {flag}"
        case True:
            return flag
        case dict():
            pairs = [f"{column}={one}" for column, texts in value.items() for one in texts]
            return " ".join(f"{flag} {shlex.quote(pair)}" for pair in pairs) or f"no {flag}"
        case list():
            return " ".join(f"{flag} {shlex.quote(str(one))}" for one in value)
    return f"{flag} {shlex.quote(str(value))}"


def _read(target: Target) -> dict[str, Any]:
    try:
        made = json.loads(target.read(HIDDEN_MARKER) or b"null")
    except ValueError:
        return {}
    return made if isinstance(made, dict) and isinstance(made.get("submission"), str) else {}
