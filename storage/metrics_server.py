"""Serve metrics over HTTP, as Prometheus asks for them: `/metrics`, in a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import UnreachableError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector  # slow to import; only who serves metrics needs it


def serve_metrics(collector: Collector, *, host: str, port: int) -> Any:
    """Begin to serve what a collector collects, until the process ends; return the server.

    Args:
        collector: asked anew by each look.
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        UnreachableError: when the port or the address cannot be had.
    """
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415  (likewise)

    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise UnreachableError(
            f"Metrics cannot be served on {host}:{port}: {error.strerror or error}; choose another port or "
            f"address."
        ) from error
    return server


def metrics_url(server: Any) -> str:
    """Return where a server's metrics are."""
    host, port = server.server_address[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
