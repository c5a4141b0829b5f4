"""Pictures that jobs begin with: checked before anything is written, kept once, gone with their last job."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from producer.audit import Kind, audit
from storage.inputs import MAX_BYTES, MAX_PIXELS, input_key
from storage.jobstore import JobStore
from storage.settings import Settings
from storage.stores import open_image_store
from tests.unit.producer.conftest import Invoke, StandInWorker


def picture(name: str, size: tuple[int, int] = (90, 70), mode: str = "RGB") -> str:
    """Write a picture here; return the hash of its file."""
    Image.new(mode, size, 120).save(name)
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def stored(settings: Settings) -> list[str]:
    """Return the hashes of the inputs in the store."""
    return sorted(path.name for path in (settings.images_path / "inputs").rglob("*") if path.is_file())


def test_inputs_are_kept_once_and_jobs_carry_their_hash(
    invoke: Invoke, store: JobStore, settings: Settings
) -> None:
    """Of flags and of lines, which name files beside their own; strength and size are written down."""
    Path("lists").mkdir()
    ours, mask = picture("lists/a.png"), picture("m.png", mode="L")
    theirs = picture("b.webp", (200, 128))
    Path("lists/list.csv").write_text(
        "prompt,init_image,mask,strength,size\n"
        "one,a.png,,,\n"
        "two,a.png,../m.png,,\n"
        "three,,,0.25,\n"
        "four,a.png,,0.5,128x64\n"
    )
    done = invoke("submit", "lists/list.csv", "--init-image", "b.webp", "--model", "demo")
    assert done.exit_code == 0, done.stderr
    jobs = [job.parameters for job in store.jobs(store.find_submission("@last").id)]
    assert [job.options for job in jobs] == [
        {"init_image": ours, "strength": 0.8},
        {"init_image": ours, "mask_image": mask, "strength": 1.0},
        {"init_image": theirs, "strength": 0.25},
        {"init_image": ours, "strength": 0.5},
    ]
    assert [(job.width, job.height) for job in jobs] == [(88, 64), (88, 64), (200, 128), (128, 64)]
    assert stored(settings) == sorted({ours, mask, theirs})
    images = open_image_store(settings)
    assert images.read(input_key(ours)) == Path("lists/a.png").read_bytes()
    assert store.inputs_used() == {ours, mask, theirs}


def test_what_is_in_the_store_can_be_named_by_its_hash(invoke: Invoke, store: JobStore) -> None:
    """A list that came out of an export names its inputs so; a hash of nothing is refused."""
    sha256 = picture("a.png")
    assert invoke("submit", "-p", "x", "--init-image", "a.png", "--model", "demo").exit_code == 0
    Path("a.png").unlink()
    done = invoke("submit", "-p", "y", "--init-image", sha256, "--model", "demo")
    assert done.exit_code == 0, done.stderr
    job = store.find_job("@last:0").parameters
    assert (job.options["init_image"], job.width) == (sha256, 88)
    done = invoke("submit", "-p", "z", "--init-image", "f" * 64, "--model", "demo")
    assert done.exit_code == 2
    assert "the picture store has no input of this hash" in done.stderr


def test_every_fault_of_an_input_is_said_with_its_line_and_nothing_is_written(
    invoke: Invoke, home: Path
) -> None:
    """Missing, no picture, cut off, a folder, a strength or mask without init image, no steps left."""
    picture("a.png")
    Path("no.png").write_text("hello")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:90])
    Path("folder.png").mkdir()
    Image.new("I;16", (64, 64)).save("deep.png")
    picture("small.png", (40, 40))
    Path("list.csv").write_text(
        "prompt,init_image,mask,strength,steps\n"
        "a,gone.png,,,\nb,no.png,,,\nc,cut.png,,,\nd,folder.png,,,\ne,deep.png,,,\nf,small.png,,,\n"
        "g,,,0.5,\nh,,a.png,,\ni,a.png,,1.5,\nj,a.png,,0.1,5\n"
    )
    done = invoke("submit", "list.csv", "--model", "demo")
    assert done.exit_code == 2
    for line, reason in enumerate(
        (
            "init_image 'gone.png': there is no such file",
            "init_image 'no.png': it is no picture; name a PNG, JPEG or WebP file.",
            "init_image 'cut.png': it is damaged",
            "init_image 'folder.png': this is a folder",
            "init_image 'deep.png': it has more than 8 bits a channel",
            "is 40x40, and pictures have 64 to 2048 pixels a side; say which size",
            "strength is about an init image, and this job has none",
            "A mask is about an init image, and this job has none",
            "strength 1.5 is out of range",
            "With strength 0.1 none of 5 steps is left",
        ),
        2,
    ):
        said = next(text for text in done.stderr.splitlines() if f"list.csv:{line}:" in text)
        assert reason in said
    assert not (home / "images").exists()


def _png_of(width: int, height: int) -> bytes:
    """Return a PNG that says it has so many pixels, in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


