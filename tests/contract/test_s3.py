"""What is promised of object stores, against an S3 API over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import s3fs

from storage.errors import UnreachableError
from storage.imagestore import FsspecImageStore
from tests.servers import S3

KEY = "abcd2345/0000/000007.png"


@pytest.fixture
def calls(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[FsspecImageStore, list[str]]:
    """A store, and the names of all calls that it makes to the API."""
    store = FsspecImageStore(s3_url)
    made: list[str] = []
    call: Callable[..., Any] = store._files._call_s3

    async def noted(method: str, *arguments: Any, **named: Any) -> Any:
        made.append(method)
        return await call(method, *arguments, **named)

    monkeypatch.setattr(store._files, "_call_s3", noted)
    return store, made


def test_a_picture_is_a_single_put(calls: tuple[FsspecImageStore, list[str]]) -> None:
    """No listing before it and no look after it: each would cost money and a round trip."""
    store, made = calls
    store.write(KEY, b"x" * 3_000_000)
    assert made == ["put_object"]


def test_what_another_process_wrote_is_seen(s3_url: str, s3: S3) -> None:
    """Nothing is remembered about what was not there."""
    store = FsspecImageStore(s3_url)
    assert not store.exists(KEY)
    s3.client.put_object(Bucket="pictures", Key=f"images/{KEY}", Body=b"picture")
    assert store.exists(KEY)
    assert store.read(KEY) == b"picture"


def test_the_bucket_is_named_when_it_is_missing(s3_url: str) -> None:
    """In one sentence, with what to write."""
    store = FsspecImageStore(s3_url.replace("pictures", "no-such-bucket"))
    with pytest.raises(UnreachableError, match=r"s3://no-such-bucket.* bucket does not exist"):
        store.write(KEY, b"picture")


def test_how_much_is_free_is_not_known(s3_url: str) -> None:
    """A bucket has no end."""
    assert FsspecImageStore(s3_url).free_bytes() is None


def test_a_server_that_is_gone_is_the_stores_fault(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few tries, in one sentence."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnreachableError, match=r"s3://pictures/images failed to write") as caught:
        FsspecImageStore(s3_url).write(KEY, b"picture")
    assert "\n" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()
