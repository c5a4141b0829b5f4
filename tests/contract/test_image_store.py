"""What `storage.imagestore.ImageStore` promises, for every implementation."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.errors import BadInputError, StoreFullError, UnreachableError
from storage.imagestore import FsspecImageStore, ImageStore, check_key, picture_folder, picture_key
from storage.local_files import RESERVE

KEY = "abcd2345/0000/000007.png"
PARTS = ("..", ".", "", "a", "\\", "\0", "b.png", "~")
Fault = Callable[[Any, int], None]


def failing(code: int) -> Callable[..., NoReturn]:
    """Return a function that fails as the operating system would."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def break_writes(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Let every write into the store fail with an error number, from half-way through the data on."""

    def break_them(store: FsspecImageStore, code: int) -> None:
        monkeypatch.setattr(os, "fsync", failing(code))  # local files
        monkeypatch.setattr(store._files, "pipe_file", failing(code))  # everything else

    return break_them


def files_below(folder: Path) -> list[Path]:
    """Return every file in a folder, hidden ones included."""
    return [path for path in folder.rglob("*") if path.is_file()]


class TestImageStore:
    """One contract for every implementation."""

    def test_what_was_written_is_read(self, image_store: ImageStore) -> None:
        """Bytes come back as they went in, an empty file and a large one included."""
        for number, data in enumerate((b"", b"\0\xff", bytes(range(256)) * 4096)):
            key = picture_key("abcd2345", number, 1)
            assert not image_store.exists(key)
            image_store.write(key, data)
            assert image_store.exists(key)
            assert image_store.read(key) == data

    def test_a_link_leads_other_programs_to_the_picture(self, image_store: ImageStore) -> None:
        """What fsspec opens under it is what was written."""
        image_store.write(KEY, b"picture")
        with fsspec.open(image_store.link(KEY), "rb") as file:
            assert file.read() == b"picture"

    def test_a_second_write_replaces_the_first(self, image_store: ImageStore) -> None:
        """A key holds what was written last."""
        image_store.write(KEY, b"a longer first version")
        image_store.write(KEY, b"second")
        assert image_store.read(KEY) == b"second"

    def test_deleting_twice_is_no_error(self, image_store: ImageStore) -> None:
        """A delete leaves nothing, and nothing to complain about the next time."""
        image_store.write(KEY, b"data")
        image_store.delete(KEY)
        assert not image_store.exists(KEY)
        image_store.delete(KEY)
        image_store.delete("never/there.png")

    def test_deleting_one_leaves_the_others(self, image_store: ImageStore) -> None:
        """Only the named picture goes."""
        other = picture_key("abcd2345", 7, 2)
        image_store.write(KEY, b"one")
        image_store.write(other, b"two")
        image_store.delete(KEY)
        assert image_store.read(other) == b"two"

    def test_all_files_below_a_folder_are_named(self, image_store: ImageStore) -> None:
        """Paths below the root, as keys are; nothing where there is no such folder."""
        keys = [
            picture_key("abcd2345", 7, 1),
            picture_key("abcd2345", 1007, 2),
            picture_key("efgh2345", 0, 1),
        ]
        for key in keys:
            image_store.write(key, b"data")
        assert set(keys) <= set(image_store.names())
        assert list(image_store.names("abcd2345")) == keys[:2]
        assert list(image_store.names("abcd2345/0001")) == keys[1:2]
        assert list(image_store.names("nowhere1")) == []

    def test_a_named_file_is_discarded(self, image_store: ImageStore) -> None:
        """Once is enough, twice is no error, and nothing outside the root can be named."""
        other = picture_key("abcd2345", 8, 1)
        image_store.write(KEY, b"data")
        image_store.write(other, b"data")
        for _ in range(2):
            image_store.discard(KEY)
        assert not image_store.exists(KEY)
        assert image_store.exists(other)
        for outside in ("../secret", "/etc/passwd", "a/../../b"):
            with pytest.raises(BadInputError, match="outside"):
                image_store.discard(outside)

    def test_what_is_missing_is_found_missing(self, image_store: ImageStore) -> None:
        """Looking for a picture tells its bytes from nothing at all."""
        other = picture_key("abcd2345", 8, 1)
        image_store.write(KEY, b"data")
        assert image_store.find(KEY) == b"data"
        assert image_store.find(other) is None
        assert image_store.find("never/there.png") is None

    def test_a_folder_goes_with_all_that_is_in_it(self, image_store: ImageStore) -> None:
        """Pictures of all attempts go, those of other folders stay, and twice is no error."""
        beside = picture_key("abcd2345", 1007, 1)
        gone = [KEY, picture_key("abcd2345", 7, 2), picture_key("abcd2345", 999, 1)]
        for key in (*gone, beside):
            image_store.write(key, b"data")
        for _ in range(2):
            image_store.delete_folder(picture_folder("abcd2345", 7))
            assert [image_store.exists(key) for key in gone] == [False] * 3
            assert image_store.read(beside) == b"data"
        image_store.delete_folder("abcd2345")
        assert not image_store.exists(beside)

    def test_reading_what_is_missing_names_the_key(self, image_store: ImageStore) -> None:
        """A missing picture is one sentence with its key."""
        with pytest.raises(UnreachableError, match=KEY):
            image_store.read(KEY)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_store_says_that_it_is_full(
        self, image_store: FsspecImageStore, break_writes: Fault, code: int
    ) -> None:
        """No space left, or none that we may use, is a StoreFullError, and nothing appears under the key."""
        break_writes(image_store, code)
        with pytest.raises(StoreFullError, match="full"):
            image_store.write(KEY, b"data")
        assert not image_store.exists(KEY)

    def test_another_fault_is_not_called_full(
        self, image_store: FsspecImageStore, break_writes: Fault
    ) -> None:
        """A broken disk is unreachable, but not full."""
        break_writes(image_store, errno.EIO)
        with pytest.raises(UnreachableError, match="failed to write") as caught:
            image_store.write(KEY, b"data")
        assert not isinstance(caught.value, StoreFullError)

    @pytest.mark.parametrize("error", [RuntimeError("NoSuchBucket"), KeyError()])
    def test_a_foreign_error_is_the_stores_fault(
        self, image_store: FsspecImageStore, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        """What a store's own libraries raise is never taken for the fault of a job."""

        def fail(*_: object, **__: object) -> NoReturn:
            raise error

        for name in ("cat_file", "rm_file", "exists"):
            monkeypatch.setattr(image_store._files, name, fail)
        for act in (image_store.read, image_store.delete, image_store.exists):
            with pytest.raises(UnreachableError, match="failed to"):
                act(KEY)

    def test_a_failed_overwrite_keeps_the_old_picture(
        self, image_store: FsspecImageStore, break_writes: Fault
    ) -> None:
        """A write that fails half-way leaves what was there before."""
        image_store.write(KEY, b"old")
        break_writes(image_store, errno.ENOSPC)
        with pytest.raises(StoreFullError):
            image_store.write(KEY, b"new")
        assert image_store.read(KEY) == b"old"

    @pytest.mark.parametrize(
        "key",
        [
            "", ".", "..", "/", "/etc/passwd", "../x.png", "a/../x.png", "a/..", "a//b", "a/", "/a", "a/./b",
            ".hidden", "a/.hidden", "a\\..\\b", "C:\\x", "a\0b", "a\n", "a b", "é.png", "~/x", "-rf", "a/-x",
            "file:///etc/passwd", "a:b", "a?b", "a#b", "a%2e%2e/b", "*",
        ],
    )  # fmt: skip
    def test_a_key_that_could_leave_the_root_is_refused(self, image_store: ImageStore, key: str) -> None:
        """No method accepts a key that is anything but a plain relative path."""
        for act in (image_store.read, image_store.delete, image_store.exists):
            with pytest.raises(BadInputError, match="no key"):
                act(key)
        with pytest.raises(BadInputError, match="no key"):
            image_store.write(key, b"data")

    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(key=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PARTS), max_size=6).map("/".join)))
    @example(key="a..b/..c")
    def test_no_accepted_key_leads_out_of_the_root(self, image_store: FsspecImageStore, key: str) -> None:
        """Whatever a key looks like, it is refused or stays below the root as it is written."""
        try:
            path = image_store.path(key)
        except BadInputError:
            return
        root = image_store.path("x").removesuffix("/x")
        assert os.path.normpath(path) == path
        assert path == f"{root}/{key}"


