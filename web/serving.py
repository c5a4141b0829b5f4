"""Listen: who may, where, and with which token, checked before anything is opened."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from storage.errors import BadInputError, UnreachableError
from storage.settings import load_settings
from storage.stores import open_image_store, open_job_store
from web.app import create_app
from web.guard import Rules
from web.hosts import Hosts, is_loopback
from web.tokens import read_token

BACKLOG = 256
PATIENCE = 3  # seconds that open connections get at the end; watchers come again by themselves


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where to listen.

    Attributes:
        host, port: the address; port 0 takes a free one.
        token_file: of the token that callers have to know; None for none.
        allowed_hosts: names that the server is called by, besides the machine's own.
    """

    host: str
    port: int
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()


def parse_listening(text: str) -> Listening:
    """Read what the command line has written."""
    fields = json.loads(text)
    return Listening(**fields | {"allowed_hosts": tuple(fields["allowed_hosts"])})


def rules_of(listening: Listening) -> Rules:
    """Return who may come in.

    Raises:
        BadInputError: when other machines could reach a server without a token, or the token cannot be used.
    """
    beyond = [name for name in (listening.host, *listening.allowed_hosts) if not is_loopback(name)]
    if listening.token_file is None and beyond:
        raise BadInputError(
            f"Whoever reaches {beyond[0]} could see and submit everything; give --token-file FILE, or "
            f"leave --host and --allow-host out to serve this machine only."
        )
    token = None if listening.token_file is None else read_token(Path(listening.token_file))
    return Rules(hosts=Hosts([listening.host, *listening.allowed_hosts]), token=token)


def serve(listening: Listening) -> None:
    """Serve until a signal comes.

    Raises:
        PromptmillError: when settings, token, database, store or address cannot be used.
    """
    rules = rules_of(listening)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = load_settings()
    with closing(open_job_store(settings)) as jobs, _listen(listening) as listener:
        app = create_app(settings, jobs, open_image_store(settings), rules=rules)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would write prompts that are looked for
            server_header=False,
            date_header=True,
            proxy_headers=False,  # who is behind a proxy shares its rate; a header can say anything
            timeout_graceful_shutdown=PATIENCE,
            lifespan="on",
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"promptmill serves http://{shown}:{port} (Ctrl-C ends it).\n")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(listening: Listening) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            listening.host.strip("[]"), listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise UnreachableError(
            f"Cannot listen on {listening.host} port {listening.port}: {error.strerror or error}; choose "
            f"another --host or --port."
        ) from error
