"""Pictures and their thumbnails: by the job that they are of, never by a path."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from producer.pictures import read_picture, slug
from storage.parameters import suffix_of
from storage.records import Image, Job
from web.api_models import PROBLEMS
from web.problems import NotThereError
from web.ranges import CHECKED, FOR_EVER, is_known, not_modified, send_bytes
from web.site import Site, SiteOf
from web.thumbnails import MEDIA_TYPE, thumbnail_tag

router = APIRouter()
api_router = APIRouter(tags=["images"], responses=PROBLEMS)

_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}
}
_PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "A part of it."},
    304: {"description": "Not changed."},
    416: {"description": "No such part."},
}


@router.get("/submissions/{reference}/jobs/{index}/picture")
def picture(
    request: Request,
    site: SiteOf,
    reference: str,
    index: int,
    *,
    v: Annotated[str, Query(max_length=64)] = "",
    download: bool = False,
) -> Response:
    """Send a job's picture, for ever under the address that names its hash."""
    job, image = _with_picture(site, reference, index)
    return _send(request, site, job, image, cache=_cache(image, v), download=download)


@router.get("/submissions/{reference}/jobs/{index}/thumbnail")
async def thumbnail(
    request: Request, site: SiteOf, reference: str, index: int, v: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """Send a job's picture made small."""
    job, image, data = await run_in_threadpool(_with_thumbnail, site, reference, index)
    tag, cache = thumbnail_tag(image), _cache(image, v)
    if is_known(request, tag):
        return not_modified(tag, cache=cache)
    if data is None:
        data = await site.threads.shrink(lambda: site.thumbnails.find(job, image))
    return send_bytes(request, data, tag=tag, media_type=MEDIA_TYPE, cache=cache)


@api_router.get(
    "/submissions/{reference}/jobs/{index}/image",
    response_class=Response,
    responses=_PICTURE | _PARTS,
    summary="A job's picture",
)
def api_image(request: Request, site: SiteOf, reference: str, index: int) -> Response:
    """Send a job's picture as it is stored; `ETag` is its sha256, and ranges are answered."""
    job, image = _with_picture(site, reference, index)
    return _send(request, site, job, image, cache=CHECKED)


def _send(
    request: Request, site: Site, job: Job, image: Image, *, cache: str, download: bool = False
) -> Response:
    if is_known(request, image.file_sha256):
        return not_modified(image.file_sha256, cache=cache)
    name = f"{job.submission}-{job.index:06d}-{slug(job.parameters.prompt)}.{suffix_of(image.format)}"
    kind = "attachment" if download else "inline"
    return send_bytes(
        request,
        read_picture(site.images, image),
        tag=image.file_sha256,
        media_type=f"image/{image.format}",
        cache=cache,
        headers={"content-disposition": f"{kind}; filename*=UTF-8''{quote(name)}"},
    )


def _with_picture(site: Site, reference: str, index: int) -> tuple[Job, Image]:
    job = site.job(reference, index)
    if job.image is None:
        raise NotThereError(f"Job {job.label} is {job.status} and has no picture.")
    return job, job.image


def _with_thumbnail(site: Site, reference: str, index: int) -> tuple[Job, Image, bytes | None]:
    job, image = _with_picture(site, reference, index)
    return job, image, site.thumbnails.kept(job, image)


def _cache(image: Image, v: str) -> str:
    return FOR_EVER if v and image.file_sha256.startswith(v) else CHECKED
