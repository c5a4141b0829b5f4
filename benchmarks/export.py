"""How long 10,000 pictures take to export in each format, against `cp -r` of the same files in the same run.

Pictures are bytes that nothing can pack, as large as the demo model's and as those of 256x256 pixels; the
export is the whole command, from its start to the card beside the pictures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, cast

from report import arguments, fresh_home, median, promptmill, seconds, show

from storage.imagestore import picture_key
from storage.parameters import JobParameters
from storage.records import Claim, Image
from storage.settings import Settings
from storage.stores import open_job_store
from tests.records import worker_record

SIZES = (8_000, 120_000)  # bytes: 64x64 of the demo model, 256x256
FORMATS = ("imagefolder", "webdataset", "parquet", "csv")
NOBODY = "w1"


def rendered(home: Path, count: int, size: int) -> Path:
    """Make a submission whose jobs all have pictures; return the store's folder."""
    settings = Settings(home=home)
    store = open_job_store(settings)
    store.add_worker(worker_record(NOBODY, lanes=16, concurrency=16))
    submission, _ = store.add_submission(model="demo", source="benchmark")
    prompt = "a watercolor painting of an otter that holds a lantern, in the rain"
    store.add_jobs(
        submission.id,
        (JobParameters(prompt=prompt, seed=seed, extra={"genre": "neon"}) for seed in range(count)),
    )
    store.open_submission(submission.id)
    for job in store.take_for_dispatch("demo", window=count):
        claimed = cast("Claim", store.claim(job, NOBODY, defaults={"width": 64, "height": 64}))
        data = os.urandom(size)
        key, digest = picture_key(submission.id, claimed.index, 1), hashlib.sha256(data).hexdigest()
        path = settings.images_path / key  # the store flushes each to the disk, which takes its time
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        image = Image(
            key=key, file_sha256=digest, pixel_sha256=digest, bytes=size, format="png",
            seconds={"denoise": 1.5}, numerics={"model_revision": "a" * 64, "dtype": "float32"},
        )  # fmt: skip
        store.finish(claimed, image)
    store.close()
    return settings.images_path


def measured(environment: dict[str, str], source: Path, folder: Path, name: str) -> float:
    """Return the seconds that `cp -r` or an export takes into a new folder, which goes away again."""
    os.sync()  # what was written before is not to be waited for now
    to = folder / name
    if name == "cp -r":
        command = ["cp", "-r", str(source), str(to)]
        taken = seconds(lambda: subprocess.run(command, check=True))
    else:
        taken = seconds(lambda: promptmill(environment, "export", "@last", "--format", name, "--to", str(to)))
    shutil.rmtree(to)
    return taken


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--size", type=int, action="append", help="bytes of a picture; repeatable")
    options = parser.parse_args()
    count, rounds = (1_000, 1) if options.quick else (10_000, 3)
    rows: list[dict[str, Any]] = []
    for size in options.size or SIZES:
        with fresh_home() as environment, tempfile.TemporaryDirectory(prefix="pm-") as folder:
            source = rendered(Path(environment["PROMPTMILL_HOME"]), count, size)
            times: dict[str, list[float]] = {name: [] for name in ("cp -r", *FORMATS)}
            for _ in range(rounds):
                for name, taken in times.items():
                    taken.append(measured(environment, source, Path(folder), name))
        copied = median(times["cp -r"])
        for name, taken in times.items():
            middle = median(taken)
            rows.append(
                {
                    "pictures": count, "bytes each": size, "what": name, "s": middle,
                    "MB/s": count * size / 1e6 / middle, "of cp -r": middle / copied,
                }
            )  # fmt: skip
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
