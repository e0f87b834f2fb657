"""Equal and near-equal images are found, and drawings whose hashes collide are told apart."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from impresa.data.near_duplicates.candidates import MOST_BITS, candidate_pairs
from impresa.data.near_duplicates.fingerprints import Fingerprints, perceptual_hash, small_version
from impresa.data.near_duplicates.groups import Duplicates, find_duplicates
from pictures import photo


def found_in(images: list[Image.Image]) -> Duplicates:
    prints = Fingerprints()
    for image in images:
        prints.add(image)
    return find_duplicates(prints)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def drawing(*lines: tuple[int, int, int, int]) -> Image.Image:
    """Strokes as those of digits, 28 x 28."""
    image = Image.new("RGB", (28, 28))
    pen = ImageDraw.Draw(image)
    for line in lines:
        pen.line(line, fill="white", width=2)
    return image


def changed(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values)


def test_versions_of_a_picture_are_near_and_others_are_not() -> None:
    whole = photo(320, 256)
    other = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    images = [whole, other, jpeg(whole, 60), whole.resize((160, 128)), whole.copy(), jpeg(whole, 95)]
    found = found_in(images)
    assert found.groups.tolist() == [0, 1, 0, 0, 0, 0]
    assert found.members() == [(0, 2, 3, 4, 5)]
    kinds = {(pair.first, pair.second): pair.kind for pair in found.pairs}
    assert kinds[0, 4] == "pixels"
    assert set(kinds.values()) == {"near", "pixels"}
    assert all(pair.bits <= MOST_BITS and pair.difference <= 12 for pair in found.pairs)


def test_a_change_in_one_place_is_another_picture() -> None:
    values = np.array(photo(256, 256))
    values[100:140, 100:140] = 255 - values[100:140, 100:140]
    assert found_in([photo(256, 256), changed(values)]).members() == []


def test_drawings_of_one_hash_are_told_apart() -> None:
    """The same strokes in another colour, and short strokes more or less, leave the hash as it is."""
    one = drawing((8, 4, 20, 4), (20, 4, 12, 24))
    red = changed(np.array(one) * np.array([1, 0, 0], np.uint8))
    faint = changed(np.array(one) // 2)
    images = [one, red, faint]
    for x, y in ((4, 14), (22, 20), (14, 26), (25, 8)):
        images.append(drawing((8, 4, 20, 4), (20, 4, 12, 24), (x, y, x + 2, y)))
    hashes = [perceptual_hash(small_version(image)) for image in images]
    near = [bin(a ^ b).count("1") <= MOST_BITS for a, b in combinations(hashes, 2)]
    assert hashes.count(hashes[0]) > 1
    assert any(near)
    found = found_in(images)
    assert found.members() == []
    assert found.num_compared > 0
    assert found.histogram[:7].sum() == 0


def test_even_pictures_of_other_colours_all_hash_alike() -> None:
    images = [Image.new("RGB", (16, 16), (shade, 0, 255 - shade)) for shade in range(0, 250, 50)]
    assert {perceptual_hash(small_version(image)) for image in images} == {0}
    assert found_in([*images, images[2]]).members() == [(2, 5)]


def test_another_shape_is_another_picture() -> None:
    whole = photo(256, 256)
    assert found_in([whole, whole.resize((256, 128))]).members() == []


def test_nothing_is_no_group() -> None:
    assert found_in([]).members() == []
    assert found_in([photo(64, 64)]).pairs == ()


def test_chains_are_one_group_whatever_the_order() -> None:
    base = np.full((32, 32, 3), 60, np.uint8)
    base[8:16] = 200
    images = [changed(base + np.uint8(8 * step)) for step in (4, 0, 3, 1, 2)]
    assert found_in(images).members() == [(0, 1, 2, 3, 4)]


def test_all_candidates_are_found_once_each() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, 300, np.uint64)
    for k in range(150):
        flips = generator.choice(64, generator.integers(0, 10), replace=False)
        hashes[150 + k] = hashes[k] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    levels = generator.integers(100, 120, 300).astype(np.uint8)
    expected = {
        (i, j)
        for i, j in combinations(range(300), 2)
        if bin(int(hashes[i] ^ hashes[j])).count("1") <= MOST_BITS and abs(int(levels[i]) - int(levels[j])) <= 5
    }
    found = [
        pair
        for c in candidate_pairs(hashes, levels, 5)
        for pair in zip(c.first.tolist(), c.second.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert {tuple(sorted(pair)) for pair in found} == expected


def test_many_hashes_take_seconds() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, 50_000, np.uint64)
    hashes[25_000:] = hashes[:25_000] ^ np.uint64(0b101)
    levels = np.full(50_000, 7, np.uint8)
    started = perf_counter()
    num_found = sum(len(found.first) for found in candidate_pairs(hashes, levels, 22))
    assert 25_000 <= num_found < 25_010
    assert perf_counter() - started < 20


def test_pictures_that_all_hash_alike_come_to_an_end_and_are_counted() -> None:
    hashes, levels = np.zeros(2_000, np.uint64), np.zeros(2_000, np.uint8)
    left_out = sum(found.num_left_out for found in candidate_pairs(hashes, levels, 22))
    assert left_out > 0
