"""`promptmill metrics`: the farm's numbers for Prometheus, once or as long as somebody asks."""

from __future__ import annotations

import threading
from contextlib import suppress

import click

from producer.company import terminated_like_interrupted
from producer.output import remark
from producer.session import Session, pass_session


@click.command(
    epilog="""\b
Examples:
  promptmill metrics
  promptmill metrics --port 9465
  promptmill metrics --port 9465 --host 0.0.0.0
"""
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Serve them under /metrics until Ctrl-C; 0 takes a free port. Default: print them once.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where they are served; there is no password.",
)
@pass_session
def metrics(session: Session, *, port: int | None, host: str) -> None:
    """Show the whole farm's numbers as Prometheus reads them: jobs, workers, ages, and what is up.

    They come from the database, and from asking Redis and the picture store; what is seen is kept for some
    seconds. Workers serve more themselves: `promptmill worker start --metrics-port`. Printed once, they end
    with exit code 3 where the database is down.
    """
    # Slow to import, and --help needs neither.
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415

    from producer.farm_metrics import FarmMetrics  # noqa: PLC0415
    from storage.metrics_server import metrics_url, serve_metrics  # noqa: PLC0415

    farm = FarmMetrics(session.settings)
    try:
        if port is None:
            registry = CollectorRegistry()
            registry.register(farm)
            click.echo(generate_latest(registry).decode(), nl=False)
            if "database" in farm.failures:
                raise farm.failures["database"]
            return
        server = serve_metrics(farm, host=host, port=port)
        remark(f"Metrics are served at {metrics_url(server)}; Ctrl-C ends it.")
        with suppress(KeyboardInterrupt), terminated_like_interrupted():
            threading.Event().wait()
    finally:
        farm.close()
