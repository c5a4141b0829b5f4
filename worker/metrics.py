"""What a worker process and its supervisor count for Prometheus: every name, label and bucket.

A label has few values (a model, a stage, a kind of error), never a job, a submission or a text of a user's.
What is asked for only when somebody looks is in `worker.live`; `worker.exposition` serves all of it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for

PROCESS = CollectorRegistry()  # of one worker process
SUPERVISOR = CollectorRegistry()

STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)  # seconds
STAGES = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)
CALLS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
# What becomes of a job's error; the classes of others' libraries are all one.
ERRORS = ("RenderError", "OutOfMemoryError", "DeadlineError", "BadInputError")
OTHER = "other"
OUTCOMES = ("waiting", "failed", "lost")  # of `storage.records.Failure`
# What is done again and again.
PATIENCE = ("claim", "look up", "read an input", "reuse", "save", "finish", "fail", "release", "turn")

STEP_SECONDS = Histogram(
    "promptmill_step_seconds",
    "Of one forward pass and its update.",
    ["model"],
    buckets=STEPS,
    registry=PROCESS,
)
LANES_RUN = Counter(
    "promptmill_lanes_run", "Lanes of jobs in all forward passes.", ["model"], registry=PROCESS
)
LANES_OFFERED = Counter(
    "promptmill_lanes_offered", "Lanes that all forward passes had room for.", ["model"], registry=PROCESS
)
STAGE_SECONDS = Histogram(
    "promptmill_stage_seconds",
    "Of one job in one stage: encode, denoise (all steps, company included), decode, save, copy.",
    ["model", "stage"],
    buckets=STAGES,
    registry=PROCESS,
)
PICTURES = Counter(
    "promptmill_pictures",
    "Pictures that were stored: rendered or copied.",
    ["model", "how"],
    registry=PROCESS,
)
FAILURES = Counter(
    "promptmill_failures",
    "Errors charged to jobs, by what became of the job: waiting (tried again), failed, lost (taken over).",
    ["model", "error", "outcome"],
    registry=PROCESS,
)
LOST = Counter(
    "promptmill_lost_pictures",
    "Pictures dropped, their job being another's by then.",
    ["model"],
    registry=PROCESS,
)
SUSPECTS = Counter("promptmill_suspects", "Suspects that were rendered alone.", ["model"], registry=PROCESS)
BACKOFFS = Counter(
    "promptmill_backoffs", "Tries that failed by a fault of database or store.", ["what"], registry=PROCESS
)
for _what in PATIENCE:
    BACKOFFS.labels(_what)
EMBEDDINGS = Counter(
    "promptmill_embeddings",
    "Texts that were looked up in the cache: hit or miss.",
    ["cache"],
    registry=PROCESS,
)
DATABASE_SECONDS = Histogram(
    "promptmill_database_seconds", "Of one operation.", ["operation"], buckets=CALLS, registry=PROCESS
)
STORE_SECONDS = Histogram(
    "promptmill_store_seconds", "Of one operation.", ["operation"], buckets=CALLS, registry=PROCESS
)
BEAT_FAILURES = Counter("promptmill_beat_failures", "Heartbeats that reached no database.", registry=PROCESS)

TICK_SECONDS = Histogram("promptmill_tick_seconds", "Of one tick.", buckets=CALLS, registry=SUPERVISOR)
TICK_FAILURES = Counter("promptmill_tick_failures", "Ticks that failed.", registry=SUPERVISOR)
WINDOW = Gauge("promptmill_dispatch_window", "Jobs to be queued at once.", ["model"], registry=SUPERVISOR)
DISPATCHED = Counter("promptmill_dispatched", "Jobs that were queued.", ["model"], registry=SUPERVISOR)
REPUBLISHED = Counter(
    "promptmill_republished", "Queued jobs whose message was gone.", ["model"], registry=SUPERVISOR
)
TAKEOVERS = Counter("promptmill_takeovers", "Jobs taken from workers that died.", registry=SUPERVISOR)
RESTARTS = Counter("promptmill_restarts", "Worker processes that died.", registry=SUPERVISOR)


class StepMeter:
    """Counts one model's forward passes; its labels are looked up here once, not at every step."""

    def __init__(self, model: str) -> None:
        self._seconds = STEP_SECONDS.labels(model)
        self._run, self._offered = LANES_RUN.labels(model), LANES_OFFERED.labels(model)
        # Prometheus sees a counter grow only from its second look on: what is rare has to be there at 0.
        PICTURES.labels(model, "rendered")
        LOST.labels(model)
        SUSPECTS.labels(model)
        for error in (*ERRORS, OTHER):
            for outcome in OUTCOMES:
                FAILURES.labels(model, error, outcome)

    def note(self, *, lanes: int, room: int, seconds: float) -> None:
        """Count one forward pass: the lanes of jobs in it, those that it had room for, what it took."""
        self._seconds.observe(seconds)
        self._run.inc(lanes)
        self._offered.inc(max(lanes, room))


def note_stages(model: str, seconds: dict[str, float]) -> None:
    """Count a picture's stages, as its image row has them."""
    for stage, taken in seconds.items():
        STAGE_SECONDS.labels(model, stage).observe(taken)


def note_failure(model: str, error: Exception, outcome: str) -> None:
    """Count an error that was charged to a job."""
    kind = type(error).__name__
    FAILURES.labels(model, kind if kind in ERRORS else OTHER, outcome).inc()
