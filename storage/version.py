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
