"""`python -m web serve OPTIONS`: how the command line starts the server. Never imports torch."""

from __future__ import annotations

import sys

from storage.errors import PromptmillError
from web.serving import parse_listening, serve


def main(arguments: list[str]) -> int:
    """Serve until it is told to stop; return the exit code."""
    if len(arguments) != 2 or arguments[0] != "serve":  # noqa: PLR2004  (a verb and its options)
        sys.stderr.write("Error: this is promptmill's own entry point; use `promptmill web`.\n")
        return 2
    try:
        serve(parse_listening(arguments[1]))
    except PromptmillError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:  # how uvicorn ends after a Ctrl-C: in order
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
