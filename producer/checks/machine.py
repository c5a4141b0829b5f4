"""Checks of this machine: the GPU's driver, what torch can do here, and the clock.

torch is asked in a process of its own (`python -m worker.facts`): the command line never imports it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from producer.checks.finding import BROKEN, OK, WARNING, Verdict
from producer.output import count_of, size_of
from producer.session import Session
from storage.devices import nvidia_gpus

SKEW = 2.0  # seconds between two clocks from which on a warning is due
TORCH_PATIENCE = 180.0  # seconds: importing torch from a cold disk takes one of them
_QUERY = "index,name,driver_version,memory.total"


def gpu_driver(_session: Session) -> Verdict:
    """Which NVIDIA GPUs the driver has, and whether it answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return OK, "no nvidia-smi on this machine; workers here render without an NVIDIA GPU"
    try:
        said = subprocess.run(  # noqa: S603  (a fixed command line)
            [program, f"--query-gpu={_QUERY}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return (
            BROKEN,
            f"nvidia-smi does not answer ({type(error).__name__}); restart the driver or the machine",
        )
    if said.returncode:
        reason = " ".join((said.stdout + said.stderr).split())[:200] or f"exit code {said.returncode}"
        return (
            BROKEN,
            f"the driver does not work: {reason}; reboot after an upgrade of it, or install it anew",
        )
    found = [[part.strip() for part in line.split(",")] for line in said.stdout.splitlines() if line.strip()]
    if not found:
        return WARNING, "nvidia-smi lists no GPU; check the machine, or what its container may see"
    gpus = ", ".join(f"{number} {name} ({memory})" for number, name, _, memory in found)
    return OK, f"driver {found[0][2]}: {gpus}"


def torch(_session: Session) -> Verdict:
    """Which build of torch is here, and which dtypes each device really multiplies in."""
    if find_spec("torch") is None:
        return OK, "not installed, so nothing is rendered on this machine"
    facts = ask_torch()
    if "problem" in facts:
        return BROKEN, f"{facts['problem']}; install it anew"
    build = f"torch {facts['torch']} ({facts['build']})"
    devices = ", ".join(map(_device, facts["devices"]))
    unable = [device for device in facts["devices"] if not device["dtypes"].get("float32", {}).get("works")]
    if unable:
        reason = unable[0]["dtypes"].get("float32", {}).get("reason", "it does not say why")
        return BROKEN, (
            f"{build} cannot compute on {unable[0]['name']}: {reason}; install a build for this device"
        )
    gpus = [device for device in facts["devices"] if device["type"] == "cuda"]
    listed = nvidia_gpus()
    if listed and not gpus and os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        return WARNING, (
            f"{build} sees none of the {count_of(len(listed), 'GPU')} that nvidia-smi lists; install a CUDA "
            f"build that this driver can run"
        )
    return OK, f"{build}; {devices}; --dtype auto is {facts['auto']}"


def _device(device: dict[str, Any]) -> str:
    works = [name for name, trial in device["dtypes"].items() if trial["works"]]
    fast = f", fast in {' and '.join(device['fast'])}" if device["fast"] else ""
    memory = f", {size_of(device['memory'])}" if device["memory"] else ""
    return f"{device['name']} ({device['kind']}{memory}: {', '.join(works)}{fast})"


def ask_torch() -> dict[str, Any]:
    """Return what `python -m worker.facts` says; `problem` alone where it says nothing."""
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-m", "worker.facts"],
            capture_output=True, text=True, timeout=TORCH_PATIENCE, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"torch does not load ({type(error).__name__})"}
    if said.returncode:
        last = (said.stderr.strip().splitlines() or [f"exit code {said.returncode}"])[-1]
        return {"problem": f"torch does not load: {last.strip()[:300]}"}
    facts: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return facts


def clock(session: Session) -> Verdict:
    """Whether this machine, the database and the workers' hosts agree on what time it is."""
    before = datetime.now(UTC)
    theirs = session.jobs.clock()
    after = datetime.now(UTC)
    skew = (theirs - (before + (after - before) / 2)).total_seconds()
    # A beat from the future is of a fast clock; one from the past may only be old.
    ahead = {
        worker.host: (worker.beat_at - theirs).total_seconds()
        for worker in session.jobs.workers(alive_only=True)
        if (worker.beat_at - theirs).total_seconds() > SKEW
    }
    wrong = [] if abs(skew) <= SKEW else [f"this machine's is {_apart(-skew)} the database's"]
    wrong += [f"that of {host} is {_apart(seconds)} it" for host, seconds in sorted(ahead.items())]
    if wrong:
        return WARNING, (
            f"clocks differ: {', '.join(wrong)}; let NTP set them, or ages, rates and pauses before a "
            f"retry are wrong (leases are not: nobody measures them by these clocks)"
        )
    if not session.settings.database_url:
        return OK, "one machine, one clock"
    return OK, f"{abs(skew):.1f} s from the database's"


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}"
