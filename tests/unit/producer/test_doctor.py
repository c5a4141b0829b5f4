"""`doctor`: each check against something broken, the self-test, and what probes ask."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from producer import selftest
from producer.checks import machine, models, speed, versions
from producer.checks.models import fault_of
from storage.beats import SupervisorBeat, beats_path, read_beats
from storage.jobstore import JobStore
from storage.settings import Settings
from tests.records import worker_record

ROOT = Path(__file__).parents[3]
Invoke = Callable[..., Any]


@pytest.fixture
def examined(invoke: Invoke) -> Callable[[str], tuple[str, str]]:
    """Return what `doctor` says of one part: its state, and the detail."""

    def call(part: str) -> tuple[str, str]:
        checks = json.loads(invoke("doctor", "--json").stdout)["checks"]
        return next((check["state"], check["detail"]) for check in checks if check["check"] == part)

    return call


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of our own ahead of all others."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


# Versions


def test_the_pins_are_those_of_the_clone() -> None:
    """What `doctor` compares with is `constraints.txt`."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(versions.tested_versions()) == len(pins)
    assert f"torch=={versions.tested_versions()['torch']}" in pins


@pytest.mark.parametrize(
    ("changed", "state", "said"),
    [
        ({"redis": "1.0"}, "broken", "promptmill does not work with redis 1.0, not >=5.2"),
        ({"pillow": "11.5"}, "warning", f"pillow 11.5, not {versions.tested_versions()['pillow']}"),
        ({}, "ok", "as tested"),
    ],
)
def test_packages_that_are_not_as_tested_are_named(
    changed: dict[str, str], state: str, said: str, examined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too old ones, others than were tested, and none; a build's own label is no other version."""
    tested = versions.tested_versions()

    def told(name: str) -> str:
        if name in changed:
            return changed[name]
        pin = tested.get(name.lower().replace("_", "-"))
        if pin is None:
            raise metadata.PackageNotFoundError(name)
        return pin + ("+cpu" if name == "torch" else "")

    # Not the module's own attribute: who imports it meanwhile would keep what is said here.
    stand_in = SimpleNamespace(
        version=told, requires=metadata.requires, PackageNotFoundError=metadata.PackageNotFoundError
    )
    monkeypatch.setattr(versions, "metadata", stand_in)
    found = examined("versions")
    assert found[0] == state
    assert said in found[1]


# The machine


def test_a_driver_is_shown_and_a_broken_one_named(
    examined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nvidia-smi says; without it there is no NVIDIA GPU, which is no fault."""
    monkeypatch.setattr(machine.shutil, "which", lambda _name: None)
    assert examined("GPU driver")[0] == "ok"
    monkeypatch.undo()
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "home"))
    program(tmp_path / "bin", "nvidia-smi", "echo '0, NVIDIA H100, 570.86, 81559 MiB'", monkeypatch)
    assert machine.gpu_driver(None) == ("ok", "driver 570.86: 0 NVIDIA H100 (81559 MiB)")  # type: ignore[arg-type]
    fails = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
    program(tmp_path / "bin", "nvidia-smi", fails, monkeypatch)
    state, detail = machine.gpu_driver(None)  # type: ignore[arg-type]
    assert state == "broken"
    assert "Driver/library version mismatch" in detail
    program(tmp_path / "bin", "nvidia-smi", "exit 0", monkeypatch)
    assert machine.gpu_driver(None)[0] == "warning"  # type: ignore[arg-type]


def test_torch_is_shown_with_what_each_device_can(examined: Any, torch: dict[str, Any]) -> None:
    """Its build, devices, dtypes."""
    assert examined("torch") == (
        "ok",
        "torch 2.13.0 (CPU only); A CPU (AVX2: float32, float16); --dtype auto is float32 on cpu",
    )
    torch["devices"][0]["dtypes"]["float32"] = {"works": False, "reason": "no kernel image is available"}
    state, detail = examined("torch")
    assert state == "broken"
    assert "cannot compute on A CPU: no kernel image is available" in detail


def test_a_torch_that_sees_no_gpu_is_told_apart_from_none(
    examined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver with GPUs and a build for CPUs do not go together."""
    program(tmp_path / "bin", "nvidia-smi", "printf '0\\n1\\n'", monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    state, detail = examined("torch")
    assert state == "warning"
    assert "sees none of the 2 GPUs" in detail


def test_a_torch_that_does_not_load_is_broken(examined: Any, torch: dict[str, Any]) -> None:
    """With its own last words."""
    torch.clear()
    torch["problem"] = "torch does not load: ImportError: libcudart.so.12"
    assert examined("torch") == (
        "broken",
        "torch does not load: ImportError: libcudart.so.12; install it anew",
    )


def test_a_machine_without_torch_has_a_plain_line(examined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only submits."""
    monkeypatch.setattr(machine, "find_spec", lambda _name: None)
    assert examined("torch") == ("ok", "not installed, so nothing is rendered on this machine")


def test_clocks_that_differ_are_named(
    examined: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's, and that of a worker's host, as far as its beats are from the future."""
    assert examined("clock")[0] == "ok"
    now = store.clock()
    store.add_worker(worker_record(host="gpu7", beat_at=now + timedelta(seconds=300)))
    state, detail = examined("clock")
    assert state == "warning"
    assert "that of gpu7 is 29" in detail or "that of gpu7 is 300" in detail
    monkeypatch.setattr("storage.sqljobstore.SqlJobStore.clock", lambda _self: now + timedelta(seconds=3600))
    state, detail = examined("clock")
    assert state == "warning"
    assert "behind the database's" in detail


# Disks


def test_slow_disks_are_named(examined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how slow they are; nothing is left behind."""
    monkeypatch.setattr(speed, "SLOW_COMMIT", 1e9)  # whatever this machine's disk is like
    monkeypatch.setattr(speed, "SLOW_PICTURE", 1e9)
    assert {examined(part)[0] for part in ("home speed", "store speed")} == {"ok"}
    monkeypatch.setattr(speed, "SLOW_COMMIT", 0.0)
    monkeypatch.setattr(speed, "SLOW_PICTURE", 0.0)
    assert examined("home speed")[0] == "warning"
    assert "every commit waits for that" in examined("home speed")[1]
    assert "keeps a worker's next jobs waiting" in examined("store speed")[1]


def test_trials_of_disks_leave_nothing(invoke: Invoke, settings: Settings) -> None:
    """Neither in the home nor among the pictures."""
    invoke("doctor")
    left = [path for path in settings.home.rglob("*") if "doctor" in path.name]
    assert left == []


def test_sqlite_on_a_network_file_system_is_refused(
    examined: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks are another machine's."""
    monkeypatch.setattr(speed, "file_system_of", lambda _path: "nfs4")
    assert examined("home speed") == (
        "broken",
        f"{home} is on nfs4, where SQLite's locks cannot be relied on; set PROMPTMILL_HOME to a local disk",
    )


def test_the_file_system_of_a_path_is_the_innermost(tmp_path: Path) -> None:
    """As Linux lists them, with spaces written in octal."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:40 / /srv/my\\040home rw - nfs4 server:/export rw\n"
        "41 22 0:41 / /srv/my rw - tmpfs none rw\n"
    )
    found = [
        speed.file_system_of(Path(path), mounts=mounts)
        for path in ("/home/me", "/srv/my home/mill", "/srv/my", "/srv/myself")
    ]
    assert found == ["ext4", "nfs4", "tmpfs", "ext4"]
    assert speed.file_system_of(Path("/"), mounts=tmp_path / "missing") is None


# Models and tunings


def write_weights(path: Path, *, cut: int = 0) -> Path:
    """Write a safetensors file of one tensor, some bytes short if wanted."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole[: len(whole) - cut])
    return path


def test_models_are_shown_with_their_licences(examined: Any, demo: Path) -> None:
    """As their cards say; weights are counted."""
    write_weights(demo / "unet" / "model.safetensors")
    state, detail = examined("models")
    assert state == "ok"
    assert "1 file" in detail
    assert detail.endswith("licence not stated)")
    (demo / "README.md").write_text("---\nlicense: openrail++\n---\n")
    assert examined("models")[1].endswith("openrail++)")


def test_a_model_that_is_cut_short_or_missing_is_named(
    examined: Any, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that was interrupted has its first bytes and not its last."""
    (demo / "unet" / "model.safetensors").unlink()
    assert "holds no .safetensors file" in examined("models")[1]
    path = write_weights(demo / "unet" / "model.safetensors", cut=5)
    assert f"{path} has " in examined("models")[1]
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert examined("models")[0] == "broken"
    assert f"{path} is no safetensors file" in examined("models")[1]
    write_weights(path)
    monkeypatch.setenv("PROMPTMILL_MODELS", f"mine={tmp_path / 'nowhere'}")
    state, detail = examined("models")
    assert state == "broken"
    assert f"mine: there is nothing at {tmp_path / 'nowhere'}" in detail
    monkeypatch.setattr(models, "find_spec", lambda _name: None)
    assert examined("models")[0] == "warning", "the files may be on the workers' hosts alone"


@pytest.mark.parametrize("content", [b"", b"1234", (3).to_bytes(8, "little") + b"{]}"])
def test_no_garbage_breaks_the_look_at_weights(content: bytes, tmp_path: Path) -> None:
    """Whatever lies there, it is a sentence."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert str(path) in str(fault_of(path))


def test_tunings_are_shown(examined: Any, store: JobStore) -> None:
    """What was measured, of which kind of worker; self-tests are none."""
    assert examined("tunings")[1].startswith("none yet")
    facts = {"model_revision": "0123456789ab", "device": "NVIDIA H100", "versions": {"torch": "2.13.0"}}
    store.keep_tuning(facts, {"lanes": 8, "dtype": "bfloat16", "layout": "channels_last"})
    store.keep_tuning({"self_test": {}}, {"file_sha256": "0"})
    state, detail = examined("tunings")
    assert state == "ok"
    assert detail.startswith(
        "model 01234567 on NVIDIA H100, 8 lanes, bfloat16, channels_last, torch 2.13.0 ("
    )


# The self-test


def test_a_self_test_is_held_against_the_first_one(
    invoke: Invoke, stand_in: Any, processes: Any, store: JobStore
) -> None:
    """Kept, then the same, then another: exit code 1, and its pictures stay."""
    stand_in.colour = lambda _claim: 7
    first = invoke("doctor", "--render")
    assert first.exit_code == 0, first.stderr
    assert "kept, and later self-tests are held against it" in first.stderr
    assert "the same bytes as on 20" in invoke("doctor", "--render").stderr
    assert store.submissions() == []
    told = json.loads(invoke("doctor", "--render", "--json").stdout)["self_test"]
    assert told["same"] is True
    stand_in.colour = lambda _claim: 8
    failed = invoke("doctor", "--render")
    assert failed.exit_code == 1
    assert "other pixels than on 20" in failed.stderr
    (left,) = store.submissions()
    assert f"submission {left.id} has the pictures" in failed.stderr
    assert processes.started[-1].stopped


def test_other_numerics_are_another_kind(invoke: Invoke, stand_in: Any, processes: Any) -> None:
    """Nobody expects the same bytes of another number of lanes."""
    del processes
    stand_in.colour = lambda _claim: 7
    invoke("doctor", "--render")
    stand_in.colour, stand_in.numerics = lambda _claim: 8, {"lanes": 4}
    again = invoke("doctor", "--render")
    assert again.exit_code == 0
    assert "kept" in again.stderr


def test_a_device_that_does_not_repeat_itself_fails_at_once(
    invoke: Invoke, stand_in: Any, processes: Any
) -> None:
    """The two renders of one self-test differ already."""
    del processes
    stand_in.colour = lambda claim: claim.index
    failed = invoke("doctor", "--render")
    assert failed.exit_code == 1
    assert "two renders of one job differ" in failed.stderr


def test_a_self_test_that_fails_says_why(
    invoke: Invoke, stand_in: Any, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's own reason."""
    monkeypatch.setattr(processes, "behaviour", lambda _self: (stand_in.start(), stand_in.render(fail={0})))
    failed = invoke("doctor", "--render")
    assert failed.exit_code == 1
    assert "not rendered: It came out black." in failed.stderr


def test_a_self_test_that_nobody_renders_ends(
    invoke: Invoke, stand_in: Any, processes: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is busy or hangs: after an hour it is cancelled, and the worker that was started ends."""
    monkeypatch.setattr(processes, "behaviour", lambda _self: stand_in.start())
    monkeypatch.setattr(selftest, "PATIENCE", 0.2)
    failed = invoke("doctor", "--render")
    assert failed.exit_code == 4
    assert "was not rendered within" in failed.stderr
    (left,) = store.submissions()
    assert left.state == "cancelled"
    assert left.priority > 0
    assert processes.started[-1].stopped


def test_retuning_keeps_self_tests(invoke: Invoke, stand_in: Any, processes: Any, store: JobStore) -> None:
    """They are of numerics, which say themselves how many lanes there were."""
    del processes
    stand_in.colour = lambda _claim: 7
    invoke("doctor", "--render")
    store.keep_tuning({"device": "a GPU"}, {"lanes": 4})
    assert "Forgot 1 tuning;" in invoke("worker", "retune").stderr
    assert "the same bytes" in invoke("doctor", "--render").stderr


# Probes


def test_without_a_supervisor_nothing_lives(invoke: Invoke, home: Path) -> None:
    """Exit code 1, and a sentence; no home is made for it."""
    for what in ("liveness", "readiness"):
        probed = invoke("doctor", "--probe", what)
        assert probed.exit_code == 1
        assert probed.stderr == f"Error: No supervisor of {home} runs on this host.\n"
    assert not home.exists()


def test_a_supervisor_lives_before_its_worker_is_ready(invoke: Invoke, settings: Settings) -> None:
    """And still does while it drains."""
    beat = SupervisorBeat(settings)

    def probed(**said: Any) -> tuple[int, int]:
        beat._due = 0.0
        beat.beat(devices=2, **said)
        return tuple(invoke("doctor", "--probe", what).exit_code for what in ("liveness", "readiness"))  # type: ignore[return-value]

    assert probed(ready=0, draining=False) == (0, 1)
    assert probed(ready=1, draining=False) == (0, 0)
    assert probed(ready=1, draining=True) == (0, 1)
    assert "The worker drains." in invoke("doctor", "--probe", "readiness").stderr
    beat.close()
    assert invoke("doctor", "--probe", "liveness").exit_code == 1


def test_a_supervisor_that_is_silent_hangs(invoke: Invoke, settings: Settings) -> None:
    """One that was killed leaves its file, which counts for nothing, whoever has its process id by now."""
    beat = SupervisorBeat(settings)
    beat.beat(devices=1, ready=1, draining=False)
    said = json.loads(beat._path.read_text())
    host = beat._path.name.removesuffix(f"{os.getpid()}.json")
    dead = [beats_path(settings) / f"{host}{number}.json" for number in (os.getppid(), 1)]
    dead[0].write_text(json.dumps({**said, "pid": os.getppid(), "at": 0}))
    dead[1].write_text("no JSON")
    assert invoke("doctor", "--probe", "liveness").exit_code == 0
    beat._path.write_text(json.dumps({**said, "at": time.monotonic() - 100}))
    silent = invoke("doctor", "--probe", "liveness")
    assert silent.exit_code == 1
    assert f"process id {os.getpid()} has been silent" in silent.stderr


def test_a_new_supervisor_takes_the_files_of_the_dead_away(settings: Settings) -> None:
    """And leaves those of the living."""
    lives = SupervisorBeat(settings)
    lives.beat(devices=1, ready=1, draining=False)
    held = lives._path.rename(lives._path.with_name(lives._path.name.replace(".json", "0.json")))
    dead = lives._path.with_name(held.name.replace("0.json", "1.json"))
    dead.write_text("{}")
    starts = SupervisorBeat(settings)
    starts.beat(devices=1, ready=0, draining=False)
    assert set(beats_path(settings).iterdir()) == {held, starts._path}
    assert [beat.pid for beat in read_beats(settings)] == [os.getpid()] * 2
    starts.close()
    lives.close()


def test_a_home_that_cannot_be_written_ends_no_supervisor(tmp_path: Path) -> None:
    """Probes find nothing then, and that is all."""
    (tmp_path / "file").write_text("")
    beat = SupervisorBeat(Settings(home=tmp_path / "file"))
    beat.beat(devices=1, ready=1, draining=False)
    beat.close()


def test_a_probe_loads_nothing_that_is_slow(settings: Settings) -> None:
    """It is asked every few seconds, of every pod."""
    beat = SupervisorBeat(settings)
    beat.beat(devices=1, ready=1, draining=False)
    script = (
        "import sys\n"
        "from producer.cli import cli\n"
        "try:\n"
        "    cli.main(['doctor', '--probe', 'readiness'])\n"
        "finally:\n"
        "    print(*sorted(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    said, modules = done.stdout.splitlines()
    assert said == "1 of 1 workers ready"
    slow = {
        "sqlalchemy",
        "celery",
        "kombu",
        "redis",
        "fsspec",
        "rich",
        "PIL",
        "torch",
        "psycopg",
        "packaging",
    }
    assert slow & {name.partition(".")[0] for name in modules.split()} == set()
    beat.close()


def test_a_probe_goes_with_nothing_else(invoke: Invoke) -> None:
    """Nor does --model with anything but --render."""
    assert invoke("doctor", "--probe", "liveness", "--json").exit_code == 2
    assert invoke("doctor", "--model", "demo").exit_code == 2


def test_a_newer_schema_that_allows_this_version_is_a_warning(
    examined: Any, store: JobStore, settings: Settings
) -> None:
    """Somebody is upgrading; one that asks for a newer promptmill is broken."""
    del store
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    state, detail = examined("database")
    assert state == "warning", detail
    assert "has schema 9999, which still allows this version" in detail
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99.0' WHERE key = 'oldest_worker'")
    state, detail = examined("database")
    assert state == "broken"
    assert "upgrade promptmill here" in detail


def test_a_broken_part_ends_no_other_check(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on it says so."""
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "sqlite:////proc/no/such.db")
    checks = {row["check"]: row for row in json.loads(invoke("doctor", "--json").stdout)["checks"]}
    assert checks["database"]["state"] == "broken"
    for part in ("clock", "tunings", "live workers"):
        assert checks[part]["detail"] == "not examined: see database"
    assert checks["redis"]["state"] == "ok"
