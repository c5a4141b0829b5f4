"""The same prompts in every format make the same jobs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from producer.lines import Line
from producer.prompts import read_prompts

TSV = Path(__file__).parents[3] / "data" / "PartiPrompts-excerpt.tsv"
HEADER, *ROWS = [line.split("\t") for line in TSV.read_text(encoding="utf-8").splitlines()]
RECORDS = [dict(zip(HEADER, row, strict=True)) for row in ROWS]


def _separated(**dialect: Any) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, **dialect).writerows([HEADER, *ROWS])
    return buffer.getvalue().encode()


def _parquet() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(RECORDS), buffer, row_group_size=20)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "original.tsv": TSV.read_bytes,
    "quoted.tsv": lambda: _separated(delimiter="\t"),
    "all-quoted.tsv": lambda: _separated(delimiter="\t", quoting=csv.QUOTE_ALL),
    "list.csv": _separated,
    "semicolon.csv": lambda: _separated(delimiter=";"),
    "list.jsonl": lambda: "\n".join(map(json.dumps, RECORDS)).encode(),
    "list.json": lambda: json.dumps(RECORDS, indent=1, ensure_ascii=False).encode("utf-8-sig"),
    "list.parquet": _parquet,
    "tabs without a suffix": TSV.read_bytes,
    "commas without a suffix": _separated,
    "JSON lines as text.txt": lambda: "\n".join(map(json.dumps, RECORDS)).encode(),
}


def lines_of(path: Path, data: bytes) -> list[Line]:
    """Read bytes as a prompt file of this name."""
    path.write_bytes(data)
    return list(read_prompts([str(path)], []))


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_and_other_columns_are_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    """Category, Challenge and Note come along, unescaped quotes too."""
    found = [(line.prompt, line.extra) for line in lines_of(tmp_path / name, FORMATS[name]())]
    assert found == [
        (row["Prompt"].strip(), {key: row[key] for key in HEADER[1:] if row[key]}) for row in RECORDS
    ]
    assert len(found) >= 60


@pytest.mark.parametrize("options", ["", " --n blurry --w 512 --h 768 --s 20 --l 7.5 --d 1,2"])
def test_prompts_are_the_same_as_text_and_as_kohya_text(tmp_path: Path, options: str) -> None:
    """What stands behind the options' dashes is not part of the prompt."""
    data = "\n".join(row["Prompt"] + options for row in RECORDS).encode()
    found = lines_of(tmp_path / "list.txt", data)
    assert [line.prompt for line in found] == [row["Prompt"].strip() for row in RECORDS]
    if options:
        assert {line.seeds for line in found} == {(1, 2)}
        assert found[0].settings == {
            "negative_prompt": "blurry", "width": 512, "height": 768,
            "num_inference_steps": 20, "guidance_scale": 7.5,
        }  # fmt: skip
