"""URLs without the passwords in them, for whatever people or logs read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL

_USER = re.compile(r"(?<=://)[^/\s]*@")


def safe_url(url: str) -> str:
    """Return the URL without its password."""
    scheme, separator, rest = url.partition("://")
    if rest.startswith("/"):
        return url  # a socket's path, where an `@` is only a letter
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"


def safe_database_url(url: URL) -> str:
    """Return a database's URL without its password, which libpq also takes as `?password=…`."""
    secret = [name for name in url.query if "pass" in name.lower()]
    return url.difference_update_query(secret).render_as_string(hide_password=True)


def safe_store_url(url: str) -> str:
    """Return a store's URL without users and passwords; an `@` in a folder's name is only a letter."""
    return _USER.sub("", url)
