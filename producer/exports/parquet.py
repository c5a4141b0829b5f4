"""Parquet as `datasets` writes it: a column `image` of bytes and path, and what is said of each picture.

https://huggingface.co/docs/hub/datasets-image#parquet-format
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from producer.exports.arrow import IMAGE, table, table_schema
from producer.exports.kinds import Columns, same_columns
from producer.exports.rows import FILE_NAME, Sample, picture_row
from producer.exports.sharded import Entry
from producer.exports.survey import Survey
from producer.exports.target import Target
from storage.filters import EXTRA
from storage.imagestore import ImageStore

ROWS = 100  # in a group, as `datasets` has for pictures: a reader fetches a whole one
ROW_BYTES = 2**26  # of pictures in a group, at most


class Parquet:
    """See `producer.exports.sharded.ShardFormat`; with links the pictures stay where they are."""

    def __init__(self, found: Survey, images: ImageStore) -> None:
        self._submission = found.submission
        self._images = images
        self._own = found.columns
        self.needs_pictures = not found.options.link
        self.columns: Columns = {
            _other(name): kind for name, kind in found.columns.items() if name != FILE_NAME
        }

    def row(self, sample: Sample) -> dict[str, Any]:
        """See `ShardFormat.row`."""
        row = same_columns(picture_row(sample, self._submission), self._own)
        del row[FILE_NAME]
        said = {_other(name): value for name, value in row.items()}
        return said if self.needs_pictures else said | {IMAGE: self._images.link(sample.image.key)}

    def weigh(self, entry: Entry) -> int:
        """See `ShardFormat.weigh`: text is packed, pictures are not."""
        return len(entry.said) + (entry.sample.image.bytes if self.needs_pictures else 0)

    def write(
        self, target: Target, number: int, entries: Sequence[Entry], pictures: Iterator[bytes]
    ) -> dict[str, int]:
        """See `ShardFormat.write`."""
        from pyarrow import parquet  # noqa: PLC0415  (slow to import, and an extra)

        schema, name = table_schema(self.columns, image=True), f"{number:05d}.parquet"
        packed = {f"{IMAGE}.bytes": "NONE"} | dict.fromkeys((f"{IMAGE}.path", *self.columns), "SNAPPY")
        with target.published(name) as path:
            with parquet.ParquetWriter(
                path,
                schema,
                compression=packed,
                use_dictionary=[*self.columns],
                write_statistics=[*self.columns],
            ) as writer:
                for group in self._groups(entries, pictures):
                    writer.write_table(self._table(schema, group))
            size = path.stat().st_size
        return {name: size}

    def _groups(
        self, entries: Sequence[Entry], pictures: Iterator[bytes]
    ) -> Iterator[list[tuple[Entry, bytes | None]]]:
        group: list[tuple[Entry, bytes | None]] = []
        held = 0
        given: Iterator[bytes | None] = pictures if self.needs_pictures else repeat(None, len(entries))
        for entry, data in zip(entries, given, strict=True):
            group.append((entry, data))
            held += len(data or b"")
            if len(group) == ROWS or held >= ROW_BYTES:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _table(self, schema: Any, group: Sequence[tuple[Entry, bytes | None]]) -> Any:
        entries, data = zip(*group, strict=True)
        paths = [entry.sample.file_name if self.needs_pictures else entry.row[IMAGE] for entry in entries]
        return table(schema, self.columns, [entry.row for entry in entries], (data, paths))


def _other(name: str) -> str:
    """Return a column's name; a column `image` of the user's own makes room for the pictures."""
    return f"{EXTRA}{name}" if name == IMAGE else name
