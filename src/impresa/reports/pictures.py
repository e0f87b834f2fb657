"""Pictures inside of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

THUMBNAIL_PX = 160


def data_uri(image: Image.Image, most_px: int = THUMBNAIL_PX) -> str:
    """A picture as a data URI, see `thumbnail`."""
    kind, content = thumbnail(image, most_px)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Image.Image, most_px: int = THUMBNAIL_PX) -> tuple[str, bytes]:
    """Kind and content of a file with a picture of at most `most_px` pixels a side: thumbnails and smaller ones stay as
    they are (`png`), others become `jpeg`."""
    small = image.convert("RGB")
    kind = "png" if max(small.size) <= THUMBNAIL_PX else "jpeg"
    small.thumbnail((most_px, most_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=85, optimize=True)
    return kind, buffer.getvalue()
