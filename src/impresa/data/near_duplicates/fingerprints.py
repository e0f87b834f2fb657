"""What is kept of each image to find those that are equal or nearly so: digests, a perceptual hash, a small version.

In memory an image takes some 50 bytes. The small versions lie in a temporary file that is mapped into memory.
"""

from __future__ import annotations

import math
from array import array
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from impresa.files import naming

SMALL_PX = 32
"""Side of the small versions."""
_BYTES = 3 * SMALL_PX**2
_DIGEST_BYTES = 16
"""Of SHA-256; kept of each."""
_SIDE = 8
"""Frequencies along each side that the hash takes."""
_STEP = 8.0
"""Coefficients are rounded to it: less than that is what compression and resizing leave of an even picture."""
_LUMA = np.array([0.299, 0.587, 0.114])


def small_version(image: Image.Image) -> NDArray[np.uint8]:
    """(32, 32, 3) of an RGB image, antialiased, its sides' ratio ignored."""
    return np.asarray(image.resize((SMALL_PX, SMALL_PX), Image.Resampling.BILINEAR, reducing_gap=3.0))


def perceptual_hash(small: NDArray[np.uint8]) -> int:
    """64 bits that near-equal images share but for a few (DCT hash, Zauner 2010); other images may have them too.

    A bit says that the strength of one of the 64 lowest frequencies is above their median.
    """
    strengths = np.rint(dctn(small @ _LUMA, norm="ortho")[:_SIDE, :_SIDE] / _STEP)
    strengths[0, 0] = 0  # brightness
    bits = np.packbits(strengths > np.median(strengths))
    return int.from_bytes(bits.tobytes(), "little")


class Fingerprints:
    """Those of N images, in the order in which they were added."""

    def __init__(self) -> None:
        self._contents, self._pixels = bytearray(), bytearray()
        self._hashes, self._levels, self._ratios = array("Q"), bytearray(), array("f")
        self._folder = Path(gettempdir())
        self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115 - it lives as long as this object

    def add(self, image: Image.Image, content: bytes | None = None) -> bytes:
        """Take a further RGB image, and the bytes of its file where they are known; the digest of its pixels."""
        pixels = sha256(f"{image.width} {image.height} ".encode() + image.tobytes()).digest()[:_DIGEST_BYTES]
        self._pixels += pixels
        unknown = len(self).to_bytes(_DIGEST_BYTES, "little")
        self._contents += unknown if content is None else sha256(content).digest()[:_DIGEST_BYTES]
        small = small_version(image)
        self._hashes.append(perceptual_hash(small))
        self._levels.append(int((small @ _LUMA).mean()))
        self._ratios.append(math.log(image.width / image.height))
        with naming(self._folder):
            self._file.write(small.tobytes())
        return pixels

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def pixels(self) -> NDArray[np.uint64]:
        """(N, 2) numbers that images of equal pixels share."""
        return np.frombuffer(bytes(self._pixels), "<u8").reshape(-1, 2)

    @property
    def contents(self) -> NDArray[np.uint64]:
        """(N, 2) the same for files of equal bytes."""
        return np.frombuffer(bytes(self._contents), "<u8").reshape(-1, 2)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) perceptual hashes."""
        return np.array(self._hashes, np.uint64)

    @property
    def levels(self) -> NDArray[np.uint8]:
        """(N,) mean brightness."""
        return np.frombuffer(bytes(self._levels), np.uint8)

    @property
    def ratios(self) -> NDArray[np.float32]:
        """(N,) logarithm of width by height."""
        return np.array(self._ratios, np.float32)

    @property
    def small(self) -> NDArray[np.uint8]:
        """(N, 32, 32, 3) the small versions."""
        with naming(self._folder):
            self._file.flush()
        shape = (len(self), SMALL_PX, SMALL_PX, 3)
        return np.memmap(self._file, np.uint8, "r", shape=shape) if len(self) else np.zeros(shape, np.uint8)
