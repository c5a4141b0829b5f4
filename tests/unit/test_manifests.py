"""Kubernetes manifests, systemd units and the Slurm script: what can be checked without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from producer.cli import cli
from storage.database import upgrade
from storage.parameters import JobParameters
from storage.settings import Settings
from storage.stores import open_job_store
from tests.servers import Postgres
from tests.unit.test_deployment import COMPOSE, ROOT, tool

KUBERNETES = "1.37"  # whose schemas are asked

KUSTOMIZED = ("base", "worker", "overlays/example")
MODELS = ("sd15", "sdxl")  # of the example


def kustomize(folder: str) -> list[dict[str, Any]]:
    """Build a kustomization as `kubectl apply -k` does, and return its objects."""
    program = shutil.which("kubectl") or shutil.which("kustomize")
    if program is None:
        pytest.skip("neither kubectl nor kustomize is on this machine, and no package ships them")
    words = ["kustomize"] if Path(program).name == "kubectl" else ["build"]
    built = subprocess.run(
        [program, *words, str(ROOT / "deploy" / "kubernetes" / folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def manifests() -> list[dict[str, Any]]:
    """Return all objects as they lie in the repository, patches left out."""
    files = sorted((ROOT / "deploy" / "kubernetes").rglob("*.yaml"))
    found = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    return [each for each in found if each.get("kind") not in (None, "Kustomization", "Component")]


def containers() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each pod's spec and its only container, by the name of what makes it."""
    found = {}
    for each in manifests():
        if each["kind"] in ("Deployment", "Job"):
            spec = each["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            found[each["metadata"]["name"]] = (spec, container)
    return found


@pytest.mark.parametrize("folder", KUSTOMIZED)
def test_the_kustomizations_build(folder: str) -> None:
    """And what refers to another object finds it."""
    objects = kustomize(folder)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    assert "Deployment" in {kind for kind, _ in names}
    for each in objects:
        if each["kind"] == "ScaledObject":
            assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in names
            asked = each["spec"]["triggers"][0]["authenticationRef"]["name"]
            assert ("TriggerAuthentication", asked) in names
        if each["kind"] in ("Deployment", "Job"):
            spec = each["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            for source in container["envFrom"]:
                if "configMapRef" in source:
                    # The farm's, in `base`: what is built of workers alone has none.
                    assert folder == "worker" or ("ConfigMap", source["configMapRef"]["name"]) in names
                else:  # a Secret is never in the repository
                    assert source["secretRef"]["name"] == "promptmill"
            claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec["volumes"]]
            assert {("PersistentVolumeClaim", claim) for claim in claims if claim} <= names


def test_the_example_changes_what_it_says() -> None:
    """Patches name places by number: another argument or volume ahead of them would be replaced instead."""
    objects = {(each["kind"], each["metadata"]["name"]): each for each in kustomize("overlays/example")}
    (ours,) = (each for each in manifests() if each["kind"] == "ScaledObject")
    query = ours["spec"]["triggers"][0]["metadata"]["query"]
    (settings,) = (each["data"] for (kind, _), each in objects.items() if kind == "ConfigMap")
    known = [text.partition("=")[0] for text in settings["PROMPTMILL_MODELS"].split(",")]
    assert known == list(MODELS)
    for model in MODELS:
        spec = objects["Deployment", f"promptmill-worker-{model}"]["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["args"][:4] == ["--model", model, "--devices", "all"]
        assert container["image"] == "registry.example/promptmill-worker:0.1.0"
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "promptmill-models"}
        assert volumes["home"] == {"name": "home", "emptyDir": {}}
        scaled = objects["ScaledObject", f"promptmill-worker-{model}"]["spec"]
        assert scaled["triggers"][0]["metadata"]["query"] == query.replace("'demo'", f"'{model}'")
        assert scaled["scaleTargetRef"]["name"] == f"promptmill-worker-{model}"


def test_two_models_of_a_farm_have_nothing_to_do_with_each_other() -> None:
    """Neither Deployment nor budget counts the other's pods; what a farm has once is there once."""
    objects = kustomize("overlays/example")

    def names(kind: str) -> list[str]:
        return sorted(each["metadata"]["name"] for each in objects if each["kind"] == kind)

    workers = [f"promptmill-worker-{model}" for model in MODELS]
    assert names("Deployment") == ["promptmill-metrics", *workers], "two would report every job twice"
    assert names("PodDisruptionBudget") == names("ScaledObject") == workers
    assert names("Job") == ["promptmill-migrate"]
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"].items()
        for each in objects
        if each["kind"] == "Deployment"
    }
    for each in objects:
        if each["kind"] in ("Deployment", "PodDisruptionBudget"):
            wanted = each["spec"]["selector"]["matchLabels"].items()
            assert [name for name, own in labels.items() if wanted <= own] == [each["metadata"]["name"]]
    policies = [
        each["spec"]["podSelector"]["matchLabels"] for each in objects if each["kind"] == "NetworkPolicy"
    ]
    assert policies
    assert all(policy.items() <= own for policy in policies for own in labels.values())


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_manifests_fit_the_schemas_of_kubernetes(manifest: dict[str, Any]) -> None:
    """Those of the API itself, strictly; KEDA's are not in a package that could be had."""
    if manifest["apiVersion"].startswith("keda.sh/"):
        assert set(manifest["spec"]) <= {
            "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod",
            "advanced", "triggers", "secretTargetRef",
        }  # fmt: skip
        return
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_no_object_holds_a_secret() -> None:
    """Passwords come from a Secret that somebody else makes."""
    assert not [each for each in manifests() if each["kind"] == "Secret"]
    text = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.*") if path.is_file())
    assert not re.search(r"(password|secret_access_key)\s*[:=]\s*[A-Za-z0-9]{6}", text, re.IGNORECASE)


