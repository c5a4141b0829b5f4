"""WebDataset in the shape of img2dataset: `00000.tar`, beside it `00000.parquet` and `00000_stats.json`.

https://github.com/webdataset/webdataset and https://github.com/rom1504/img2dataset ("Output format"): a
sample's key has five digits of its shard and four of its place in it; its files follow each other.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from producer.exports.arrow import table, table_schema
from producer.exports.kinds import Columns, Kind, same_columns
from producer.exports.rows import CAPTION, FILE_NAME, Sample, picture_row
from producer.exports.sharded import Entry
from producer.exports.survey import Survey
from producer.exports.target import Target
from storage.filters import EXTRA
from storage.parameters import suffix_of

BLOCK = 512  # bytes, of a tar
SUCCESS = "success"
_FIRST = {
    "url": Kind.TEXT, "caption": Kind.TEXT, "key": Kind.TEXT, "status": Kind.TEXT, "error_message": Kind.TEXT,
    "width": Kind.INT, "height": Kind.INT, "original_width": Kind.INT, "original_height": Kind.INT,
    "sha256": Kind.TEXT,
}  # fmt: skip
_SAID_THERE = (FILE_NAME, CAPTION, "width", "height", "file_sha256")  # under img2dataset's names


class WebDataset:
    """See `producer.exports.sharded.ShardFormat`."""

    needs_pictures = True

    def __init__(self, found: Survey) -> None:
        self._submission = found.submission
        self._columns = found.columns
        self._named = found.options.name is not None
        others = {_other(name): kind for name, kind in found.columns.items() if name not in _SAID_THERE}
        self.columns: Columns = _FIRST | others

    def row(self, sample: Sample) -> dict[str, Any]:
        """See `ShardFormat.row`; the key comes with the shard."""
        row = same_columns(picture_row(sample, self._submission), self._columns)
        width, height = row["width"], row["height"]
        first = {
            # Where a picture is on this machine is nobody's business: the store's key.
            "url": sample.image.key,
            "caption": row[CAPTION], "key": "0" * 9, "status": SUCCESS, "error_message": None,
            "width": width, "height": height, "original_width": width, "original_height": height,
            "sha256": row["file_sha256"],
        }  # fmt: skip
        return first | {_other(name): value for name, value in row.items() if name not in _SAID_THERE}

    def weigh(self, entry: Entry) -> int:
        """See `ShardFormat.weigh`: three files, each with its head and in whole blocks."""
        sizes = (entry.sample.image.bytes, len(entry.row["caption"].encode()), len(entry.said))
        return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)

    def write(
        self, target: Target, number: int, entries: Sequence[Entry], pictures: Iterator[bytes]
    ) -> dict[str, int]:
        """See `ShardFormat.write`."""
        began, stem = time.time(), f"{number:05d}"
        rows = [entry.row | {"key": self._key(entry.sample, number, at)} for at, entry in enumerate(entries)]
        with ExitStack() as stack:
            paths = {
                name: stack.enter_context(target.published(name))
                for name in (f"{stem}.tar", f"{stem}.parquet", f"{stem}_stats.json")
            }
            tar, table_path, stats = paths.values()
            with tar.open("wb") as archive:
                for entry, row, data in zip(entries, rows, pictures, strict=True):
                    _add_sample(archive, row, suffix_of(entry.sample.image.format), data)
                archive.write(bytes(2 * BLOCK))
            self._write_table(table_path, rows)
            stats.write_text(json.dumps(_stats(len(entries), began), indent=4))
            return {name: path.stat().st_size for name, path in paths.items()}

    def _key(self, sample: Sample, number: int, at: int) -> str:
        return sample.name if self._named else shard_key(number, at)

    def _write_table(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        from pyarrow import parquet  # noqa: PLC0415  (slow to import, and an extra)

        schema = table_schema(self.columns, image=False)
        parquet.write_table(table(schema, self.columns, rows), path)


def shard_key(number: int, at: int) -> str:
    """Return the key of a sample by its shard and its place in it."""
    return f"{number:05d}{at:04d}"


def _other(name: str) -> str:
    """Return a column's name beside img2dataset's: one that is called like those is the user's own."""
    return f"{EXTRA}{name}" if name in _FIRST else name


def _add_sample(archive: BinaryIO, row: dict[str, Any], suffix: str, picture: bytes) -> None:
    """Add a sample's files; nothing but its content decides their bytes."""
    said = json.dumps(row, ensure_ascii=False).encode()
    for ending, data in ((suffix, picture), ("txt", row["caption"].encode()), ("json", said)):
        archive.write(tar_head(f"{row['key']}.{ending}", len(data)))
        archive.write(data)
        archive.write(bytes(-len(data) % BLOCK))


def tar_head(name: str, size: int) -> bytes:
    """Return the blocks ahead of a file in a tar, as `tarfile` makes them, but in a tenth of the time.

    Args:
        name: of the file.
        size: in bytes.
    """
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or size >= 8**_SIZE_DIGITS:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.GNU_FORMAT, "utf-8")
    head = bytearray(_EMPTY_HEAD)
    head[: len(encoded)] = encoded
    head[124:135] = b"%011o" % size
    head[148:156] = b"%06o\0 " % sum(head)  # a checksum, over its own place as eight blanks
    return bytes(head)


_NAME_BYTES, _SIZE_DIGITS = 100, 11  # what the old head has room for
_EMPTY_HEAD = bytearray(tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT, "utf-8"))
_EMPTY_HEAD[148:156] = b" " * 8


def _stats(count: int, began: float) -> dict[str, Any]:
    """Return what img2dataset says of a shard; all that were chosen have their pictures."""
    ended = time.time()
    return {
        "count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0,
        "duration": ended - began, "start_time": began, "end_time": ended, "status_dict": {SUCCESS: count},
    }  # fmt: skip
