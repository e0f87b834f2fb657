"""Draws a folder of photo-like pictures with captions: `python benchmarks/photos.py DIR [--number N] [--seed S]`.

Each is a JPEG of 480 to 1,024 pixels a side: one to four things of one kind and one colour, small or large, on the
left, in the middle or on the right of one of five grounds, in uneven light and with a camera's noise. The caption names
what is there, such as "three small red mugs on the left of a wooden table", in one of several wordings. `captions.csv`
has the columns `picture` and `text`.
"""

from __future__ import annotations

import argparse
import csv
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

THINGS = ("mug", "ball", "book", "plant")
COLOURS = {
    "red": (200, 40, 40),
    "blue": (45, 80, 190),
    "green": (50, 140, 60),
    "yellow": (225, 190, 50),
    "white": (232, 230, 225),
    "black": (38, 38, 42),
}
GROUNDS = {
    "a wooden table": (150, 105, 65),
    "the grass": (95, 130, 60),
    "a grey floor": (140, 140, 145),
    "a blue cloth": (80, 105, 160),
    "the sand": (205, 185, 145),
}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLACES = ("on the left of", "in the middle of", "on the right of")
SIZES = {"small": 0.085, "large": 0.13}
"""Half the height of a thing, as a part of the picture's shorter side."""
WORDINGS = (
    "{count} {size} {colour} {things} {place} {ground}",
    "a photo of {count} {size} {colour} {things} {place} {ground}",
    "{place} {ground} there {verb} {count} {size} {colour} {things}",
    "we see {count} {things}, {size} and {colour}, {place} {ground}",
)
SIDES_PX = (480, 1024)


def draw_photo(generator: np.random.Generator) -> tuple[Image.Image, str]:
    """A picture and its caption."""
    thing, colour, ground, size, place = (
        str(generator.choice(list(names))) for names in (THINGS, COLOURS, GROUNDS, SIZES, PLACES)
    )
    count = int(generator.integers(1, len(COUNTS) + 1))
    width, height = (int(side) for side in generator.integers(SIDES_PX[0], SIDES_PX[1] + 1, 2))
    image = _ground(generator, GROUNDS[ground], ground, width, height)
    half = SIZES[size] * min(width, height) * generator.uniform(0.9, 1.1)
    for x, y in _positions(generator, count, PLACES.index(place), half, image.size):
        tint = np.clip(np.array(COLOURS[colour]) * generator.uniform(0.85, 1.1) + generator.normal(0, 8, 3), 0, 255)
        paint = tuple(int(value) for value in tint)
        image = _with_thing(image, thing, centre=(x, y), half=half, colour=paint, generator=generator)
    caption = str(generator.choice(WORDINGS)).format(
        count=COUNTS[count],
        size=size,
        colour=colour,
        things=thing + "s" * (count > 1),
        verb="is" if count == 1 else "are",
        place=place,
        ground=ground,
    )
    return _photographed(image, generator), caption


def write_photos(folder: Path, number: int, seed: int) -> Path:
    """The folder, with `number` pictures and their table; the same for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("picture", "text"))
        for index in range(number):
            generator = np.random.default_rng((seed, index))
            image, caption = draw_photo(generator)
            name = f"photo{index:04d}.jpg"
            image.save(folder / name, quality=int(generator.integers(70, 95)))
            table.writerow((name, caption))
    return folder


def _ground(
    generator: np.random.Generator, colour: tuple[int, int, int], name: str, width: int, height: int
) -> Image.Image:
    """The ground, with a wall of any pale colour behind it, both with a grain of their own."""
    horizon = int(height * generator.uniform(0.12, 0.3))
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:horizon] = generator.uniform(120, 235, 3)
    pixels[horizon:] = np.array(colour) * generator.uniform(0.8, 1.15) + generator.normal(0, 10, 3)
    grain = {"a wooden table": (2, 40), "the grass": (60, 50), "a grey floor": (4, 4), "a blue cloth": (50, 50)}
    rows, columns = grain.get(name, (90, 90))
    coarse = Image.fromarray((generator.normal(128, 30, (columns, rows)).clip(0, 255)).astype(np.uint8))
    texture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
    pixels[horizon:] += 0.7 * texture[horizon:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _positions(
    generator: np.random.Generator, count: int, third: int, half: float, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Places that hardly overlap, in the left, middle or right of the picture, below the wall."""
    width, height = size
    left, right = width * third / 3, width * (third + 1) / 3
    found: list[tuple[float, float]] = []
    for attempt in range(10_000):
        x = generator.uniform(min(left + half, (left + right) / 2), max(right - half, (left + right) / 2))
        y = generator.uniform(0.3 * height + half, max(height - 1.1 * half, 0.3 * height + half + 1))
        apart = 2 * half * max(1.05 - attempt / 1000, 0.3)
        if all((x - a) ** 2 + (y - b) ** 2 >= apart**2 for a, b in found):
            found.append((x, y))
        if len(found) == count:
            break
    return sorted(found, key=lambda point: point[1])