def test_pods_may_do_nothing_that_they_need_not() -> None:
    """The restricted pod security standard, and a root that cannot be written."""
    for spec, container in containers().values():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/data/home", "/tmp"} <= paths, "what is written to has to be a volume"  # noqa: S108


def test_a_pod_drains_before_it_is_killed() -> None:
    """And a systemd unit, and a Slurm task."""
    spec, container = containers()["promptmill-worker"]
    words = container["args"]
    assert float(words[words.index("--drain-timeout") + 1]) + 30 <= spec["terminationGracePeriodSeconds"]
    unit = (ROOT / "deploy" / "systemd" / "promptmill-worker@.service").read_text()
    assert "--drain-timeout 300" in unit
    assert "TimeoutStopSec=360" in unit
    script = (ROOT / "deploy" / "slurm" / "promptmill.sbatch").read_text()
    assert "--signal=B:TERM@600" in script
    assert "--drain-timeout 540" in script


def commands() -> list[list[str]]:
    """Return every promptmill command that a deployment file calls, without the program's name."""
    services_ = yaml.safe_load(COMPOSE.read_text())["services"]
    found = [services_["migrate"]["command"], services_["metrics"]["command"]]
    found += [["worker", "start", *services_[name]["command"]] for name in ("worker", "worker-cpu")]
    for name, (_, container) in containers().items():
        ours = container["args"]
        found.append(["worker", "start", *ours] if name == "promptmill-worker" else ours)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in container.get(probe, {}):
                found.append(container[probe]["exec"]["command"][1:])
    for unit in (ROOT / "deploy" / "systemd").glob("*.service"):
        (line,) = re.findall(r"^ExecStart=\S+/promptmill (.*)$", unit.read_text(), re.MULTILINE)
        found.append(line.replace("%i", "0").replace("$PROMPTMILL_WORKER_FLAGS", "").split())
    (health,) = re.findall(r"^ +CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [*found, json.loads(health)[1:]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_can_be_read(words: list[str]) -> None:
    """By the command line's own parser: a flag that is not there would be found by whoever deploys."""
    words = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in words]
    command: click.Command = cli
    context = cli.make_context("promptmill", list(words))
    while isinstance(command, click.Group):
        # Below its parent: click keeps what a command calls its --help.
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command, context = found, found.make_context(name, list(words), parent=context)


def test_the_backlog_that_workers_are_scaled_by_is_that_of_the_database(postgres: Postgres) -> None:
    """KEDA's query, on a database with jobs of every kind."""
    (scaled,) = (each for each in manifests() if each["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    settings = Settings(database_url=postgres.make_database("keda"))
    upgrade(settings)
    store = open_job_store(settings)

    def submit(count: int, model: str = "demo") -> str:
        submission, _ = store.add_submission(model=model, source="test")
        store.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=n) for n in range(count)])
        return store.open_submission(submission.id).id

    def backlog() -> int:
        with postgres.connect("keda") as connection:
            row = connection.execute(query).fetchone()
        return int(row[0]) if row else -1

    try:
        assert backlog() == 0
        submit(7)
        store.take_for_dispatch("demo", window=3)
        assert backlog() == 7
        submit(5, model="other")
        store.pause(submit(4))
        store.cancel(submit(4))
        assert backlog() == 7
        submit(2000)
        assert backlog() == 1000, "it counts no further than workers are needed"
    finally:
        store.close()
        postgres.drop_database("keda")


