"""Thumbnails of photos inside a page, of bounded size."""

import base64
from collections.abc import Sequence

from penult.export.data.photo_measures import thumbnail
from penult.export.data.splitting import Photo
from penult.interrupts import pool

_SIDE_PIXELS, _QUALITY, _MIN_QUALITY = 176, 75, 30
_MAX_BYTES = 12_000


def thumbnail_uris(photos: Sequence[Photo]) -> list[str]:
    """Return whole photos as data URIs of about 12 KB or less; raise DiskError if one is gone."""
    with pool() as threads:
        return list(threads.map(_uri, photos))


def _uri(photo: Photo) -> str:
    data = thumbnail(photo, _SIDE_PIXELS, _QUALITY)
    if len(data) > _MAX_BYTES:  # noise has several times the bytes of other photos
        data = thumbnail(photo, _SIDE_PIXELS // 2, _MIN_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
