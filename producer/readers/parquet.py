"""Read Parquet (https://parquet.apache.org), a batch of rows at a time; needs the extra `parquet`."""

from __future__ import annotations

import datetime as dt
import decimal
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from producer.lines import Line, Problem
from producer.readers.columns import Columns
from producer.readers.decoding import LONGEST_LINE
from producer.readers.kinds import UnfitError, shown

BATCH = 128  # rows
SMALL = 2**24  # bytes of a column in a row group
BOMB_SIZE = 2**26  # bytes of one column in one row group; with
BOMB_RATIO = 100  # times its size in the file: no text is packed like that
_REST = "; nothing after it was read."


def read_parquet(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Yield a line for each row; a row's number counts from 1."""
    try:
        import pyarrow as pa  # noqa: PLC0415  (slow to import, and an extra)
        from pyarrow import parquet  # noqa: PLC0415  (likewise)
    except ImportError:
        reason = "Parquet needs the extra parquet; install it with `pip install 'promptmill[parquet]'`."
        yield Problem(file=name, reason=reason)
        return
    number = 0
    with _seekable(file) as source:
        try:
            table = parquet.ParquetFile(source, pre_buffer=False, buffer_size=2**16)
            texts = _kept_as_dictionaries(pa, table)
            table = parquet.ParquetFile(
                source, metadata=table.metadata, read_dictionary=texts, pre_buffer=False, buffer_size=2**16
            )
            columns = _checked(pa, table)
            for batch in table.iter_batches(BATCH, use_threads=False):
                for row in zip(*(_values(column) for column in batch.columns), strict=True):
                    number += 1
                    if (found := _line(columns, row, name, number)) is not None:
                        yield found
        except UnfitError as unfit:
            yield Problem(file=name, reason=str(unfit), column=unfit.column)
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            said = str(error).partition("\n")[0].rstrip(". ")[:200]
            yield Problem(
                file=name,
                line=number or None,
                reason=f"it is damaged or no Parquet that can be read ({said}); write it anew.",
            )


def _checked(pa: Any, table: Any) -> Columns:
    """Look the columns up; UnfitError where one cannot be kept, or would fill the memory."""
    schema = table.schema_arrow
    columns = Columns(schema.names)
    for at, field in enumerate(schema, 1):
        if _has_bytes(pa, field.type):
            raise UnfitError(f"column {shown(field.name)} holds bytes, which cannot be kept; drop it.", at)
    for group in range(table.metadata.num_row_groups):
        row_group = table.metadata.row_group(group)
        for at in range(row_group.num_columns):
            chunk = row_group.column(at)
            size = chunk.total_uncompressed_size
            if size > BOMB_SIZE and size > BOMB_RATIO * max(1, chunk.total_compressed_size):
                raise UnfitError(
                    f"column {shown(chunk.path_in_schema)} unpacks to {size:,} bytes, over {BOMB_RATIO} "
                    f"times its size in the file; no list of prompts does: write it anew."
                )
    return columns


def _kept_as_dictionaries(pa: Any, table: Any) -> list[str]:
    """Return the columns of text to read as dictionaries: a few bytes can repeat one long text endlessly.

    In large column chunks texts hardly repeat, and dictionaries of them would be as large as the file.
    """
    groups = [table.metadata.row_group(at) for at in range(table.metadata.num_row_groups)]
    large = {
        group.column(at).path_in_schema
        for group in groups
        for at in range(group.num_columns)
        if group.column(at).total_uncompressed_size > SMALL
    }
    texts = (pa.types.is_string, pa.types.is_large_string)
    return [
        field.name
        for field in table.schema_arrow
        if field.name not in large and any(is_text(field.type) for is_text in texts)
    ]


def _has_bytes(pa: Any, kind: Any) -> bool:
    types = pa.types
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(pa, kind.field(at).type) for at in range(kind.num_fields))


def _values(column: Any) -> list[Any]:
    """Return a column's cells; of a dictionary only the texts that this batch has, each once."""
    if not hasattr(column, "indices"):
        return cast("list[Any]", column.to_pylist())
    used = column.indices.unique().drop_null()
    texts = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
    return [texts.get(index) for index in column.indices.to_pylist()]


def _line(columns: Columns, row: tuple[Any, ...], name: str, number: int) -> Line | Problem | None:
    try:
        values = [_plain(value) for value in row]
    except UnfitError as unfit:
        return Problem(file=name, line=number, reason=str(unfit))
    return columns.line(values, file=name, number=number)


def _plain(value: Any) -> Any:  # noqa: PLR0911  (one for each kind)
    """Return a value as JSON knows it."""
    if isinstance(value, str):
        if len(value) > LONGEST_LINE:
            raise UnfitError(f"a cell has over {LONGEST_LINE:,} characters; shorten it.")
        return value
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return str(value)


@contextmanager
def _seekable(file: BinaryIO) -> Iterator[Any]:
    """Give a file that can be read from its end: a pipe goes to a temporary file first."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy
