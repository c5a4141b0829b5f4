"""All checks of `doctor`, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from producer.checks import machine, models, services, speed
from producer.checks.finding import BROKEN, OK, WARNING, Finding, Verdict
from producer.checks.versions import versions
from producer.session import Session
from storage.errors import PromptmillError
from storage.version import promptmill_version

_CHECKS: dict[str, Callable[[Session], Verdict]] = {
    "versions": versions,
    "settings": services.settings,
    "home": services.home,
    "home speed": speed.home_speed,
    "database": services.database,
    "clock": machine.clock,
    "picture store": services.picture_store,
    "store speed": speed.store_speed,
    "redis": services.redis,
    "worker extra": services.worker_extra,
    "GPU driver": machine.gpu_driver,
    "torch": machine.torch,
    "models": models.model_files,
    "tunings": models.tunings,
    "live workers": services.live_workers,
}
# What can only be known where something else is whole.
_NEEDS = {
    "home speed": "home",
    "clock": "database",
    "store speed": "picture store",
    "models": "settings",
    "tunings": "database",
    "live workers": "database",
}


def examine(session: Session) -> Iterator[Finding]:
    """Run all checks, one after another; a broken one does not end the others."""
    yield Finding(check="version", state=OK, detail=promptmill_version())
    broken: set[str] = set()
    for name, check in _CHECKS.items():
        needed = _NEEDS.get(name)
        if needed in broken:
            state, detail = WARNING, f"not examined: see {needed}"
        else:
            state, detail = _verdict(check, session)
        if state == BROKEN:
            broken.add(name)
        yield Finding(check=name, state=state, detail=detail)


def _verdict(check: Callable[[Session], Verdict], session: Session) -> Verdict:
    try:
        return check(session)
    except PromptmillError as error:
        return BROKEN, str(error)
    except Exception as error:  # noqa: BLE001  (whatever it is, the other checks still run)
        return BROKEN, f"{type(error).__name__}: {error}; see `promptmill --debug doctor`."
