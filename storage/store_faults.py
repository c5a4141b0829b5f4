"""A store's faults in one sentence each, with what to do about them."""

from __future__ import annotations

import errno
import re

from storage.errors import StoreFullError, UnreachableError
from storage.hints import hint

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_BUCKET = re.compile(r"bucket does not exist|NoSuchBucket")
# What S3 and its libraries say, and what to do about it.
_HINTS = (
    (
        NO_BUCKET,
        "create the bucket, or check PROMPTMILL_STORE_URL",
    ),
    (
        re.compile(r"credentials|[Aa]ccess ?[Dd]enied|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden"),
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do",
    ),
    (
        re.compile(r"connect to the endpoint|Connect timeout|[Cc]annot connect"),
        "start the server, or check AWS_ENDPOINT_URL",
    ),
    (
        re.compile(r"Permission denied|Read-only file system|^write .*(No such file|Not a directory)"),
        "let this user write there, or choose another PROMPTMILL_STORE_URL",
    ),
)


def translated(
    error: Exception,
    url: str,
    doing: str,
    *,
    what: str = "picture store",
    setting: str = "PROMPTMILL_STORE_URL",
) -> UnreachableError:
    """Name a store's fault; object stores let errors of their own HTTP libraries through.

    Args:
        error: what was raised.
        url: the store's.
        doing: what failed, such as `write 000000.png`.
        what: see `storage.imagestore.open_files`.
        setting: likewise.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return StoreFullError(f"The {what} {url} is full: no space left to {doing}; free some, then resume.")
    said = " ".join(str(error).split())[:300]
    reason = getattr(error, "strerror", None) or said or type(error).__name__
    mend = hint(_HINTS, f"{doing} {reason} {said}")
    advice = f"; {mend.replace('PROMPTMILL_STORE_URL', setting)}" if mend else ""
    return UnreachableError(f"The {what} {url} failed to {doing}: {reason.rstrip('.')}{advice}.")
