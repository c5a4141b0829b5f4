"""How long the commands take that people type all day, against the start of a script that uses diffusers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from report import arguments, fresh_home, median, promptmill, seconds, show

PROMPTS = 1_632  # as many as PartiPrompts has


def main() -> None:
    """Measure `--help`, `submit` of 1,632 prompts, `status`, and `import diffusers` in turn."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--prompts", type=Path, help="a text file to submit instead of made-up lines")
    options = parser.parse_args()
    runs = 3 if options.quick else 9
    given = (
        options.prompts.read_text()
        if options.prompts
        else "".join(f"A watercolor painting of an otter, number {number}\n" for number in range(PROMPTS))
    )
    lines = sum(bool(line.strip()) for line in given.splitlines())
    rival = "from diffusers import StableDiffusionPipeline"
    times: dict[str, list[float]] = {"--help": [], f"submit {lines:,}": [], "status": [], rival: []}
    with fresh_home() as environment:
        for _ in range(runs):
            times["--help"].append(seconds(lambda: promptmill(environment, "--help")))
            times[f"submit {lines:,}"].append(
                seconds(lambda: promptmill(environment, "submit", "-", "--model", "demo", given=given))
            )
            times["status"].append(seconds(lambda: promptmill(environment, "status")))
            times[rival].append(seconds(lambda: subprocess.run([sys.executable, "-c", rival], check=True)))
    loop = median(times[rival])
    show(
        [
            {
                "command": command,
                "median s": median(values),
                "worst s": max(values),
                "of the rival's start": median(values) / loop,
            }
            for command, values in times.items()
        ],
        as_json=options.json,
    )


main()
