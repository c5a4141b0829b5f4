"""`doctor` against each broken backend: it names the fault, says how to mend it, and shows no password."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.farm import Farm, wait_until
from tests.servers import S3, Postgres, RedisServer, running_redis

SPEED = {"home speed", "store speed"}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    with running_redis(tmp_path, password="sesame") as server:  # noqa: S106 - of a server for one test
        yield server


@pytest.fixture
def whole(postgres: Postgres, redis_server: RedisServer, s3: S3) -> Iterator[dict[str, str]]:
    """The environment of a farm in which nothing is broken."""
    url = postgres.make_database("doctor")
    s3.make_bucket("doctor")
    yield {
        "PROMPTMILL_DATABASE_URL": url,
        "PROMPTMILL_REDIS_URL": redis_server.url,
        "PROMPTMILL_STORE_URL": "s3://doctor/pictures",
        **s3.environment,
    }
    s3.drop_bucket("doctor")
    postgres.drop_database("doctor")


@pytest.fixture
def farm(whole: dict[str, str]) -> Iterator[Farm]:
    """A home in that farm, its schema made."""
    with tempfile.TemporaryDirectory(prefix="pm-") as folder:
        farm = Farm(Path(folder) / "home", **whole)
        assert farm.run("db", "upgrade").returncode == 0
        yield farm
        farm.close()


def examine(farm: Farm, **broken: str) -> dict[str, tuple[str, str]]:
    """Return what doctor says of each part: its state, and the detail."""
    said = farm.run("doctor", "--json", **broken)
    assert "Traceback" not in said.stderr
    checks = json.loads(said.stdout)["checks"]
    found = {check["check"]: (check["state"], check["detail"]) for check in checks}
    assert (said.returncode == 3) == any(state == "broken" for state, _ in found.values())
    assert "sesame" not in said.stdout + said.stderr
    return found


def test_nothing_is_broken_in_a_whole_farm(farm: Farm) -> None:
    """Only that no worker runs is worth a warning; how fast this machine's disks are is its own affair."""
    found = examine(farm)
    assert {name for name, (state, _) in found.items() if state != "ok"} - SPEED == {"live workers"}
    assert {found[name][0] for name in SPEED} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("part", "broken", "fault", "mend"),
    [
        (
            "database",
            {"PROMPTMILL_DATABASE_URL": "postgresql://mill:sesame@127.0.0.1:1/promptmill"},
            "refused",
            "start the server",
        ),
        (
            "redis",
            {"PROMPTMILL_REDIS_URL": "redis://:sesame@127.0.0.1:1/0"},
            "refused",
            "start it, or check PROMPTMILL_REDIS_URL",
        ),
        (
            "picture store",
            {"PROMPTMILL_STORE_URL": "s3://no-such-bucket/pictures"},
            "bucket does not exist",
            "create the bucket",
        ),
        (
            "picture store",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "connect",
            "check AWS_ENDPOINT_URL",
        ),
        (
            "picture store",
            {"PROMPTMILL_STORE_URL": "/proc/pictures"},
            "failed to",
            "PROMPTMILL_STORE_URL",
        ),
    ],
)
def test_what_is_down_or_missing_is_named(
    part: str, broken: dict[str, str], fault: str, mend: str, farm: Farm
) -> None:
    """And everything else is still examined."""
    found = examine(farm, **broken)
    state, detail = found[part]
    assert state == "broken"
    assert fault in detail
    assert mend in detail
    others = {"database", "redis", "picture store"} - {part}
    assert {found[other][0] for other in others} == {"ok"}


def test_a_wrong_password_is_named(farm: Farm, postgres: Postgres, redis_server: RedisServer) -> None:
    """Of the database, and of Redis."""
    postgres.require_password("mill", "right")
    wrong = postgres.url("doctor").replace("postgres:@", "mill:sesame@")
    state, detail = examine(farm, PROMPTMILL_DATABASE_URL=wrong)["database"]
    assert state == "broken"
    assert "password authentication failed" in detail
    assert "check user and password in PROMPTMILL_DATABASE_URL" in detail
    without = redis_server.url.replace(":sesame@", "")
    state, detail = examine(farm, PROMPTMILL_REDIS_URL=without)["redis"]
    assert state == "broken"
    assert "check the password in PROMPTMILL_REDIS_URL" in detail


def test_an_old_schema_and_an_empty_database_are_named(farm: Farm, postgres: Postgres) -> None:
    """With the command that mends them."""
    with postgres.connect("doctor") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    state, detail = examine(farm)["database"]
    assert state == "broken"
    assert "schema 0001" in detail
    assert "promptmill db upgrade" in detail
    empty = postgres.make_database("empty")
    state, detail = examine(farm, PROMPTMILL_DATABASE_URL=empty)["database"]
    assert state == "broken"
    assert "promptmill db upgrade" in detail
    postgres.drop_database("empty")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_disk_without_space_is_named(farm: Farm, tmp_path: Path) -> None:
    """A small file system of its own, filled but for less than what is kept free."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "none", str(folder)],  # noqa: S607 - where mount is
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - 200_000))
        state, detail = examine(farm, PROMPTMILL_STORE_URL=str(folder))["picture store"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - likewise
    assert state == "broken"
    assert "no space left" in detail
    assert "free some" in detail


def test_a_self_test_has_the_same_bytes_again_and_probes_follow_the_worker(farm: Farm) -> None:
    """By a worker that is started for it, by one that runs; a hash that was tampered with is found."""
    kept = farm.run("doctor", "--render")
    assert kept.returncode == 0, kept.stderr
    assert "kept, and later self-tests are held against it" in kept.stderr
    assert farm.run("doctor", "--probe", "liveness").returncode == 1
    worker = farm.start_worker()
    assert farm.run("doctor", "--probe", "liveness").returncode == 0
    # A row says ready a moment before Celery takes messages, which is what a probe means.
    wait_until(lambda: not farm.run("doctor", "--probe", "readiness").returncode, what="it takes jobs")
    again = farm.run("doctor", "--render", "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)["self_test"]
    assert told["same"] is True
    assert "exact, float32" in told["detail"]
    with farm.store().database.write() as connection:  # type: ignore[attr-defined]  # of the SQL store
        connection.exec_driver_sql(
            "UPDATE tunings SET tuning = jsonb_set(tuning::jsonb, '{file_sha256}', '\"0\"')::json "
            "WHERE facts::jsonb ? 'self_test'"
        )
    wrong = farm.run("doctor", "--render")
    assert wrong.returncode == 1
    assert "the same pixels in other bytes" in wrong.stderr
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    dead = farm.run("doctor", "--probe", "liveness")
    assert dead.returncode == 1
    assert "No supervisor" in dead.stderr
