"""Which worker processes a host gets, told by a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.devices import list_devices
from storage.errors import BadInputError


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two NVIDIA GPUs, as far as nvidia-smi can tell."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


@pytest.mark.parametrize("wanted", ["auto", "cpu", "mps"])
def test_one_device_is_left_to_its_process(wanted: str) -> None:
    """Without GPU numbers there is one process, and nothing is laid over its environment."""
    (device,) = list_devices(wanted)
    assert (device.kind, device.environment) == (wanted, {})


@pytest.mark.parametrize(("wanted", "numbers"), [("all", ["0", "1"]), ("1", ["1"]), ("1,0,1", ["1", "0"])])
@pytest.mark.usefixtures("gpus")
def test_each_gpu_has_a_process_that_sees_no_other(wanted: str, numbers: list[str]) -> None:
    """One process a GPU, however often it was named, counted as nvidia-smi counts."""
    devices = list_devices(wanted)
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices] == numbers
    assert {device.environment["CUDA_DEVICE_ORDER"] for device in devices} == {"PCI_BUS_ID"}
    assert {device.kind for device in devices} == {"cuda"}


@pytest.mark.usefixtures("gpus")
def test_all_means_those_that_a_cluster_gave_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA_VISIBLE_DEVICES is set already, `all` takes no other GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b,3")
    found = [device.environment for device in list_devices("all")]
    assert found == [{"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}, {"CUDA_VISIBLE_DEVICES": "3"}]


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_here_is_refused_with_those_that_are() -> None:
    """The sentence names what is missing and what is there."""
    with pytest.raises(BadInputError, match=r"no GPU 7 \(GPUs here: 0, 1\)"):
        list_devices("0,7")


@pytest.mark.parametrize("script", ["exit 9", "exit 0"])
def test_a_host_without_a_gpu_says_so(gpus: Path, script: str) -> None:
    """A driver that is broken, or sees nothing, is no traceback."""
    gpus.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(BadInputError, match="nvidia-smi lists no GPU here"):
        list_devices("all")
