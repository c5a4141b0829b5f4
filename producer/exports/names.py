"""Names of exported pictures from a template such as `{sampler}/{index}`; none leads out of the target."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from producer.exports.options import check_column
from producer.output import cell
from producer.pictures import slug
from storage.errors import BadInputError
from storage.filters import column_of
from storage.records import Job, Submission

DEFAULT_TEMPLATE = "{index}-{prompt}"
MAX_BYTES = 200  # of one part between slashes; file systems keep 255, of which a temporary name takes some
NONE = "none"  # where a job has no value
_SUFFIX = re.compile(r"\.(png|jpe?g|webp)$", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')  # some file system or URL reads them as something else
_OWN = ("index", "model", "submission")


@dataclass(frozen=True, slots=True)
class NameTemplate:
    """A template in pieces: literal text, then the field after it or None."""

    text: str
    pieces: tuple[tuple[str, str | None], ...]

    def name(self, job: Job, submission: Submission) -> str:
        """Return a job's name without suffix, with slashes between folders.

        Raises:
            BadInputError: when it is too long for a file system.
        """
        made = "".join(
            literal + (_value(job, submission, field) if field else "") for literal, field in self.pieces
        )
        if max(len(part.encode()) for part in made.split("/")) > MAX_BYTES:
            raise BadInputError(
                f"--name makes a name of over {MAX_BYTES} bytes for job {job.label}; use fewer fields."
            )
        return made


def parse_template(text: str, columns: Sequence[str], *, dots: bool = True) -> NameTemplate:
    """Read a template: text with fields in braces.

    Args:
        text: the template; a picture's suffix at its end is left out.
        columns: the prompt file's own columns that the submission has.
        dots: whether the text may have dots. A WebDataset sample's key ends at the first one.

    Raises:
        BadInputError: for a field that no job has, or a name that would not be one everywhere.
    """
    text = _SUFFIX.sub("", text.strip())
    try:
        parsed = [(literal, field, spec, how) for literal, field, spec, how in string.Formatter().parse(text)]
    except ValueError as error:
        raise BadInputError(
            f"--name {text!r} is no template ({error}); write one such as {{index}}."
        ) from error
    for literal, field, spec, how in parsed:
        if spec or how:
            raise BadInputError(f"--name {text!r}: write {{{field}}} alone; fields have one form only.")
        if field is not None and field not in _OWN:
            check_column(field, columns, flag=f"--name {{{field}}}")
        if found := _FORBIDDEN.search(literal):
            raise BadInputError(f"--name {text!r} has {found[0]!r}, which not every file system keeps.")
        if not dots and "." in literal:
            raise BadInputError(f"--name {text!r} has a dot, at which a WebDataset sample's key would end.")
    template = NameTemplate(text, tuple((literal, field) for literal, field, _, _ in parsed))
    parts = "".join(literal + ("x" if field else "") for literal, field in template.pieces).split("/")
    if any(not part or part.startswith(".") or part != part.strip() for part in parts):
        raise BadInputError(
            f"--name {text!r} would leave the folder or hide files; give names joined by single slashes."
        )
    return template


class Distinct:
    """Sees to it that no two names are the same, on any file system; 8 bytes of a hash for each are kept."""

    def __init__(self, template: NameTemplate) -> None:
        self._template = template
        self._seen: set[bytes] = set()

    def add(self, name: str, job: Job) -> None:
        """Raise BadInputError if an earlier job has this name."""
        key = hashlib.blake2b(name.casefold().encode(), digest_size=8).digest()
        if key in self._seen:
            raise BadInputError(
                f"--name {self._template.text!r} gives job {job.label} the name {name!r}, which an earlier "
                f"job has; add {{index}}."
            )
        self._seen.add(key)


def _value(job: Job, submission: Submission, field: str) -> str:
    match field:
        case "index":
            return f"{job.index:06d}"
        case "model":
            return slug(submission.model)
        case "submission":
            return submission.id
        case "prompt":
            return slug(job.parameters.prompt)
    return slug(text) if (text := cell(column_of(job.parameters, field))) else NONE
