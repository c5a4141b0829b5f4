"""Whatever bytes a file has, its reader ends, raises nothing, and gives lines and problems only."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from producer.jobchecks import check_line
from producer.jobs import JobOptions
from producer.lines import Line, Problem
from producer.readers import FORMATS
from producer.readers.opening import read, reader_of
from storage.errors import BadInputError


def _parquet() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["an otter", "a fox"], "seed": [1, 2], "x": [[1], None]}), buffer)
    return buffer.getvalue()


VALID = {
    "text": b'# c\nan otter\na fox --n blurry --w 64 --s 20 --d 1,2\n--prompt "a bee" --seed -1 --steps 3\n',
    "csv": b'prompt,seed,cfg,size,Category\n"an ""otter""","1,2",5,64x64,A\na fox,,,,\n',
    "tsv": b'prompt\tseed\tsampler\n"an" otter\t1\tDPM++ 2M Karras\n"a ""fox"""\t\t\n',
    "jsonl": b'{"prompt": "an otter", "seed": [1, 2], "x": [1.5]}\n"a fox"\n{"text": "\\u72d0", "n": 2}\n',
    "json": b'[\n {"prompt": "an otter", "steps": 20.0, "guidance_interval": [0, 0.8]},\n "a fox"\n]\n',
    "parquet": _parquet(),
}
VALID |= {"kohya": VALID["text"], "a1111": VALID["text"]}
PIECES = [
    b'"', b'""', b"'", b"\\", b"\n", b"\r", b"\t", b",", b";", b"{", b"}", b"[", b"]", b"#", b"\0", b"\xff",
    b"--s ", b" --x", b"prompt", b"nan", b"-1", b"1e999", b"9" * 50, b"\\ud800", b"\xef\xbb\xbf", b"PAR1",
    "é狐".encode(),
]  # fmt: skip


class Pipe(io.RawIOBase):
    """Bytes that cannot be read twice, and come in small parts."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Give a few bytes."""
        part = self._data.read(min(len(buffer), 7))
        buffer[: len(part)] = part
        return len(part)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Return valid data with a few things put in, taken out or written over."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 4))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)))
        data = data[:at] + piece + data[at + cut :]
    return data


def check(found: list[Line | Problem]) -> None:
    """Every line can go on to the database, or gets its own sentence."""
    for each in found:
        assert isinstance(each, Line | Problem)
        if isinstance(each, Problem):
            assert each.reason.endswith(".")
            continue
        json.dumps(each.extra, allow_nan=False).encode()
        with suppress(BadInputError):
            check_line(each, JobOptions())


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(data=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)))
def test_random_bytes_never_escape_a_reader(name: str, data: bytes) -> None:
    """As this format, and as what the content looks like."""
    check(list(reader_of(name)(io.BytesIO(data), "f")))
    check(list(read(io.BytesIO(data), "f")))


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(data=st.data())
def test_mutated_files_never_escape_a_reader(name: str, data: st.DataObject) -> None:
    """Files that are nearly right reach deeper; a pipe gives what a file gives."""
    content = data.draw(mutated(VALID[name]))
    found = list(reader_of(name)(io.BytesIO(content), "f"))
    check(found)
    seen = list(read(io.BytesIO(content), "f"))
    assert list(read(io.BufferedReader(Pipe(content)), "f")) == seen


@pytest.mark.parametrize("name", VALID)
def test_the_files_that_are_mutated_are_right(name: str) -> None:
    """Without that, the test above would test little."""
    found = list(read(io.BytesIO(VALID[name]), "f"))
    assert [type(each) for each in found] == [Line] * len(found)
    assert len(found) >= 2
