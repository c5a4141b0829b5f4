"""`promptmill web`: the gallery and the HTTP API."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from producer.session import Session, pass_session
from storage.errors import BadInputError

DEFAULT_PORT = 8344
_NEEDED = ("fastapi", "uvicorn", "jinja2", "python_multipart")


@click.command(
    epilog="""\b
Examples:
  promptmill web
  promptmill web --port 9000
  openssl rand -hex 24 > token && chmod 600 token
  promptmill web --host 0.0.0.0 --token-file token --allow-host gallery.example.org
  promptmill web --token-file token --allow-host gallery.example.org --trust-proxy 127.0.0.1
"""
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    metavar="N",
    help="0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Callers have to know the token in it; it may hold sha256: and the token's hash instead. Needed for "
    "any address but this machine's own.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name that the server is called by, behind a proxy for one; repeatable.",
)
@click.option(
    "--trust-proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="A proxy, or a network of them, whose X-Forwarded-For and X-Forwarded-Proto are believed; "
    "repeatable.",
)
@pass_session
def web(
    session: Session,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    proxies: tuple[str, ...],
) -> None:
    """Look at submissions and pictures in a browser, submit and steer; the HTTP API is under /api/v1.

    It shows what is in the database and the picture store, and renders nothing: workers do. Without
    --token-file only this machine is served, and everybody on it.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BadInputError(
            f"The web pages need {', '.join(missing)}, which the bare install leaves out; run "
            f"`pip install 'promptmill[web]'`."
        )
    options = {
        "host": host,
        "port": port,
        "token_file": None if token_file is None else str(token_file),
        "allowed_hosts": list(allowed_hosts),
        "proxies": list(proxies),
    }
    session.close()
    sys.stdout.flush()
    # From here on signals and the exit code are the server's own. -P: a folder `web` where the user stands is
    # not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "web", "serve", json.dumps(options)])  # noqa: S606  (likewise)
