"""Exports in shards: each ends at a size, is there whole or not at all, and is kept by the next run.

What belongs into a shard follows from the jobs alone, so a run that goes on after a kill makes the same ones.
A complete shard is known by its fingerprint: where jobs have succeeded since, those shards that they change
are written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from producer.exports.kinds import Kind
from producer.exports.marker import Marker, Shard
from producer.exports.rows import Sample
from producer.exports.target import Target
from producer.in_order import in_order
from producer.pictures import read_picture
from storage.imagestore import ImageStore

MAX_SAMPLES = 10_000  # in a shard, as in img2dataset, whose keys have four digits for them


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A picture with what is said of it.

    Attributes:
        sample: the picture.
        row: what is said.
        said: the same as JSON.
    """

    sample: Sample
    row: dict[str, Any]
    said: bytes


class ShardFormat(Protocol):
    """How shards look."""

    needs_pictures: bool
    columns: dict[str, Kind]

    def row(self, sample: Sample) -> dict[str, Any]:
        """Return what is said of a picture."""
        ...

    def weigh(self, entry: Entry) -> int:
        """Return how many bytes a picture takes in a shard."""
        ...

    def write(
        self, target: Target, number: int, entries: Sequence[Entry], pictures: Iterator[bytes]
    ) -> dict[str, int]:
        """Write one shard; return its files' names and sizes in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How many shards there are, were complete already, and were complete but for jobs that came since."""

    count: int
    kept: int
    renewed: int


def write_shards(
    layout: ShardFormat,
    samples: Iterable[Sample],
    images: ImageStore,
    target: Target,
    marker: Marker,
    *,
    size: int,
    done: Callable[[int], None],
) -> Progress:
    """Write the shards that are not there yet, and keep the marker true after each.

    Args:
        layout: how shards look.
        samples: in order.
        images: where the pictures are.
        target: where they go.
        marker: knows the complete ones, and will know the new ones.
        size: bytes at which a shard ends.
        done: is told how many more pictures are there.
    """
    before, kept, renewed = marker.shards, 0, 0
    now: list[Shard] = []
    for number, entries in enumerate(cut(layout, samples, size)):
        mark = fingerprint(layout, entries)
        known = before[number] if number < len(before) else None
        if known is None or known.fingerprint != mark or not _is_there(target, known):
            pictures = _pictures(entries, images, done) if layout.needs_pictures else iter(())
            renewed += known is not None and known.fingerprint != mark
            files = layout.write(target, number, entries, pictures)
            known = Shard(
                first=entries[0].sample.job.index, last=entries[-1].sample.job.index, count=len(entries),
                fingerprint=mark, files=files,
            )  # fmt: skip
            marker.shards = [*now, known, *before[number + 1 :]]
            marker.save(target)
            if not layout.needs_pictures:
                done(len(entries))
        else:
            kept += 1
            done(len(entries))
        now.append(known)
    for stale in before[len(now) :]:
        for name in stale.files:
            target.remove(name)
    marker.shards = now
    marker.save(target)
    return Progress(len(now), kept, renewed)


def cut(layout: ShardFormat, samples: Iterable[Sample], size: int) -> Iterator[list[Entry]]:
    """Yield what belongs into each shard: as much as fits into `size` bytes, at least one picture."""
    entries: list[Entry] = []
    weight = 0
    for sample in samples:
        row = layout.row(sample)
        entry = Entry(sample=sample, row=row, said=json.dumps(row, ensure_ascii=False).encode())
        added = layout.weigh(entry)
        if entries and (weight + added > size or len(entries) == MAX_SAMPLES):
            yield entries
            entries, weight = [], 0
        entries.append(entry)
        weight += added
    if entries:
        yield entries


def fingerprint(layout: ShardFormat, entries: Sequence[Entry]) -> str:
    """Return a hash over all that is in a shard, 64 hex digits."""
    digest = hashlib.sha256(json.dumps(layout.columns).encode())
    for entry in entries:
        sample = entry.sample
        for part in (sample.name.encode(), sample.image.file_sha256.encode(), entry.said):
            digest.update(part + b"\0")
    return digest.hexdigest()


def _pictures(entries: Sequence[Entry], images: ImageStore, done: Callable[[int], None]) -> Iterator[bytes]:
    def read(entry: Entry) -> bytes:
        return read_picture(images, entry.sample.image)

    for _, data in in_order(read, entries, local=images.is_local):
        done(1)
        yield data


def _is_there(target: Target, shard: Shard) -> bool:
    return all(target.size(name) == size for name, size in shard.files.items())
