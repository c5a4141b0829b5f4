"""What the queries of the dashboard and the alerts ask for, read by a parser of Prometheus' own language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "promptmill.json"
ALERTS = MONITORING / "alerts.yml"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One series that a query asks for.

    Attributes:
        name: of the samples, as in the text that Prometheus reads.
        labels: that it compares, with what each is compared to.
    """

    name: str
    labels: tuple[tuple[str, str], ...]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> dict[str, str]:
    """Return all queries by where they stand."""
    found = {rule["alert"]: str(rule["expr"]) for rule in rules()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']}, {target['refId']}"] = target["expr"]
    return found


def asked(query: str) -> set[Asked]:
    """Return which series a query asks for; ValueError for what is no query."""
    return {
        Asked(
            name=selector.name,
            labels=tuple(sorted((matcher.name, matcher.value) for matcher in selector.matchers.matchers)),
        )
        for selector in _selectors(promql_parser.parse(query))
    }


def all_names() -> set[str]:
    """Return the names of all series that anything asks promptmill for; `up` is Prometheus' own."""
    return {one.name for query in queries().values() for one in asked(query)} - {"up"}


def grouped_by(query: str) -> set[str]:
    """Return the labels that a query groups or matches by."""
    lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
    return {label.strip() for one in lists for label in one.split(",") if label.strip()} - {"le"}


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for part in ("vector_selector", "expr", "lhs", "rhs", "param"):
        below = getattr(node, part, None)
        if below is not None:
            yield from _selectors(below)
    for argument in getattr(node, "args", ()):
        yield from _selectors(argument)
