"""Who may come in: a token that only its hash is kept of, and the session that a browser gets for it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
import time
from pathlib import Path

from storage.errors import BadInputError

MIN_TOKEN = 20  # characters: what `openssl rand -hex 10` writes
SESSION_SECONDS = 30 * 24 * 3600
SESSION_COOKIE = "promptmill_session"
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MOST = 4096  # bytes of a token file


class Token:
    """A token that a caller has to know.

    Comparisons take the same time wherever two texts differ.
    """

    def __init__(self, sha256: str) -> None:
        self._hash = sha256
        # Of this process: whoever can read the hash must not be able to make a session of it.
        self._key = secrets.token_bytes(32)

    def fits(self, text: str) -> bool:
        """Whether a text is the token."""
        return hmac.compare_digest(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), self._hash)

    def session(self) -> str:
        """Return what a browser shows from now on instead of the token."""
        until = str(int(time.time()) + SESSION_SECONDS)
        return f"{until}.{self._sign(until)}"

    def knows(self, session: str) -> bool:
        """Whether a text is a session of this token that has not ended."""
        until, _, signature = session.partition(".")
        fits = hmac.compare_digest(self._sign(until).encode(), signature.encode("utf-8", "replace"))
        return fits and until.isdecimal() and time.time() < int(until)

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def read_token(path: Path) -> Token:
    """Read a token file: one line, the token itself, or `sha256:` and the hash of it in hexadecimal.

    Raises:
        BadInputError: when it cannot be used, or others on the machine can read a token that is no hash.
    """
    try:
        if path.stat().st_size > _MOST:
            raise BadInputError(f"The token file {path} is no token; write one line into it.")
        text = path.read_text(encoding="utf-8").strip()
        others = path.stat().st_mode & _OTHERS
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadInputError(f"The token file {path} cannot be read: {reason}.") from error
    if hashed := _HASHED.fullmatch(text):
        return Token(hashed[1])
    if len(text) < MIN_TOKEN or not text.isprintable() or " " in text:
        raise BadInputError(
            f"The token in {path} has to be one word of at least {MIN_TOKEN} characters; make one with "
            f"`openssl rand -hex 24 > {path}`."
        )
    if others:
        raise BadInputError(
            f"Others can read the token file {path}; `chmod 600` it, or write sha256: and the token's hash."
        )
    return Token(hashlib.sha256(text.encode()).hexdigest())


class FormKey:
    """Signs what browsers keep for us, for the life of this process: a form of another one is loaded again.

    What is signed for one purpose is not signed for another.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, text: str, purpose: str) -> str:
        """Return a signature of a text."""
        signed = f"{purpose}\0{text}".encode("utf-8", "replace")
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()

    def fits(self, text: str, purpose: str, signature: str) -> bool:
        """Whether a signature is that of a text."""
        right = self.sign(text, purpose).encode()
        return hmac.compare_digest(right, signature.encode("utf-8", "replace"))
