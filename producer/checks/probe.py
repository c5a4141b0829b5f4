"""`doctor --probe`: whether this container's supervisor lives, and whether its worker renders.

Asks nothing but a file in the home: an orchestrator asks every few seconds, and must not kill workers for a
database that is down.
"""

from __future__ import annotations

from storage.beats import FRESH, read_beats
from storage.errors import PromptmillError
from storage.settings import Settings

LIVENESS, READINESS = PROBES = ("liveness", "readiness")


def probe(settings: Settings, what: str) -> str:
    """Return what is well, in a sentence.

    Args:
        settings: for the home.
        what: one of PROBES. Liveness: every supervisor that runs here has beaten lately, and there is one.
            Readiness: besides, one of their workers has loaded its model and takes jobs.

    Raises:
        PromptmillError: says what is not.
    """
    beats = read_beats(settings)
    if not beats:
        raise PromptmillError(f"No supervisor of {settings.home} runs on this host.")
    silent = next((beat for beat in beats if not beat.fresh), None)
    if silent is not None:
        raise PromptmillError(
            f"The supervisor with process id {silent.pid} has been silent for more than {FRESH:.0f} s."
        )
    ready = sum(beat.ready for beat in beats if not beat.draining)
    devices = sum(beat.devices for beat in beats)
    if what == READINESS and not ready:
        draining = all(beat.draining for beat in beats)
        raise PromptmillError("The worker drains." if draining else "No worker has loaded its model yet.")
    return f"{ready} of {devices} workers ready"
