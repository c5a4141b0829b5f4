"""Make the model: `make model`, or `python -m training`; goes on where an earlier run was stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.errors import TrainingError
from training.fit import RANKS
from training.maker import Maker
from training.plan import FULL, QUICK


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--work", type=Path, help="pictures, checkpoints and logs: out/model")
    parser.add_argument("--model", type=Path, help="where the model goes: models/demo")
    parser.add_argument("--seed", type=_seed, default=32, help="of every draw, 0 or more: 32")
    parser.add_argument(
        "--quick", action="store_true", help=f"a few minutes with {RANKS} cores: a test, no model"
    )
    options = parser.parse_args()
    # A quick run makes no model worth keeping, so it must not land on the one that is shipped.
    work = options.work or Path("out/model-quick" if options.quick else "out/model")
    model = options.model or (work / "demo" if options.quick else Path("models/demo"))
    try:
        work, model = work.resolve(), model.resolve()
        work.mkdir(parents=True, exist_ok=True)
        Maker(work, model, QUICK if options.quick else FULL, options.seed).make()
    except (TrainingError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the same command goes on from here.\n")
        sys.exit(130)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more.")
    return int(text)


if __name__ == "__main__":
    main()
