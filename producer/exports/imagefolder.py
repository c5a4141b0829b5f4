"""The imagefolder of Hugging Face's `datasets`: pictures, and a `metadata.jsonl` with a line for each.

https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

from __future__ import annotations

import json
from collections.abc import Callable

from producer.exports.kinds import same_columns
from producer.exports.rows import Sample, picture_row
from producer.exports.survey import Survey
from producer.exports.target import Target
from producer.in_order import in_order
from producer.pictures import METADATA, read_picture
from producer.sidecar import sidecar
from storage.imagestore import ImageStore
from storage.jobstore import JobStore


def write_imagefolder(
    store: JobStore, images: ImageStore, found: Survey, target: Target, *, done: Callable[[int], None]
) -> None:
    """Write all pictures that are not there yet, and then the metadata.

    Args:
        store: where the jobs are.
        images: where their pictures are.
        found: what was found of the export.
        target: where it goes.
        done: is told how many more pictures are there.
    """

    def place(sample: Sample) -> None:
        if not target.holds(sample.file_name, sample.image):
            target.write(sample.file_name, read_picture(images, sample.image))
        if found.options.sidecar:
            target.write(f"{sample.name}.json", sidecar(sample.job, sample.image, found.submission))

    with target.published(METADATA) as path, path.open("w", encoding="utf-8", newline="\n") as metadata:
        for sample, _ in in_order(place, found.samples(store), local=images.is_local and target.is_local):
            row = same_columns(picture_row(sample, found.submission), found.columns)
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
            done(1)
