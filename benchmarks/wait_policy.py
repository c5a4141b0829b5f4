"""OpenMP threads that spin, that sleep, and one alone: the demo UNet at 8 lanes, idle and beside work."""

from __future__ import annotations

import os
import subprocess
import sys

from report import arguments, median, show

FORWARDS = """
import sys, time, torch
from diffusers import UNet2DConditionModel
from storage.models import builtin_model_path
unet = UNet2DConditionModel.from_pretrained(builtin_model_path() / "unet", torch_dtype=torch.float32).eval()
latents, embeds, timesteps = torch.randn(8, 4, 16, 16), torch.randn(8, 32, 128), torch.full((8,), 500.0)
with torch.no_grad():
    unet(latents, timesteps, embeds)
    began = time.perf_counter()
    for _ in range(int(sys.argv[1])):
        unet(latents, timesteps, embeds)
print((time.perf_counter() - began) / int(sys.argv[1]))
"""
BUSY = "while True: pass"
WAYS: dict[str, dict[str, str]] = {
    "spin, ms": {},  # without a policy libgomp spins for a while, then sleeps
    "sleep, ms": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread, ms": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Measure all ways in turn, without and with one busy process beside."""
    options = arguments(main.__doc__ or "").parse_args()
    runs, forwards = (1, 5) if options.quick else (3, 20)
    rows = []
    for beside in (0, 1):
        rivals = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        try:
            for _ in range(runs):
                for way, values in times.items():
                    values.append(_forward(WAYS[way], forwards))
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
        rows.append(
            {"busy processes beside": beside} | {way: median(values) * 1000 for way, values in times.items()}
        )
    show(rows, as_json=options.json)


def _forward(way: dict[str, str], forwards: int) -> float:
    ours = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | way
    done = subprocess.run(
        [sys.executable, "-c", FORWARDS, str(forwards)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


main()
