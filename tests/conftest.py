"""What all tests share: the environment that a supervisor gives its worker processes."""

from __future__ import annotations

import os

from worker.nursery import ENVIRONMENT

# Read when torch is loaded, so it has to be set before any test imports it.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
