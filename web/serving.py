"""Listen: who may, where, and with which token, checked before anything is opened."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from storage.errors import BadInputError, UnreachableError
from storage.settings import load_settings
from storage.stores import open_image_store, open_job_store
from web.app import create_app
from web.guard import Rules
from web.hosts import Hosts, is_loopback
from web.threads import CONNECTIONS
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
        proxies: addresses or networks of proxies, which say whom they ask for and whether he came by TLS.
    """

    host: str
    port: int
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()


def parse_listening(text: str) -> Listening:
    """Read what the command line has written."""
    fields = json.loads(text)
    return Listening(**fields | {name: tuple(fields[name]) for name in ("allowed_hosts", "proxies")})


def rules_of(listening: Listening) -> Rules:
    """Return who may come in.

    Raises:
        BadInputError: when other machines could reach a server without a token, or the token or a proxy
            cannot be used.
    """
    for proxy in listening.proxies:
        _check_proxy(proxy)
    names = (listening.host, *listening.allowed_hosts)
    beyond = [*(name for name in names if not is_loopback(name)), *listening.proxies]
    if listening.token_file is None and beyond:
        raise BadInputError(
            f"Whoever reaches {beyond[0]} could see and submit everything; give --token-file FILE, or "
            f"leave --host, --allow-host and --trust-proxy out to serve this machine only."
        )
    token = None if listening.token_file is None else read_token(Path(listening.token_file))
    return Rules(hosts=Hosts([listening.host, *listening.allowed_hosts]), token=token)


def _check_proxy(proxy: str) -> None:
    try:
        ipaddress.ip_network(proxy)
    except ValueError as error:
        raise BadInputError(
            f"--trust-proxy {proxy} is no address; give the one that the proxy asks from, or a network: "
            f"127.0.0.1, 10.0.0.0/8."
        ) from error


def config_of(app: FastAPI, listening: Listening) -> uvicorn.Config:
    """Return how the server runs."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would write prompts that are looked for
        server_header=False,
        date_header=True,
        # X-Forwarded-For and -Proto are believed of these alone: of anybody else they can say anything.
        proxy_headers=bool(listening.proxies),
        forwarded_allow_ips=list(listening.proxies),
        timeout_graceful_shutdown=PATIENCE,
        lifespan="on",
    )


def serve(listening: Listening) -> None:
    """Serve until a signal comes.

    Raises:
        PromptmillError: when settings, token, database, store or address cannot be used.
    """
    rules = rules_of(listening)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = load_settings()
    with closing(open_job_store(settings, connections=CONNECTIONS)) as jobs, _listen(listening) as listener:
        app = create_app(settings, jobs, open_image_store(settings), rules=rules)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"promptmill serves http://{shown}:{port} (Ctrl-C ends it).\n")
        uvicorn.Server(config_of(app, listening)).run(sockets=[listener])


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
