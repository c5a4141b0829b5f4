"""Under which names this server may be asked for: pages of others could point a name of theirs at it."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address that is listened on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(header: str) -> str | None:
    """Return the host that a Host header names, lower case, without port; None for nonsense."""
    found = _HOST.fullmatch(header)
    return found[1].strip("[]").lower() if found else None


class Hosts:
    """The names that are answered to.

    An address cannot be pointed at another machine, so those are all taken; of names, the machine's own and
    those that the user has allowed.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", *(name.lower() for name in allowed)}

    def knows(self, header: str) -> bool:
        """Whether a request with this Host header is meant for us."""
        host = host_of(header)
        if host is None:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return host.rstrip(".") in self._names
        return True
