"""What stands between a farm and its servers, and makes their answers get lost."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from sqlalchemy import make_url

INSERT = b"INSERT INTO images"


class PostgresProxy:
    """A Unix socket before PostgreSQL's own, which can lose the reply to a finish's COMMIT.

    Attributes:
        lost: how many replies it has lost.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        """Listen in `folder`, which libpq takes for a host; pass on to the socket `target`."""
        self._target = str(target)
        self._armed = 0
        self.lost = 0
        self._listener = socket.socket(socket.AF_UNIX)
        folder.mkdir(parents=True)
        self._listener.bind(str(folder / target.name))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self) -> None:
        """Lose the reply to the next commit of a transaction that inserted an image row."""
        self._armed += 1

    def close(self) -> None:
        """Listen no more; what is connected stays so until one end goes."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            return
        threading.Thread(target=_pump, args=(server, client), daemon=True).start()
        with client, server:
            with contextlib.suppress(OSError):
                self._pass_on(client, server)
            # Closing alone would not reach a pump that reads just now, nor the server behind it.
            _hang_up(server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        statements = _Statements()
        while data := client.recv(65536):
            commits = statements.heard(data)
            if commits and self._armed:
                self._armed -= 1
                self.lost += 1
                client.shutdown(socket.SHUT_RDWR)  # the pump has nobody to write to any more
                server.sendall(data)
                time.sleep(0.2)  # the server commits
                return
            server.sendall(data)


class _Statements:
    """Follows what a client says: whether the transaction that it commits has inserted an image row."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeted = False
        self._inserting: set[bytes] = set()  # names of prepared statements that do
        self._inserted = False

    def heard(self, data: bytes) -> bool:
        """Take what was sent; return whether it commits such a transaction."""
        self._rest += data
        commits = False
        while len(self._rest) >= 5:
            kind = self._rest[:1] if self._greeted else b""
            (length,) = struct.unpack("!I", self._rest[len(kind) : len(kind) + 4])
            if len(self._rest) < len(kind) + length:
                break
            body = self._rest[len(kind) + 4 : len(kind) + length]
            self._rest = self._rest[len(kind) + length :]
            self._greeted = True
            commits |= self._read(kind, body)
        return commits

    def _read(self, kind: bytes, body: bytes) -> bool:
        if kind == b"P" and INSERT in body:
            self._inserting.add(body.split(b"\0", 1)[0])
        if kind == b"B" and body.split(b"\0", 2)[1] in self._inserting:
            self._inserted = True
        if kind == b"P" and not body.split(b"\0", 1)[0] and INSERT not in body:
            self._inserting.discard(b"")
        if kind == b"Q" and body.startswith((b"COMMIT", b"ROLLBACK")):
            inserted, self._inserted = self._inserted, False
            return inserted and body.startswith(b"COMMIT")
        return False


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _hang_up(sink)  # also after a reset, which is what a server leaves that ends with a question unread


def _hang_up(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


class S3Proxy:
    """HTTP before an S3 server, which can fail before or after the work is done, or say nothing.

    Attributes:
        url: what goes into AWS_ENDPOINT_URL.
        mode: `well`, `errors`, `late errors` or `silence`.
        failed: how many requests it has spoilt.
    """

    def __init__(self, target: str) -> None:
        """Listen on a free port; pass on to the server at the URL `target`."""
        self.mode = "well"
        self.failed = 0
        proxy, address = self, urlsplit(target).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout: ClassVar[float] = 60

            def handle_request(self) -> None:
                proxy.handle(self, address)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request  # noqa: N815 - http.server's names

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: http.server.BaseHTTPRequestHandler, address: str) -> None:
        """Pass one request on, or fail."""
        body = _body(request)
        mode = self.mode
        self.failed += mode != "well"
        with contextlib.suppress(OSError):
            if mode == "silence":
                while self.mode == "silence":
                    time.sleep(0.2)
                request.close_connection = True
                return
            if mode == "errors":
                _answer(request, 500, [], b"<Error><Code>InternalError</Code></Error>")
                return
            connection = http.client.HTTPConnection(address, timeout=60)
            with contextlib.closing(connection):
                headers = {
                    name: value for name, value in request.headers.items() if name.lower() not in _HOPS
                }
                connection.request(request.command, request.path, body=body, headers=headers)
                reply = connection.getresponse()
                content = reply.read()
            if mode == "late errors":
                _answer(request, 500, [], b"<Error><Code>InternalError</Code></Error>")
                return
            _answer(request, reply.status, reply.getheaders(), content)


_HOPS = {"transfer-encoding", "connection", "expect", "content-length"}


def _body(request: http.server.BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def _answer(
    request: http.server.BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes
) -> None:
    request.send_response_only(status)
    length = str(len(content))
    for name, value in headers:
        if name.lower() == "content-length" and request.command == "HEAD":
            length = value
        elif name.lower() not in _HOPS:
            request.send_header(name, value)
    request.send_header("Content-Length", length)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def postgres_socket(url: str) -> Path:
    """Return the socket that a URL of the embedded PostgreSQL names."""
    host = make_url(url).query["host"]
    assert isinstance(host, str)
    return next(path for path in Path(host).glob(".s.PGSQL.*") if path.suffix != ".lock")
