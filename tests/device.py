"""Where the reference tests render: `PROMPTMILL_TEST_DEVICE`, which `make test-gpu` sets, or the CPU."""

from __future__ import annotations

import os

from worker.models.device import choose_device, make_repeatable

DEVICE = choose_device(os.environ.get("PROMPTMILL_TEST_DEVICE", "cpu"))
make_repeatable()  # else a GPU multiplies in fewer bits than float32 has
