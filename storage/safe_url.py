"""URLs without the passwords in them, for whatever people or logs read."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/\s]*@")


def safe_url(url: str) -> str:
    """Return the URL without its password."""
    scheme, separator, rest = url.partition("://")
    if rest.startswith("/"):
        return url  # a socket's path, where an `@` is only a letter
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"


def safe_store_url(url: str) -> str:
    """Return a store's URL without users and passwords; an `@` in a folder's name is only a letter."""
    return _USER.sub("", url)
