"""`python -m worker supervise OPTIONS`: how the command line starts workers. Never imports torch."""

from __future__ import annotations

import os
import sys

from storage.errors import PromptmillError
from storage.worker_options import parse_options
from worker.logs import LOG_FORMAT, configure_logs
from worker.orders import report
from worker.supervisor import Supervisor


def main(arguments: list[str]) -> int:
    """Run a supervisor until it is told to stop; return its exit code."""
    if len(arguments) != 2 or arguments[0] != "supervise":  # noqa: PLR2004  (a verb and its options)
        sys.stderr.write("Error: this is promptmill's own entry point; use `promptmill worker start`.\n")
        return 2
    options = parse_options(arguments[1])
    if options.log_format is not None:
        os.environ[LOG_FORMAT] = options.log_format  # worker processes take it over
    configure_logs()
    try:
        return Supervisor(options).run()
    except PromptmillError as error:
        if options.parent_pipe:
            report("failed", message=str(error), exit_code=error.exit_code)
        else:
            sys.stderr.write(f"Error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
