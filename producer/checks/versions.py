"""What is installed, held against what promptmill asks for and against what it was tested with."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from producer.checks.finding import BROKEN, OK, WARNING, Verdict
from producer.output import count_of
from producer.session import Session

PINS = "constraints.txt"
SHOWN = 6  # of the packages that are not as tested


def installed(distribution: str) -> str:
    """Return an installed version; from the files on disk, since importing torch would take seconds."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def tested_versions() -> dict[str, str]:
    """Return the versions of `constraints.txt`: the wheel has it beside this module, a clone at its root."""
    here = Path(__file__).resolve()
    candidates = (here.with_name(PINS), here.parents[2] / PINS)
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        return {}
    lines = (line.partition(";")[0].strip() for line in found.read_text(encoding="utf-8").splitlines())
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {_plain(name): version for name, _, version in pins}


def requirements() -> list[Requirement]:
    """Return what the installed promptmill asks for, extras included; nothing in a tree that is not."""
    try:
        asked = metadata.requires("promptmill") or []
    except metadata.PackageNotFoundError:
        return []
    return [found for found in map(Requirement, asked) if _plain(found.name) != "promptmill"]


def versions(_session: Session) -> Verdict:
    """Whether each package that promptmill asks for, and that is here, is one that it works with."""
    tested = tested_versions()
    too_old, other, count = [], [], 0
    for one in {_plain(found.name): found for found in requirements()}.values():
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that nobody wanted; "worker extra" says it of torch
        count += 1
        pin = tested.get(_plain(one.name))
        if not one.specifier.contains(version, prereleases=True):
            too_old.append(f"{one.name} {version}, not {one.specifier}")
        elif pin is not None and version.partition("+")[0] != pin:  # a build's own label is no other version
            other.append(f"{one.name} {version}, not {pin}")
    mend = f"install with `-c {PINS}`"
    if too_old:
        return BROKEN, f"promptmill does not work with {_few(too_old)}; {mend}"
    if other:
        return WARNING, (
            f"{len(other)} of {count_of(count, 'package')} not as tested: {_few(other)}; pictures may differ "
            f"in their last bits; {mend}"
        )
    return OK, f"{count_of(count, 'package')} as tested" if tested and count else "not known here"


def _few(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(sorted(found)[:SHOWN]) + more


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
