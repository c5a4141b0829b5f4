"""The dataset card, a README.md as the Hugging Face hub reads it: models, settings, counts and licences.

https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from producer.exports.csv_table import CSV_NAME
from producer.exports.marker import Marker
from producer.exports.options import CSV, GRID, IMAGEFOLDER, PARQUET, SHEET, WEBDATASET
from producer.exports.survey import DESCRIBED, FEW, Survey, Values
from producer.exports.target import Target
from producer.output import cell, count_of, printable, size_of
from producer.pictures import METADATA
from storage.records import JobStatus

CARD = "README.md"
NOT_KNOWN = "not known"
_CATEGORIES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)  # fmt: skip
_USUAL = (
    "file_name", "text", "negative_prompt", "model", "job", "file_sha256", "pixel_sha256", "link", "status",
    "error", *DESCRIBED,
)  # fmt: skip
_DATA_FILES = {WEBDATASET: "*.tar", PARQUET: "*.parquet", CSV: CSV_NAME}
_LOADING = {
    IMAGEFOLDER: 'datasets.load_dataset("imagefolder", data_dir=FOLDER)',
    GRID: 'datasets.load_dataset("imagefolder", data_dir=FOLDER)',
    WEBDATASET: 'datasets.load_dataset("webdataset", data_files=f"{FOLDER}/*.tar")',
    PARQUET: 'datasets.load_dataset("parquet", data_files=f"{FOLDER}/*.parquet")',
    CSV: f'datasets.load_dataset("csv", data_files=f"{{FOLDER}}/{CSV_NAME}")',
}


def write_card(
    found: Survey, counts: Mapping[JobStatus, int], licence: str | None, target: Target, marker: Marker
) -> bool:
    """Write the card, and note its hash; return False, and leave it alone, where somebody else wrote one."""
    there, text = target.read(CARD), card(found, counts, licence).encode()
    if there not in (None, text) and hashlib.sha256(there or b"").hexdigest() != marker.card:
        return False
    # Noted first: killed in between, the next run finds its own card or the one before.
    marker.card = hashlib.sha256(text).hexdigest()
    if there != text:
        if there is not None:
            target.remove(CARD)
        marker.save(target)
        target.write(CARD, text)
    return True


def card(found: Survey, counts: Mapping[JobStatus, int], licence: str | None) -> str:
    """Return the card of an export.

    Args:
        found: what was found of it.
        counts: the whole submission's jobs by status.
        licence: the model's, None where it is not known.
    """
    submission = found.submission
    parts = [
        *_front(found),
        f"# {submission.name or submission.id}",
        "",
        f"{_what(found)} of submission `{submission.id}`, rendered by promptmill{_meant(found)}.",
        "",
        *_model(found, licence),
        *_settings(found),
        *_counts(found, counts),
        *_use(found),
    ]
    return "\n".join(parts) + "\n"


def _front(found: Survey) -> list[str]:
    size = next((name for most, name in _CATEGORIES if found.count < most), "n>100M")
    files = _data_files(found)
    configs = ["configs:", "- config_name: default", f"  data_files: {files}"] if files else []
    return [
        "---",
        "license: unknown",
        "task_categories:",
        "- text-to-image",
        "size_categories:",
        f"- {size}",
        "tags:",
        "- synthetic",
        "- promptmill",
        *configs,
        "---",
        "",
    ]


def _data_files(found: Survey) -> str:
    """Say which files are the data set, where loaders would not find out by themselves."""
    if found.options.sidecar:  # as many JSON files as pictures: they would be taken for the data
        return json.dumps([METADATA, *(f"**/*.{suffix}" for suffix in sorted(found.suffixes))])
    files = _DATA_FILES.get(found.options.format)
    return f'"{files}"' if files else ""


def _what(found: Survey) -> str:
    if found.options.format == CSV:
        return f"{count_of(found.count, 'job')} ({', '.join(found.options.statuses)})"
    return f"{count_of(found.count, 'picture')} ({size_of(found.bytes)})"


def _meant(found: Survey) -> str:
    """Say which of its jobs these are, if not all."""
    meant = found.options.meant
    said = [f"whose prompt contains `{_code(meant.match)}`"] if meant.match else []
    said += [
        f"with {_code(name)} {' or '.join(f'`{_code(value)}`' for value in values)}"
        for name, values in meant.where.items()
    ]
    return f": those {' and '.join(said)}" if said else ""


def _model(found: Survey, licence: str | None) -> list[str]:
    revisions = ", ".join(f"`{name}` ({number:,})" if name else f"{NOT_KNOWN} ({number:,})"
                          for name, number in found.revisions.most_common())  # fmt: skip
    return [
        "## Model",
        "",
        "| model | revision (pictures) | licence of the model |",
        "| --- | --- | --- |",
        f"| {found.submission.model} | {revisions or NOT_KNOWN} | {licence or NOT_KNOWN} |",
        "",
        "A model's licence may say what its pictures may be used for. Under which licence these pictures are",
        "published is for their publisher to say: `license` above.",
        "",
    ]


def _settings(found: Survey) -> list[str]:
    rows = [f"| {name} | {_values(values)} |" for name, values in found.values.items() if _values(values)]
    rows += [f"| file format | {_numbers(found.suffixes)} |"] if found.suffixes else []
    others = [name for name in found.columns if name not in _USUAL]
    return [
        "## Settings",
        "",
        "| setting | values |",
        "| --- | --- |",
        *rows,
        "",
        *([f"Further columns: {', '.join(f'`{_code(name)}`' for name in others)}.", ""] if others else []),
    ]


def _values(values: Values) -> str:
    """Write each of a few values with how often it occurs, or the smallest and the largest."""
    if values.few is None:
        return f"{cell(values.least)} to {cell(values.most)}, more than {FEW} of them"
    return _numbers(values.few)


def _numbers(found: Mapping[Any, int]) -> str:
    """Write values with how often each occurs, the most frequent first."""
    shown = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{cell(value)} ({number:,})" for value, number in shown)


def _counts(found: Survey, counts: Mapping[JobStatus, int]) -> list[str]:
    rows = [f"| {status} | {number:,} |" for status, number in counts.items() if number]
    total = count_of(found.submission.total, "job")
    return [
        "## Counts", "", f"The whole submission, {total}:", "",
        "| status | jobs |", "| --- | --- |", *rows, "",
    ]  # fmt: skip


def _use(found: Survey) -> list[str]:
    loading = _LOADING.get(found.options.format)
    lines = ["## Use", ""]
    if loading:
        lines += ["```python", "import datasets", "", loading, "```", ""]
    if found.options.format in (IMAGEFOLDER, GRID):
        again = "`promptmill render --from-image PICTURE` renders it again."
        lines += [f"Each picture carries its parameters: {again}", ""]
    elif found.options.format != SHEET:
        lines += ["Prompt (`text` or `caption`), seed and settings stand beside each picture.", ""]
    lines += [
        f"`promptmill show {found.submission.id}:INDEX`, where it was rendered, shows everything about one."
    ]
    return lines


def _code(text: str) -> str:
    """Make a text safe between backticks of a Markdown line."""
    return printable(text).replace("`", "'").replace("|", "/")
