"""The compose file and the Dockerfile: what can be checked without an engine that runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.settings import SETTINGS

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services, merged and with their anchors in place."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def tool(name: str) -> str:
    """Return the path of a program of the virtual environment."""
    return str(Path(sys.executable).parent / name)


def test_the_compose_file_fits_its_schema() -> None:
    """The specification's own."""
    checked = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_the_dockerfile_passes_a_linter() -> None:
    """Hadolint finds nothing."""
    checked = subprocess.run(
        [tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_no_password_has_a_default(services: dict[str, Any]) -> None:
    """Whoever sets none gets a sentence instead of a farm that everybody can use."""
    text = COMPOSE.read_text()
    named = re.findall(r"\$\{(\w*PASSWORD)[^}]*\}", text)
    assert set(named) == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
    assert not re.search(r"\$\{\w*PASSWORD:?-", text)
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published), "that opens a server to the network"


def test_every_setting_is_one_that_there_is(services: dict[str, Any]) -> None:
    """A name that is misspelt would be refused when the container starts, which nobody here can see."""
    known = {f"PROMPTMILL_{name.upper()}" for name in SETTINGS}
    for service in ("migrate", "worker", "worker-cpu", "producer", "metrics"):
        assert set(services[service]["environment"]) <= known


def test_what_is_copied_into_the_images_is_there_and_not_ignored() -> None:
    """And with it all that the wheel needs."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)


def test_targets_and_commands_exist(services: dict[str, Any]) -> None:
    """Each service's target is in the Dockerfile, and workers get longer to stop than they take."""
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in targets
    for name in ("worker", "worker-cpu"):
        command = services[name]["command"]
        assert float(command[command.index("--drain-timeout") + 1]) < 360
        assert services[name]["stop_grace_period"] == "6m"


def test_every_pin_can_be_audited() -> None:
    """`make audit` asks about exactly the versions of constraints.txt: each names one, and none twice."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [re.split("==", pin)[0] for pin in pins]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+!-]+( ;.*)?", pin)] == []
    assert len(names) == len(set(names))
    assert "--requirement constraints.txt" in (ROOT / "Makefile").read_text()
