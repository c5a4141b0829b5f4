"""How often LMS draws what it is asked, by its order: the judge's answer to why it breaks at guidance 7.5.

LMS of order 1 is Euler, order 4 is diffusers' default. All orders solve the same equation, so where only the
high ones fail, the method is unstable at these steps (benchmarks/guidance_stiffness.py), and the model does
know what to draw. Needs the judge that `make model` trained into its work folder.
"""

from __future__ import annotations

import sys
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
from report import arguments, show

from storage.models import builtin_model_path
from training.classifier import judge
from training.data import to_labels
from training.evaluate import Cell, load_pipeline, render, unseen

GUIDANCE = 7.5


def right(pipeline: Any, classifier: Path, count: int, *, schedule: str, steps: int, order: int) -> float:
    """Return the share of held-out triples with all three right."""
    triples = unseen("triples", count)
    cell = Cell(asked="triples", sampler="lms", schedule=schedule, guidance=GUIDANCE)
    lms = diffusers.LMSDiscreteScheduler
    # The pipeline has no argument for the order.
    with mock.patch.object(lms, "step", partialmethod(lms.step, order=order)):
        pixels = np.concatenate(list(render(pipeline, triples, cell, steps=steps)))
    return float(judge(classifier, pixels, to_labels(triples)).all(axis=1).mean())


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=builtin_model_path())
    parser.add_argument("--work", type=Path, default=Path("out/model"), help="of `make model`: has the judge")
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    classifier = options.work / "classifier.pt"
    if not classifier.exists():
        sys.exit(f"Error: there is no {classifier}; run `make model` first, or name its folder with --work.")
    settings = [("default", 30, order) for order in (1, 2, 3, 4)]
    settings += [("default", 60, 4), ("default", 120, 4), ("karras", 30, 4)]
    count = 4 if options.quick else options.prompts
    pipeline = load_pipeline(options.model)
    rows = [
        {"schedule": schedule, "steps": steps, "order": order}
        | {"right": right(pipeline, classifier, count, schedule=schedule, steps=steps, order=order)}
        for schedule, steps, order in (settings[:2] if options.quick else settings)
    ]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
