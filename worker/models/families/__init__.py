"""The families of models whose loop is shared: what each is beside its UNet."""

from __future__ import annotations

from worker.models.families.protocol import Family
from worker.models.families.sd import StableDiffusion
from worker.models.families.sdxl import StableDiffusionXL

FAMILIES: dict[str, Family] = {"sd": StableDiffusion(), "sdxl": StableDiffusionXL()}  # by their records' name
