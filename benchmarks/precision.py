"""Precision, layout and compilation of the UNet: what each is worth, and what the pictures lose.

Speed: forward passes of a UNet of Stable Diffusion 1.x's size (860 M parameters, random weights, 64x64
latents), each variant at several R, beside what this machine's own matrix product reaches in that dtype. The
first line is diffusers' default: float32, two lanes, eager; `bfloat16` is diffusers' in that dtype, and
`mixed_bfloat16` what a worker takes on CPUs (`worker.models.mixed`). Then a pass's time by kinds of work, and
what each reaches of that product. Quality: PSNR of pictures of the project's model against float32,
samplers that add noise included; the worst of all jobs counts.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from engines import demo_model, device_arguments, larger_model, sd_sized, settle
from report import median, seconds, show
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.engine.forward import Lanes, predict_noise
from worker.engine.trial import native_group, random_lanes, try_lanes
from worker.models.device import MIXED, fast_dtypes
from worker.models.load import LoadedModel
from worker.models.variant import Variant, launched, run_as

SAMPLERS = ("lms", "euler", "euler_a", "dpmpp_2m", "dpm2_a")
# What torch calls them on CPUs and on GPUs; everything else is no product.
KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "linear layers": ("addmm", "aten::mm"),
    "attention": ("scaled_dot_product", "attention_forward"),
}
PATIENCE = 120.0  # seconds; a variant whose forward pass takes this long is not tried with more lanes


def flop_of_a_lane(model: LoadedModel) -> dict[str, float]:
    """Count the floating point operations of one lane of a forward pass, by kind."""
    # The CPU's own flash attention is not counted; the plain one is the same work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try_lanes(model, 2)
    names = {"aten.convolution": "convolutions", "aten.bmm": "attention"}
    found: dict[str, float] = defaultdict(float)
    for name, count in counter.get_flop_counts()["Global"].items():
        found[names.get(str(name), "linear layers")] += count / 8  # four passes of two lanes
    return found


def matmul_peak(model: LoadedModel, dtype: torch.dtype) -> float:
    """Measure the operations/s of a large matrix product in `dtype`."""
    size = 2048 if model.device.type == "cpu" else 8192
    a, b = (torch.randn(size, size).to(model.device, dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        settle(model)

    return 2 * size**3 / median([seconds(product) for _ in range(7)])


def speed(
    model: LoadedModel, flop: float, ways: list[tuple[Variant, str]], lanes: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Time every variant at every R; `flop` is what a lane takes."""
    peaks = {way.dtype: matmul_peak(model, products_of(way)) for way, _ in ways}
    rows: list[dict[str, Any]] = []
    for way, launch in ways:
        variant = launched(as_it_is(model, way), launch)
        # A compiler takes minutes for each shape.
        for count in lanes if launch != "compiled" else lanes[-1:]:
            trial = try_lanes(variant, count)
            rate = trial.lanes_per_second
            rows.append(
                {
                    "dtype": way.dtype,
                    "layout": way.layout,
                    "launch": launch,
                    "R": count,
                    "s a lane": 1 / rate,
                    "share of matmul peak": rate * flop / peaks[way.dtype],
                    "exact": trial.exact,
                    "times diffusers' default": rate / rows[0]["rate"] if rows else 1.0,
                    "rate": rate,
                }
            )
            if count / rate > PATIENCE:
                break
    for row in rows:
        del row["rate"]
    return rows


def where(model: LoadedModel, flop: dict[str, float], way: Variant, lanes: int) -> list[dict[str, Any]]:
    """Divide a forward pass's time by kinds of operation, and relate each to the matrix product's peak.

    Args:
        model: in float32, or as a GPU's worker loads it.
        flop: what a lane takes, by kind.
        way: in which it runs.
        lanes: R.
    """
    peak = matmul_peak(model, products_of(way))
    variant = as_it_is(model, way)
    batch = Lanes.stack(random_lanes(variant, lanes, native_group(variant)))
    predict_noise(variant, batch, width=lanes)
    with profile() as profiler, torch.no_grad():
        predict_noise(variant, batch, width=lanes)
        settle(variant)
    on_cpu = model.device.type == "cpu"
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a GPU's kernel, whose time the operation has that launched it
        kind = next((kind for kind, names in KINDS.items() if any(n in event.key for n in names)), "other")
        spent[kind] += (event.self_cpu_time_total if on_cpu else event.self_device_time_total) / 1e6
    rates = {kind: flop[kind] * lanes / spent[kind] for kind in KINDS if spent[kind]}
    return [
        {
            "dtype": way.dtype,
            "R": lanes,
            "operations": kind if kind in KINDS else "sums, norms, activations, copies",
            "s a lane": spent[kind] / lanes,
            "share of the time": spent[kind] / sum(spent.values()),
            "share of matmul peak": rates[kind] / peak if kind in rates else "",
        }
        for kind in (*KINDS, "other")
    ]


