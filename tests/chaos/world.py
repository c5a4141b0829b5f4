"""A farm of real processes with everything between them that can be broken."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.farm import Farm
from tests.chaos.plan import Plan
from tests.chaos.proxies import PostgresProxy, S3Proxy, postgres_socket
from tests.servers import S3, Postgres, RedisServer, running_redis

ROOT = Path(__file__).parents[2]
SABOTAGE = Path(__file__).parent / "sabotage"
SECRET = "sesame"  # noqa: S105 - in a password and a token that nothing may ever write down
DISK = "64m"  # of a store that can be filled: hundreds of pictures
FAKETIME = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")


@dataclass(frozen=True, kw_only=True)
class Servers:
    """What several runs share; each makes a database and a bucket of its own."""

    postgres: Postgres
    s3: S3
    model: Path


@dataclass(kw_only=True)
class World:
    """One run's farm.

    Attributes:
        farm: the home; its environment leads to the proxies, its own store straight to the database.
        redis: a server of the run's own; None where the embedded one is used.
        disk: where the store's disk is mounted; None where it is no disk of its own.
    """

    plan: Plan
    farm: Farm
    postgres: Postgres
    database: str
    lease: float
    redis: RedisServer | None = None
    redis_folder: Path | None = None
    postgres_proxy: PostgresProxy | None = None
    s3_proxy: S3Proxy | None = None
    disk: Path | None = None


def faketime() -> Path | None:
    """Find libfaketime (Debian: `apt-get install faketime`)."""
    return next((path for place in FAKETIME if (path := Path(place, "libfaketimeMT.so.1")).exists()), None)


@contextlib.contextmanager
def open_world(
    plan: Plan,
    servers: Servers,
    *,
    lease: float,
    folder: Path | None = None,
    mounts: bool = True,
    disk: str = DISK,
) -> Iterator[World]:
    """Make a farm with nothing running in it but its servers, and take it down at the end.

    Args:
        plan: says which servers.
        servers: what runs share.
        lease: seconds.
        folder: where the farm's own folder is made; a short path, since sockets lie there.
        mounts: whether a disk that can be filled may be mounted.
        disk: its size, as `mount` reads it.
    """
    database = f"chaos_{plan.seed}"
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True, dir=folder)
        folder = Path(stack.enter_context(temporary))
        environment = {
            "PROMPTMILL_MODELS": f"tiny={servers.model}",
            "PROMPTMILL_LEASE": str(lease),
            "HF_TOKEN": f"hf_{SECRET}",
            "PYTHONPATH": os.pathsep.join(map(str, (SABOTAGE, ROOT))),
        }
        redis = postgres_proxy = s3_proxy = mounted = None
        if plan.database == "postgres":
            url = servers.postgres.make_database(database)
            stack.callback(servers.postgres.drop_database, database)
            socket = postgres_socket(url)
            postgres_proxy = PostgresProxy(folder / "pg", socket)
            stack.callback(postgres_proxy.close)
            environment["PROMPTMILL_DATABASE_URL"] = url.replace(str(socket.parent), str(folder / "pg"))
            (folder / "redis").mkdir()
            redis = stack.enter_context(running_redis(folder / "redis", password=SECRET))
            environment["PROMPTMILL_REDIS_URL"] = redis.url
        if plan.pictures == "s3":
            bucket = f"chaos-{plan.seed}"
            servers.s3.make_bucket(bucket)
            stack.callback(servers.s3.drop_bucket, bucket)
            s3_proxy = S3Proxy(servers.s3.environment["AWS_ENDPOINT_URL"])
            stack.callback(s3_proxy.close)
            environment |= {**servers.s3.environment, "AWS_ENDPOINT_URL": s3_proxy.url}
            environment["PROMPTMILL_STORE_URL"] = f"s3://{bucket}/pictures"
        else:
            (folder / "disk").mkdir()
            mounted = _mounted(folder / "disk", stack, size=disk) if mounts else None
            environment["PROMPTMILL_STORE_URL"] = f"file://{folder}/disk/pictures"
        farm = Farm(folder / "home", **environment)
        stack.callback(farm.close)
        _see_directly(farm, servers, plan, stack)
        made = farm.run("db", "upgrade")
        assert made.returncode == 0, made.stderr
        yield World(
            plan=plan, farm=farm, postgres=servers.postgres, database=database, lease=lease, redis=redis,
            redis_folder=folder / "redis", postgres_proxy=postgres_proxy, s3_proxy=s3_proxy, disk=mounted,
        )  # fmt: skip


def _see_directly(farm: Farm, servers: Servers, plan: Plan, stack: contextlib.ExitStack) -> None:
    """Let the harness itself look past the proxies."""
    changes: dict[str, str] = {}
    if plan.database == "postgres":
        changes["database_url"] = servers.postgres.url(f"chaos_{plan.seed}")
    farm.settings = dataclasses.replace(farm.settings, **changes)
    if plan.pictures == "s3":
        for name, value in servers.s3.environment.items():
            before = os.environ.get(name)
            os.environ[name] = value
            stack.callback(_restore, name, before)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _mounted(folder: Path, stack: contextlib.ExitStack, *, size: str) -> Path | None:
    """Mount a small disk where that is allowed, which is for root."""
    mount = shutil.which("mount")
    if os.getuid() or mount is None:
        return None
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    return folder