def test_an_input_that_unfolds_into_gigabytes_is_refused(invoke: Invoke, home: Path) -> None:
    """Its head says how large it is: it is never decoded. A file without end is not read to its end."""
    for width, height in ((MAX_PIXELS // 8000 + 1, 8000), (2**20, 2**20)):
        Path("bomb.png").write_bytes(_png_of(width, height))
        done = invoke("submit", "-p", "x", "--init-image", "bomb.png", "--model", "demo")
        assert done.exit_code == 2
        assert f"at most {MAX_PIXELS:,} are taken" in done.stderr
    with Path("long.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name, reason in (("long.png", f"at most {MAX_BYTES:,}"), ("/dev/zero", "a device or a pipe")):
        done = invoke("submit", "-p", "x", "--init-image", name, "--model", "demo")
        assert done.exit_code == 2
        assert reason in done.stderr
    assert not (home / "images").exists()


def test_a_dry_run_writes_no_input(invoke: Invoke, home: Path) -> None:
    """It reads and checks them, and shows the jobs."""
    picture("a.png")
    done = invoke("submit", "-p", "x", "--init-image", "a.png", "--model", "demo", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "88x64" in done.stdout
    assert not (home / "images").exists()


def test_the_same_list_with_another_picture_is_another_list(invoke: Invoke) -> None:
    """A submission is found again by what its inputs hold, whatever they are called."""
    picture("a.png")
    picture("b.png", (90, 71))
    Path("c.png").write_bytes(Path("a.png").read_bytes())
    ids = [
        invoke("submit", "-p", "x", "--seed", "1", "--init-image", name, "--model", "demo").stdout.strip()
        for name in ("a.png", "b.png", "c.png")
    ]
    assert ids[0] == ids[2] != ids[1]


def test_an_input_stays_while_a_job_needs_it_and_goes_with_the_last(
    invoke: Invoke, stand_in: StandInWorker, settings: Settings
) -> None:
    """Prune removes inputs that no job names any more, and no other's."""
    both, mine = picture("both.png"), picture("mine.png", (64, 64))
    invoke(
        "submit",
        "-p",
        "x",
        "--init-image",
        "both.png",
        "--mask",
        "mine.png",
        "--name",
        "one",
        "--model",
        "demo",
    )
    invoke("submit", "-p", "y", "--init-image", "both.png", "--name", "two", "--model", "demo")
    stand_in.start()
    stand_in.render()
    stand_in.stop()
    assert stored(settings) == sorted([both, mine])
    assert invoke("prune", "one", "--yes").exit_code == 0
    assert stored(settings) == [both]
    assert invoke("prune", "two", "--yes").exit_code == 0
    assert stored(settings) == []


def test_an_audit_knows_inputs(
    invoke: Invoke, stand_in: StandInWorker, store: JobStore, settings: Settings
) -> None:
    """A healthy one is no stranger; one that is missing or has other bytes breaks a promise."""
    sha256, other = picture("a.png"), picture("m.png", (64, 64))
    invoke("submit", "-p", "x", "--init-image", "a.png", "--mask", "m.png", "--model", "demo")
    stand_in.start()
    stand_in.render()
    images = open_image_store(settings)
    assert list(audit(store, images)) == []
    images.write(input_key(sha256), b"other")
    images.delete(input_key(other))
    found = {finding.where: finding.kind for finding in audit(store, images)}
    assert found == {input_key(sha256): Kind.DAMAGED, input_key(other): Kind.MISSING}
    # Whoever submits the file again mends it.
    assert (
        invoke("submit", "-p", "z", "--init-image", "a.png", "--mask", "m.png", "--model", "demo").exit_code
        == 0
    )
    assert not [finding for finding in audit(store, images) if finding.is_wrong]


def test_a_picture_whose_input_is_gone_is_not_reproduced(
    invoke: Invoke, stand_in: StandInWorker, settings: Settings
) -> None:
    """The sentence says which file is lacking, and how to bring it back."""
    sha256 = picture("a.png")
    invoke("submit", "-p", "x", "--init-image", "a.png", "--model", "demo")
    stand_in.start()
    stand_in.render()
    open_image_store(settings).delete(input_key(sha256))
    done = invoke("reproduce", "@last:0")
    assert done.exit_code == 2
    assert f"its init image, the file with the sha256 {sha256}, is not in the picture store" in done.stderr


@pytest.mark.parametrize("flag", ["--strength=0.5", "--control-scale=0.5"])
def test_flags_about_an_input_need_one(invoke: Invoke, flag: str) -> None:
    """A job without it is refused, and told what is missing."""
    done = invoke("submit", "-p", "x", flag, "--model", "demo")
    assert done.exit_code == 2
    assert "and this job has none" in done.stderr


def test_templates_and_presets_go_with_inputs(invoke: Invoke, store: JobStore) -> None:
    """A drawn prompt keeps its picture; a preset's size beats the picture's, and a picture's the model's."""
    sha256 = picture("a.png")
    Path("presets.toml").write_text("[presets.wide]\nsize = '128x64'\nstrength = 0.4\n")
    Path("list.csv").write_text("prompt,init_image\na {red|blue} fox,a.png\n")
    command = ["submit", "list.csv", "--templates", "random", "--seed", "1", "--model", "demo"]
    for extra, size, strength in (([], (88, 64), 0.8), (["--preset", "wide"], (128, 64), 0.4)):
        done = invoke(*command, *extra)
        assert done.exit_code == 0, done.stderr
        job = store.find_job("@last:0").parameters
        assert job.prompt in ("a red fox", "a blue fox")
        assert (job.width, job.height) == size
        assert job.options == {"init_image": sha256, "strength": strength}