def products_of(way: Variant) -> torch.dtype:
    """Return the dtype of its products."""
    dtype: torch.dtype = getattr(torch, way.dtype.removeprefix("mixed_"))
    return dtype


def as_it_is(model: LoadedModel, way: Variant) -> LoadedModel:
    """Return the model as a worker runs a variant, or in another dtype as a whole, as diffusers does."""
    if way.dtype in (model.precision, MIXED):
        return run_as(model, way)
    dtype = products_of(way)
    whole = replace(model, unet=copy.deepcopy(model.unet).to(dtype), dtype=dtype)
    return run_as(whole, way)


def quality(model: LoadedModel, jobs: list[JobParameters]) -> list[dict[str, Any]]:
    """Compare pictures in bfloat16 with the same in float32."""
    kinds = {"the UNet": "bfloat16"}
    if model.device.type == "cpu":
        kinds = {"the UNet's products": MIXED} | kinds
    ways = {name: as_it_is(model, Variant(dtype=dtype, layout="contiguous")) for name, dtype in kinds.items()}
    ways["UNet, VAE and text encoder"] = demo_model("bfloat16", model.device.type)
    right = _pictures(model, jobs)
    rows = []
    for name, way in ways.items():
        found = [_psnr(a, b) for a, b in zip(right, _pictures(way, jobs), strict=True)]
        rows.append(
            {"in bfloat16": name, "jobs": len(jobs), "PSNR min dB": min(found), "median dB": median(found)}
        )
    return rows


def _pictures(model: LoadedModel, jobs: list[JobParameters]) -> list[np.ndarray[Any, Any]]:
    engine = Engine(model, mode="throughput", lanes=8)
    tickets = [engine.submit(job) for job in jobs]
    while engine.step():
        pass
    return [ticket.future.result(timeout=0).pixels for ticket in tickets]


def _psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def main() -> None:
    """Print the tables."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model("float32", options.device)
    dtypes = ["float32"]
    if fast_dtypes(model.device) or not options.quick:
        dtypes += ["bfloat16", *([MIXED] if model.device.type == "cpu" else [])]
    ways = [
        (Variant(dtype=dtype, layout=layout), "eager")
        for dtype in dtypes
        for layout in ("contiguous", "channels_last")
    ]
    if not options.quick:
        launches = ["compiled"] if model.device.type == "cpu" else ["cuda_graphs", "compiled"]
        ways += [(Variant(dtype=dtypes[-1], layout="contiguous"), launch) for launch in launches]
    measured = larger_model(model) if options.quick else sd_sized(model)
    lanes = (2, 4, 8) if model.device.type == "cpu" else (2, 8, 16, 32)
    flop = flop_of_a_lane(measured)
    table = speed(measured, sum(flop.values()), ways, (2, 8) if options.quick else lanes)
    show(table, as_json=False)
    print()
    times = [
        row
        for dtype, count in {dtypes[-1]: 8, "float32": 2}.items()
        for row in where(measured, flop, Variant(dtype=dtype, layout="contiguous"), count)
    ]
    jobs = [
        JobParameters(
            prompt="a watercolor painting of an otter",
            seed=seed,
            sampler=SAMPLERS[seed % len(SAMPLERS)],
            schedule="default",
            num_inference_steps=10 if options.quick else 30,
            guidance_scale=5.0,
        )
        for seed in range(5 if options.quick else 50)
    ]
    show(times, as_json=False)
    print()
    lost = quality(model, jobs)
    show(lost, as_json=False)
    if options.json:
        print(json.dumps({"rows": table, "times": times, "quality": lost}))


if __name__ == "__main__":
    main()