def _with_thing(
    image: Image.Image,
    thing: str,
    *,
    centre: tuple[float, float],
    half: float,
    colour: tuple[int, ...],
    generator: np.random.Generator,
) -> Image.Image:
    """The picture with a thing and its shadow; light comes from the upper left."""
    side = int(3 * half)
    layer, middle = Image.new("RGBA", (side, side)), side / 2
    draw = ImageDraw.Draw(layer)
    dark, light = (tuple(int(min(value * by, 255)) for value in colour) for by in (0.65, 1.25))
    {"mug": _mug, "ball": _ball, "book": _book, "plant": _plant}[thing](draw, middle, half, (colour, dark, light))
    layer = layer.rotate(generator.uniform(-12, 12), Image.Resampling.BICUBIC)
    if generator.random() < 0.5 and thing == "mug":
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corner = (int(centre[0] - middle), int(centre[1] - middle))
    shadow = Image.new("RGBA", layer.size)
    flat = layer.getchannel("A").filter(ImageFilter.GaussianBlur(half / 6)).point(lambda value: value // 2)
    shadow.putalpha(flat)
    whole = image.convert("RGBA")
    whole.paste(shadow, (corner[0] + int(half / 6), corner[1] + int(half / 6)), shadow)
    whole.paste(layer, corner, layer)
    return whole.convert("RGB")


Shades = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The colour, darker and lighter."""


def _mug(draw: ImageDraw.ImageDraw, middle: float, half: float, shades: Shades) -> None:
    colour, dark, light = shades
    left, right, top, bottom = middle - 0.6 * half, middle + 0.6 * half, middle - 0.8 * half, middle + 0.8 * half
    handle = (right - 0.3 * half, middle - 0.45 * half, right + 0.45 * half, middle + 0.45 * half)
    draw.ellipse(handle, outline=dark, width=max(int(half / 6), 2))
    draw.rounded_rectangle((left, top, right, bottom), radius=half / 5, fill=colour)
    draw.rectangle((left, top + half / 6, left + 0.3 * half, bottom - half / 6), fill=light)
    draw.ellipse((left, top - half / 6, right, top + half / 6), fill=dark)


def _ball(draw: ImageDraw.ImageDraw, middle: float, half: float, shades: Shades) -> None:
    colour, dark, light = shades
    draw.ellipse((middle - half, middle - half, middle + half, middle + half), fill=dark)
    draw.ellipse((middle - half, middle - half, middle + 0.8 * half, middle + 0.8 * half), fill=colour)
    draw.ellipse((middle - 0.6 * half, middle - 0.6 * half, middle - 0.1 * half, middle - 0.1 * half), fill=light)


def _book(draw: ImageDraw.ImageDraw, middle: float, half: float, shades: Shades) -> None:
    colour, dark, light = shades
    left, top, right, bottom = middle - 0.7 * half, middle - half, middle + 0.7 * half, middle + half
    draw.rectangle((left + half / 8, top + half / 8, right + half / 8, bottom + half / 8), fill=(240, 235, 220))
    draw.rectangle((left, top, right, bottom), fill=colour)
    draw.rectangle((left, top, left + half / 5, bottom), fill=dark)
    for line in (0.5, 0.25):
        draw.line((left + 0.4 * half, middle - line * half, right - 0.2 * half, middle - line * half), light, 3)


def _plant(draw: ImageDraw.ImageDraw, middle: float, half: float, shades: Shades) -> None:
    """A pot of the colour, with leaves."""
    colour, dark, _ = shades
    for number in range(7):
        angle = pi * (0.1 + 0.8 * number / 6)
        x, y = middle + 0.8 * half * cos(angle), middle - 0.1 * half - 0.8 * half * sin(angle)
        draw.line((middle, middle + 0.2 * half, x, y), (60, 105, 50), max(int(half / 10), 2))
        draw.ellipse((x - half / 5, y - half / 5, x + half / 5, y + half / 5), fill=(70, 125, 60))
    top, bottom = middle + 0.1 * half, middle + half
    corners = [(middle - 0.6 * half, top), (middle + 0.6 * half, top), (middle + 0.4 * half, bottom)]
    draw.polygon([*corners, (middle - 0.4 * half, bottom)], fill=colour)
    draw.rectangle((middle - 0.65 * half, top - half / 10, middle + 0.65 * half, top + half / 8), fill=dark)


def _photographed(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The picture in uneven, tinted light, a little out of focus, with a camera's noise."""
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.4, 1.6)))
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    angle = generator.uniform(0, 2 * pi)
    across = np.cos(angle) * np.linspace(-1, 1, width)[None] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    light = generator.uniform(0.8, 1.15) * (1 + generator.uniform(0, 0.2) * across)[..., None]
    tint = 1 + generator.normal(0, 0.04, 3)
    noisy = pixels * light * tint + generator.normal(0, generator.uniform(2, 9), pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_photos(args.folder, args.number, args.seed))


if __name__ == "__main__":
    main()
