"""Pictures and sounds of requests: from data URLs and allowed addresses to bytes of a named format."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from impresa.data.image_files import FORMATS, open_image
from impresa.serving.engine import Engine
from impresa.serving.faults import ApiError, bad
from impresa.serving.parts import Part
from impresa.serving.settings import Settings

if TYPE_CHECKING:
    import aiohttp

_LONGEST_HEAD = 200
"""Characters of a data URL before its content."""
_LINE_BREAKS, _SPACES = b"\r\n", b"\r\n\t\f "
"""Within base64 they mean nothing; many programs break it into lines."""
_FETCHED_BYTES = 16 << 20
_FETCH_S = 10.0
_FETCHES = 8
"""At once."""
_MPEG = "audio/mpeg"
_SOUNDS = (
    (b"RIFF", b"WAVE", "audio/wav"),
    (b"RF64", b"WAVE", "audio/wav"),
    (b"fLaC", b"", "audio/flac"),
    (b"OggS", b"", "audio/ogg"),
    (b"ID3", b"", _MPEG),
)
"""First bytes of sound files, those from the ninth on, and their type."""


class Media:
    """Reads the files that requests hold or name.

    Args:
        settings: the server's.
        engine: has the threads that decode.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._session: aiohttp.ClientSession | None = None
        self._fetches = asyncio.Semaphore(_FETCHES)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connections that files are fetched by."""
        if not self._settings.allow_urls:
            yield
            return
        from impresa.data.fetch.download import open_session

        async with open_session(self._bounds(), _FETCHES) as self._session:
            yield

    async def content(self, part: Part) -> bytes:
        """The file of a picture or a sound, whose first bytes and number of pixels have been checked.

        Raises:
            ApiError: it is no such file, or may not be fetched.
        """
        text = part.value
        if text[:8].lower().startswith(("http://", "https://")):
            return await self._engine.read(self._checked, part, await self._fetched(part))
        return await self._engine.read(self._decoded, part)

    def _decoded(self, part: Part) -> bytes:
        return self._checked(part, _content_of(part))

    def _checked(self, part: Part, content: bytes) -> bytes:
        if part.kind == "audio":
            if sound_type(content) is None:
                raise unreadable_sound(part.where)
        else:
            _check_picture(content, part.where, self._settings.limits.pixels)
        return content

    def _bounds(self) -> Any:
        from impresa.data.fetch.download import Bounds

        return Bounds(
            max_bytes=min(_FETCHED_BYTES, self._settings.limits.body_bytes),
            max_pixels=self._settings.limits.pixels,
            timeout_s=_FETCH_S,
            min_bytes_per_s=1024,
            allow_private=self._settings.allow_private,
            hosts=frozenset(self._settings.allow_urls),
        )

    async def _fetched(self, part: Part) -> bytes:
        if self._session is None:
            message = f"{part.where}: this server fetches nothing; send the file as a data URL"
            raise bad(message, part.where, "invalid_url")
        from impresa.data.fetch.download import download
        from impresa.data.fetch.failure import Failure

        try:
            async with self._fetches:
                return await download(self._session, part.value, self._bounds())
        except Failure as error:
            message = f"{part.where}: cannot be fetched ({error.reason}); send the file as a data URL"
            raise bad(message, part.where, "invalid_url") from error


def _content_of(part: Part) -> bytes:
    """The bytes of a data URL, or of bare base64. As browsers do, white space in a data URL is left out, and a missing
    end of `=` is filled in; bare base64 may only have line breaks, so that words and paths are not taken for it."""
    text, where, begin = part.value, part.where, 0
    if text[:5].lower() == "data:":
        begin = text.find(",", 0, _LONGEST_HEAD) + 1
        kind, *rest = text[5 : max(begin - 1, 5)].lower().split(";")
        if not begin or "base64" not in rest:
            raise bad(f"{where}: must be a data URL such as data:{part.kind}/...;base64,...", where, "invalid_url")
        if kind and not kind.startswith(f"{part.kind}/"):
            raise bad(f"{where}: is {kind:.40}, which is no {part.kind}", where, f"invalid_{part.kind}")
    try:
        digits = text[begin:].encode("ascii").translate(None, _SPACES if begin else _LINE_BREAKS)
        end = b"=" * (-len(digits) % 4) if begin else b""
        return binascii.a2b_base64(digits + end, strict_mode=True)
    except (ValueError, UnicodeEncodeError) as error:
        fault = "holds no base64 (A to Z, a to z, 0 to 9, + and /)" if begin else "is neither a data URL nor base64"
        raise bad(f"{where}: {fault}", where, f"invalid_{part.kind}") from error


def _check_picture(content: bytes, where: str, max_pixels: int) -> None:
    try:
        open_image(BytesIO(content), max_pixels)
    except (ValueError, OSError) as error:
        if "too many pixels" in str(error):
            raise bad(f"{where}: the image has more than {max_pixels} pixels", where, "invalid_image") from error
        raise unreadable_picture(where) from error


def unreadable_picture(where: str) -> ApiError:
    """The fault of a picture that cannot be decoded."""
    return bad(f"{where}: is no image that can be read ({', '.join(FORMATS)})", where, "invalid_image")


def sound_type(content: bytes) -> str | None:
    """The type of a sound file by its first bytes; None if it is none that can be read."""
    if len(content) > 2 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0:
        return _MPEG
    fits = (kind for a, b, kind in _SOUNDS if content[:4].startswith(a) and content[8:12].startswith(b))
    return next(fits, None)


def unreadable_sound(where: str) -> ApiError:
    """The fault of a sound that cannot be decoded."""
    return bad(f"{where}: is no sound that can be read (wav, flac, ogg or mp3)", where, "invalid_audio")
