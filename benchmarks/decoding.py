"""JPEGs to the tensors of a model: our decoding, whole and reduced, against the plain way.

    python benchmarks/decoding.py [--output decoding.json] [--quick]

Photographs of 1024 x 768 pixels become normalised tensors of 224. The plain way is what torchvision's presets do:
Pillow decodes the whole picture, its short side is resized to 224 (bicubic, with antialias), the centre is cropped.
Ours decodes with `simplejpeg`, and resizes the centre alone; `dataset.reduced_decode` decodes at half the size here.
Differences are between the 8-bit pixels of the squares; without the package and the key there are none to Pillow's
decoding of the same file, which is asserted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image
from timing import command, measure, report, store
from torch import Tensor

from impresa.config.augmentation import AugmentationOptions, shrink_to_px
from impresa.data import jpeg
from impresa.data.images import CLIP_MEAN, CLIP_STD, ImageTransform, decode_image

SIZE, SIDE = (1024, 768), 224
NUM_PHOTOS, QUALITY = 8, 90
PLAIN, WHOLE, REDUCED = "plain", "impresa", "impresa, reduced_decode"
TRANSFORM = ImageTransform(SIDE)
SHRINK_TO = shrink_to_px(SIDE, "clip", AugmentationOptions(), spare=1.0)
"""As training with `augmentation: clip` does, whose crops may be a little smaller than the picture."""


def photographs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Noise at several scales, weaker where it is finer, as in photographs."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        total = np.zeros((size[1], size[0], 3))
        for scale in (1, 2, 4, 8, 16, 32, 64, 128):
            coarse = generator.integers(0, 255, (size[1] // scale, size[0] // scale, 3), dtype=np.uint8)
            total += scale**0.5 * (np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)) - 127.5)
        pixels = (127.5 + total * 45 / total.std()).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def plain_square(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    image = image.resize((SIDE * image.width // short, SIDE * image.height // short), Image.Resampling.BICUBIC)
    left, top = (round((side - SIDE) / 2) for side in image.size)
    return image.crop((left, top, left + SIDE, top + SIDE))


def plain(data: bytes) -> Tensor:
    pixels = torch.from_numpy(np.array(plain_square(data))).permute(2, 0, 1).contiguous().float().div_(255)
    return pixels.sub_(torch.tensor(CLIP_MEAN).view(3, 1, 1)).div_(torch.tensor(CLIP_STD).view(3, 1, 1))


def whole_square(data: bytes) -> Image.Image:
    return TRANSFORM.square(decode_image(data))


def reduced_square(data: bytes) -> Image.Image:
    return TRANSFORM.square(decode_image(data, SHRINK_TO))


def difference(
    ours: Callable[[bytes], Image.Image], theirs: Callable[[bytes], Image.Image], files: Sequence[bytes]
) -> float:
    """Mean difference of the squares, in 255ths of the range."""
    pairs = ((np.asarray(ours(file), np.int16), np.asarray(theirs(file), np.int16)) for file in files)
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def pillow_square(data: bytes) -> Image.Image:
    return TRANSFORM.square(Image.open(io.BytesIO(data)).convert("RGB"))


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__ or "").parse_args(arguments)
    files = photographs(1 if given.quick else NUM_PHOTOS, SIZE)
    assert difference(whole_square, pillow_square, files) == 0, "the whole pictures have other pixels than Pillow's"
    works = {
        PLAIN: lambda: [plain(file) for file in files],
        WHOLE: lambda: [TRANSFORM(decode_image(file)) for file in files],
        REDUCED: lambda: [TRANSFORM(decode_image(file, SHRINK_TO)) for file in files],
    }
    costs = measure(works, repeats=1 if given.quick else 15)
    differences = {WHOLE: difference(whole_square, plain_square, files)}
    differences |= {REDUCED: difference(reduced_square, plain_square, files)}
    report(f"{len(files)} JPEGs of {SIZE[0]} x {SIZE[1]} to tensors of {SIDE}", costs, [PLAIN])
    print("mean difference to the plain way, of 255:", {name: round(value, 3) for name, value in differences.items()})
    figures = {"simplejpeg": jpeg.is_there(), "kib": round(sum(map(len, files)) / len(files) / 1024)}
    store(
        given.output,
        {**figures, "costs": {name: asdict(cost) for name, cost in costs.items()}, "differences": differences},
    )


if __name__ == "__main__":
    main()
