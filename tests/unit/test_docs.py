"""The documentation points at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    """A relative link in a page names a file or folder of the project."""
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_job_flow_names_every_station_of_the_worker() -> None:
    """Whoever adds a module to the engine or the stages has to say where it is on a job's path."""
    text = (ROOT / "docs" / "job-flow.md").read_text()
    stations = [
        "worker/tasks.py",
        "worker/process.py",
        "worker/engine/engine.py",
        "worker/engine/admission.py",
    ]
    stations += [f"worker/stages/{path.name}" for path in (ROOT / "worker" / "stages").glob("[a-z]*.py")]
    assert [station for station in stations if station not in text] == []
