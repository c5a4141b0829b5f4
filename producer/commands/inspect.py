"""`promptmill inspect`: what a picture says of itself, and what the database knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.output import count_of, print_fields, print_json, printable, remark, timestamp
from producer.session import Session, pass_session
from storage.errors import BadInputError, PromptmillError

if TYPE_CHECKING:
    # Slow to import, and `--help` needs none of it.
    from producer.readers.picture import Said
    from storage.records import Job

SHOWN_JOBS = 5
NOT_STORED = "no stored picture has these bytes"
NO_DATABASE = "not known, since there is no database here"
NOT_REACHED = "not known, since the database cannot be asked"


@click.command(
    name="inspect",
    epilog="""\b
Examples:
  promptmill inspect out/otters/000000-an-otter.png
  promptmill inspect *.jpg --json | jq -r '.pictures[].said.prompt'
""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
def inspect_pictures(session: Session, *, files: tuple[Path, ...], as_json: bool) -> None:
    """Show what pictures say of themselves, and what the database knows of them.

    A picture of ours says everything that determined it; of others the infotext is read, and with
    `pip install 'promptmill[images]'` what ComfyUI, InvokeAI and others write. The database knows a picture
    by the hash of its file: one that was changed is no stored picture any more, whatever it says.

    A file that says nothing and that the database does not know is an error; the others are shown all the
    same.
    """
    from producer.readers.picture import read_picture  # noqa: PLC0415  (slow, see above)

    shown, problems = [], []
    archive = _Archive(session)
    for file in files:
        try:
            said = read_picture(file)
        except BadInputError as error:
            problems.append(f"{file}: {error}")
            continue
        stored = archive.find(said.file_sha256)
        if not said.written_by and not stored:
            problems.append(f"{file}: {said.problem}")
        shown.append(_as_json(file, said, stored) if as_json else _as_fields(file, said, stored, archive))
    if as_json:
        print_json({"pictures": shown})
    else:
        for number, fields in enumerate(shown):
            if number:
                click.echo()
            print_fields(fields)
    _complain(problems, archive.fault)


class _Archive:
    """The database, as far as there is one.

    Attributes:
        fault: what kept it from answering.
        unknown: why it does not know a picture.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._submissions: dict[str, str | None] = {}
        self._workers: dict[str, str] | None = None
        self.fault: PromptmillError | None = None
        self.unknown = NOT_STORED

    def find(self, file_sha256: str) -> list[dict[str, Any]] | None:
        """Return the jobs whose picture has these bytes; None where nobody can say."""
        if self.fault is not None or not self._there():
            return None
        try:
            return [self._fields(job) for job in self._session.jobs.find_pictures(file_sha256)]
        except PromptmillError as error:
            self.fault, self.unknown = error, NOT_REACHED
            return None

    def _there(self) -> bool:
        from storage.database import database_exists  # noqa: PLC0415  (slow, see above)

        if database_exists(self._session.settings):  # to look must not make one
            return True
        self.unknown = NO_DATABASE
        return False

    def _fields(self, job: Job) -> dict[str, Any]:
        from producer.commands.status import picture_path  # noqa: PLC0415  (slow, see above)

        jobs = self._session.jobs
        if job.submission not in self._submissions:
            self._submissions[job.submission] = jobs.find_submission(job.submission).name
        if self._workers is None:
            self._workers = {worker.incarnation: worker.name for worker in jobs.workers()}
        return {
            "job": job.label,
            "status": str(job.status),
            "submission_name": self._submissions[job.submission],
            "created": timestamp(job.created_at),
            "finished": timestamp(job.finished_at),
            "worker": self._workers.get(job.incarnation or "", job.incarnation),
            "attempt": job.attempt,
            "image_path": picture_path(self._session, job.image.key) if job.image else None,
            "pixel_sha256": job.image.pixel_sha256 if job.image else None,
            "extra": job.parameters.extra,
        }


def _as_json(file: Path, said: Said, stored: list[dict[str, Any]] | None) -> dict[str, Any]:
    record = said.record
    return {
        "file": str(file),
        "file_sha256": said.file_sha256,
        "format": said.format.lower(),
        "width": said.size[0],
        "height": said.size[1],
        "written_by": said.written_by or None,
        "problem": said.problem or None,
        "said": {name: value for name, value in said.fields.items() if name != "version"},
        "source": record.source if record else None,
        "revision": record.revision if record else None,
        "numerics": record.numerics if record else None,
        "infotext": said.infotext or None,
        "stored": stored,
    }


def _as_fields(
    file: Path, said: Said, stored: list[dict[str, Any]] | None, archive: _Archive
) -> dict[str, Any]:
    """Return what people read: what is not known is left out by whoever prints it."""
    content = _as_json(file, said, stored)
    size = f"{content.pop('width')}x{content.pop('height')}"
    said_fields = content.pop("said")
    fields: dict[str, Any] = content | said_fields
    numerics = {name: value for name, value in (fields["numerics"] or {}).items() if name != "model_revision"}
    for name in ("infotext", "stored", "numerics"):
        del fields[name]
    head = {name: fields.pop(name) for name in ("file", "format", "file_sha256", "written_by", "problem")}
    tail = {name: fields.pop(name, None) for name in ("model", "source", "revision", "other")}
    pixels = {"pixels": size}
    return head | pixels | fields | tail | {"numerics": numerics} | _stored_fields(stored, archive.unknown)


def _stored_fields(stored: list[dict[str, Any]] | None, unknown: str) -> dict[str, Any]:
    if not stored:
        return {"stored": unknown}
    lines = [_line(job) for job in stored[:SHOWN_JOBS]]
    more = [f"and {count_of(len(stored) - SHOWN_JOBS, 'more job')}"] if len(stored) > SHOWN_JOBS else []
    return {
        "stored": "; ".join([*lines, *more]),
        "image_path": stored[0]["image_path"],
        "extra": stored[0]["extra"],
    }


def _line(job: Mapping[str, Any]) -> str:
    name = f" ({job['submission_name']})" if job["submission_name"] else ""
    return f"job {job['job']}{name}, {job['status']} {job['finished']} by {job['worker']}"


def _complain(problems: list[str], fault: PromptmillError | None) -> None:
    """Raise what is wrong with the files or the database, once everything that is known has been shown."""
    listed = [printable(problem) for problem in problems]
    if listed and fault is not None:
        remark(f"Warning: {fault}")
    if len(listed) > 1:
        rows = "".join(f"\n  {problem}" for problem in listed)
        raise BadInputError(f"{len(listed):,} files say nothing that could be read:{rows}")
    if listed:
        raise BadInputError(listed[0])
    if fault is not None:
        raise fault