def test_the_systemd_units_can_be_loaded(tmp_path: Path) -> None:
    """By systemd's own checker, with a program that is there in the place of ours."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine")
    for unit in (ROOT / "deploy" / "systemd").iterdir():
        text = unit.read_text().replace("/opt/promptmill/bin/promptmill", sys.executable)
        (tmp_path / unit.name.replace("@.", "@0.")).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    checked = subprocess.run([program, "verify", *units], capture_output=True, text=True, check=False)
    complaints = [
        line for line in checked.stderr.splitlines() if str(tmp_path) in line or "promptmill" in line
    ]
    assert complaints == []


def test_the_shell_script_passes_a_linter() -> None:
    """ShellCheck finds nothing."""
    script = ROOT / "deploy" / "slurm" / "promptmill.sbatch"
    checked = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


FAKE = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
case "$1" in
worker)
    trap 'echo drained >> "$CALLS"; exit 0' TERM
    touch "$READY"
    while :; do sleep 0.05; done ;;
wait) [ ! -e "$DONE" ] && exit 3; exit "$(cat "$DONE")" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm task, with a promptmill that writes down how it is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "promptmill").write_text(FAKE)
    (tmp_path / "bin" / "promptmill").chmod(0o755)
    (tmp_path / "promptmill.env").write_text(
        "PROMPTMILL_DATABASE_URL=postgresql://db/mill\n"
        "PROMPTMILL_REDIS_URL=redis://queue\nPROMPTMILL_STORE_URL=/shared\n"
    )
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3",
        "PROMPTMILL_ENV": str(tmp_path / "promptmill.env"), "CALLS": str(tmp_path / "calls"),
        "READY": str(tmp_path / "ready"), "DONE": str(tmp_path / "done"),
    }  # fmt: skip


def start_slurm_task(environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    """Start the script, and wait until its worker runs."""
    script = str(ROOT / "deploy" / "slurm" / "promptmill.sbatch")
    task = subprocess.Popen(["bash", script, *words], env=environment)  # noqa: S607  (where bash is)
    while not Path(environment["READY"]).exists():
        assert task.poll() is None
        time.sleep(0.02)
    return task


def test_a_slurm_task_drains_when_its_time_is_over(slurm: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM reaches the worker, the script waits for it, and leaves nothing on the node's disk."""
    task = start_slurm_task(slurm)
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=60) == 0
    called, drained = Path(slurm["CALLS"]).read_text().splitlines()
    assert called == "worker start --devices all --name slurm-17-3 --drain-timeout 540"
    assert drained == "drained"
    assert list(tmp_path.glob("promptmill-*")) == []


@pytest.mark.parametrize("said", [0, 1, 2])
def test_a_slurm_task_ends_with_its_submission(said: int, slurm: dict[str, str], tmp_path: Path) -> None:
    """A GPU is given back as soon as nothing is left to render, and not for a database that is away (3)."""
    task = start_slurm_task({**slurm, "PROMPTMILL_MODEL": "sd15"}, "portraits")
    called = Path(slurm["CALLS"])
    while called.read_text().count("wait portraits") < 3:
        assert task.poll() is None
        time.sleep(0.02)
    (tmp_path / "code").write_text(str(said))
    (tmp_path / "code").rename(slurm["DONE"])
    assert task.wait(timeout=60) == 0
    calls = called.read_text().splitlines()
    assert calls[-1] == "drained"


def test_a_slurm_task_without_servers_says_what_to_set(slurm: dict[str, str]) -> None:
    """Workers on many hosts share a database."""
    Path(slurm["PROMPTMILL_ENV"]).write_text("")
    script = str(ROOT / "deploy" / "slurm" / "promptmill.sbatch")
    done = subprocess.run(["bash", script], env=slurm, capture_output=True, text=True, check=False)  # noqa: S607  (likewise)
    assert done.returncode != 0
    assert "PROMPTMILL_DATABASE_URL: set it in PROMPTMILL_ENV" in done.stderr