class TestLocalFiles:
    """What only a store on local files can promise, and has to."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The store's root, with a name that is no plain URL."""
        return tmp_path / "what? #1 100% a::b ü"

    @pytest.fixture
    def store(self, folder: Path) -> FsspecImageStore:
        """A store of local files."""
        return FsspecImageStore(f"file://{folder}")

    def test_pictures_lie_below_the_folder(self, store: FsspecImageStore, folder: Path) -> None:
        """A key is a path in the folder, whatever characters the folder's name has."""
        store.write(KEY, b"data")
        assert files_below(folder) == [folder / KEY]

    def test_a_failed_write_leaves_no_file_behind(
        self, store: FsspecImageStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the disk fills up half-way, not even a temporary file stays."""
        monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(StoreFullError):
            store.write(KEY, b"data")
        assert files_below(folder) == []

    @pytest.mark.parametrize("fault", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
    def test_an_end_before_the_rename_shows_no_half_file(
        self,
        store: FsspecImageStore,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        fault: BaseException,
    ) -> None:
        """Until the rename nothing is visible under the key, and an interrupted write cleans up."""

        def stop(temporary: Path, _target: Path) -> NoReturn:
            assert temporary.read_bytes() == b"data"
            assert not store.exists(KEY)
            raise fault

        monkeypatch.setattr(Path, "replace", stop)
        with pytest.raises((UnreachableError, KeyboardInterrupt)):
            store.write(KEY, b"data")
        assert files_below(folder) == []

    def test_a_process_that_dies_before_the_rename_leaves_no_picture(
        self, store: FsspecImageStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A power cut leaves at most a hidden temporary file, which no key can name."""
        monkeypatch.setattr(Path, "replace", failing(errno.EIO))
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody is left to clean up
        with pytest.raises(UnreachableError):
            store.write(KEY, b"data")
        (left,) = files_below(folder)
        assert not store.exists(KEY)
        with pytest.raises(BadInputError):
            check_key(str(left.relative_to(folder)))
        monkeypatch.undo()
        store.delete(KEY)
        assert files_below(folder) == []

    def test_leftovers_and_empty_folders_go_with_a_folder(
        self, store: FsspecImageStore, folder: Path
    ) -> None:
        """What a killed write has left goes as well, and no empty folder stays but the root."""
        store.write(KEY, b"data")
        (folder / KEY).with_name(".000008.png.123-abcd.part").write_bytes(b"half")
        store.delete_folder(picture_folder("abcd2345", 7))
        assert list(folder.iterdir()) == []

    def test_a_store_that_is_not_mounted_is_not_called_empty(
        self, store: FsspecImageStore, folder: Path
    ) -> None:
        """Where the root is missing or has nothing in it, nobody can say that one picture is missing."""
        with pytest.raises(UnreachableError, match="not there; mount"):
            store.find(KEY)
        folder.mkdir(parents=True)
        with pytest.raises(UnreachableError, match="is empty; mount"):
            store.find(KEY)

    def test_a_root_below_a_regular_file_is_one_sentence(self, tmp_path: Path) -> None:
        """A folder that cannot be made is a fault of the store."""
        (tmp_path / "file").write_text("not a folder")
        store = FsspecImageStore(f"file://{tmp_path / 'file' / 'images'}")
        with pytest.raises(UnreachableError, match="failed to write"):
            store.write(KEY, b"data")
        with pytest.raises(UnreachableError):
            store.read(KEY)

    def test_a_folder_in_the_place_of_a_picture_is_one_sentence(
        self, store: FsspecImageStore, folder: Path
    ) -> None:
        """Neither a write nor a delete ends in a traceback when a folder is in the way."""
        (folder / KEY).mkdir(parents=True)
        with pytest.raises(UnreachableError):
            store.write(KEY, b"data")
        with pytest.raises(UnreachableError):
            store.delete(KEY)
        assert files_below(folder) == []


def test_a_bucket_that_is_not_there_is_not_called_empty(s3_url: str) -> None:
    """A missing bucket is the store's fault; it says nothing about a picture."""
    store = FsspecImageStore(s3_url.replace("s3://pictures", "s3://no-such-bucket"))
    with pytest.raises(UnreachableError, match="create the bucket"):
        store.find(KEY)


def test_an_unknown_protocol_is_one_sentence() -> None:
    """A URL that no file system serves is refused when the store is opened."""
    with pytest.raises(UnreachableError, match="cannot be opened"):
        FsspecImageStore("nosuch://bucket/images")


@given(st.from_regex(r"[a-z][0-9a-z]{7}", fullmatch=True), st.integers(0, 10**7), st.integers(0, 100))
def test_every_picture_has_a_key_of_its_own(submission: str, index: int, attempt: int) -> None:
    """A picture's key is valid, sorts by index within its thousand, and differs between attempts."""
    key = check_key(picture_key(submission, index, attempt))
    assert key.startswith(f"{submission}/")
    assert key != picture_key(submission, index, attempt + 2)
    assert key != picture_key(submission, index + 1, attempt)


def test_keys_look_as_documented() -> None:
    """A thousand pictures a folder; the second attempt has its number in the name."""
    assert picture_key("abcd2345", 1234, 1) == "abcd2345/0001/001234.png"
    assert picture_key("abcd2345", 1234, 2) == "abcd2345/0001/001234-2.png"


def test_a_nearly_full_disk_is_full_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database that lies beside the pictures keeps room to say so."""
    store = FsspecImageStore(f"file://{tmp_path / 'images'}")
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(total=2**40, free=RESERVE + 100))
    assert store.free_bytes() == 100
    store.write(KEY, b"x" * 100)
    with pytest.raises(StoreFullError, match="free some"):
        store.write(KEY, b"x" * 101)
    assert store.read(KEY) == b"x" * 100
