"""This promptmill's version, and the versions of what its processes say to each other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

MESSAGE_VERSION = 1


def promptmill_version() -> str:
    """Return the installed version, `0+unknown` in a tree that was never installed."""
    try:
        return version("promptmill")
    except PackageNotFoundError:
        return "0+unknown"


def is_older_than(oldest: str) -> bool:
    """Tell whether this promptmill is older than the oldest one that a database allows."""
    return _numbers(promptmill_version()) < _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    release = version.split("+", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in release if part.isdecimal())
