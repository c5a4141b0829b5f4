"""What a host has to render on, and which worker processes it gets: one per device. Never imports torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

from storage.errors import BadInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One device: what its worker process is told, and what it may see.

    Attributes:
        kind: auto, cpu, mps or cuda.
        environment: laid over the process's own, e.g. its `CUDA_VISIBLE_DEVICES`.
    """

    kind: str
    environment: dict[str, str] = field(default_factory=dict)


def list_devices(wanted: str) -> list[Device]:
    """Turn `--devices` into devices; `auto` leaves the choice of one device to its process.

    Numbers are nvidia-smi's; `all` keeps to what CUDA_VISIBLE_DEVICES leaves, if it is set.

    Raises:
        BadInputError: for `all` or GPU numbers where no such NVIDIA GPU is.
    """
    if wanted in ("auto", "cpu", "mps"):
        return [Device(kind=wanted)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted == "all" and visible:  # a cluster's scheduler has chosen already
        return [Device(kind="cuda", environment={"CUDA_VISIBLE_DEVICES": one}) for one in visible.split(",")]
    found = nvidia_gpus()
    numbers = found if wanted == "all" else list(dict.fromkeys(wanted.split(",")))  # one process a GPU
    missing = [number for number in numbers if number not in found]
    if missing or not numbers:
        here = f"GPUs here: {', '.join(found)}" if found else "nvidia-smi lists no GPU here"
        raise BadInputError(
            f"There is no GPU {', '.join(missing) or 'at all'} ({here}); try --devices cpu or auto."
        )
    # nvidia-smi counts by PCI bus; CUDA by itself would count the fastest GPU first.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return [Device(kind="cuda", environment={**order, "CUDA_VISIBLE_DEVICES": number}) for number in numbers]


def usable_cores() -> int:
    """Count the cores that this process may use; `os.cpu_count` counts the others too."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nvidia_gpus() -> list[str]:
    """Return the numbers of the GPUs that nvidia-smi lists; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run(  # noqa: S603  (a fixed command line)
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
