"""The embedded data: what scenes hold, that pictures and captions tell the truth, and that no machine differs."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes_digest import digest

from impresa.config.dataset import ShapesConfig
from impresa.data.shapes.captions import WHERE, describe
from impresa.data.shapes.draws import Draws
from impresa.data.shapes.rendering import PALETTE, render
from impresa.data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    PLACES,
    SHAPES,
    SIZES,
    TRAINED_PAIRS,
    Background,
    Scene,
    SceneObject,
    draw_scene,
    relations,
)
from impresa.data.sources import Reading
from impresa.data.sources import shapes as source_module
from impresa.data.sources.shapes import ShapesSource
from impresa.evaluation.baselines import ColourHistogramModel, colour_histogram

SPLITS = ("train", "val", "test")
PLAIN = Background(kind="plain", level=60, tint=(0, 0, 0), contrast=10, period=80, slope=(0, 1), grain=0)


def scenes(split: str, count: int = 600, seed: int = 0) -> list[Scene]:
    return [draw_scene(seed, split, index) for index in range(count)]


def thing(**changes: object) -> SceneObject:
    default = SceneObject("red", "circle", "large", "center", x=500, y=500, radius=150, angle=0, tint=(0, 0, 0))
    return replace(default, **changes)


def test_pictures_and_captions_are_the_bytes_they_have_always_been() -> None:
    assert digest() == "79e2b83dec5b7f50"


def test_another_process_draws_the_same() -> None:
    command = [sys.executable, str(Path(__file__).with_name("shapes_digest.py"))]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert found.stdout.strip() == digest()


def test_draws_depend_on_their_whole_key_and_reach_all_values() -> None:
    assert [Draws("a", 1).bits() for _ in range(2)] == [Draws("a", 1).bits() for _ in range(2)]
    assert len({Draws(*key).bits() for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 0))}) == 4
    draws = Draws("x")
    counts = Counter(draws.between(-1, 1) for _ in range(3000))
    assert set(counts) == {-1, 0, 1}
    assert min(counts.values()) > 850
    assert sorted(draws.sample("abc", 3)) == ["a", "b", "c"]


def test_every_colour_and_shape_is_trained_but_the_test_pairs_never_are() -> None:
    trained = {item.pair for split in ("train", "val") for scene in scenes(split, 3000) for item in scene.objects}
    tested = {item.pair for scene in scenes("test") for item in scene.objects}
    assert trained == set(TRAINED_PAIRS)
    assert tested == set(HELD_OUT_PAIRS)
    assert not trained & tested
    assert {colour for colour, _ in trained} == {colour for colour, _ in tested} == set(COLOURS)
    assert {shape for _, shape in trained} == {shape for _, shape in tested} == set(SHAPES)


def test_splits_and_seeds_share_no_scene_and_lengths_change_none() -> None:
    assert not set(scenes("train")) & set(scenes("val"))
    assert not set(scenes("train")) & set(scenes("train", seed=1))
    short, long = (ShapesSource(ShapesConfig(num_train=n), "train", 32) for n in (3, 300))
    assert short[2].captions == long[2].captions
    assert short[2].image.tobytes() == long[2].image.tobytes()


def test_scenes_hold_one_to_three_things_apart_from_each_other_and_inside_the_image() -> None:
    counts = Counter(len(scene.objects) for scene in scenes("train"))
    assert set(counts) == {1, 2, 3}
    assert counts[1] <= 0.2 * 600
    for scene in scenes("train"):
        assert len({item.place for item in scene.objects}) == len(scene.objects)
        assert len({item.pair for item in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            assert item.radius <= min(item.x, item.y)
            assert max(item.x, item.y) <= 1000 - item.radius
        for one, two in combinations(scene.objects, 2):
            assert (one.x - two.x) ** 2 + (one.y - two.y) ** 2 > (one.radius + two.radius) ** 2
    assert {item.size for scene in scenes("train") for item in scene.objects} == set(SIZES)
    assert {item.place for scene in scenes("train") for item in scene.objects} == set(PLACES)
    assert {scene.background.kind for scene in scenes("train")} == set(BACKGROUNDS)


def test_sizes_cannot_be_mistaken() -> None:
    radii = {size: [o.radius for s in scenes("train") for o in s.objects if o.size == size] for size in SIZES}
    assert min(radii["large"]) > 1.3 * max(radii["small"])


def test_relations_hold_by_a_fifth_of_the_image() -> None:
    for scene in scenes("train"):
        for one, two in combinations(scene.objects, 2):
            assert relations(one, two)
            for relation in relations(one, two):
                by = {
                    "left of": two.x - one.x,
                    "right of": one.x - two.x,
                    "above": two.y - one.y,
                    "below": one.y - two.y,
                }
                assert by[relation] > 200


def test_captions_name_every_object_once_and_tell_the_truth() -> None:
    checked = Counter()
    for index, scene in enumerate(scenes("train", 1500)):
        caption = describe(scene, Draws("test", index))
        named = re.findall(r"a (small|large) (\w+) (\w+)", caption)
        assert sorted(named) == sorted((item.size, item.colour, item.shape) for item in scene.objects)
        objects = {f"a {item.size} {item.colour} {item.shape}": item for item in scene.objects}
        places = "|".join(sorted(WHERE.values(), key=len, reverse=True))
        for phrase, item in objects.items():
            for before, after in re.findall(rf"(?:({places}) )?{phrase}(?: ({places}))?", caption):
                for where in filter(None, (before, after)):
                    assert _is_there(item, where), caption
                    checked["place"] += 1
        for first, relation, second in re.findall(
            r"(a \w+ \w+ \w+) (left of|right of|above|below) (a \w+ \w+ \w+)", caption
        ):
            assert _holds(objects[first], relation, objects[second]), caption
            checked["relation"] += 1
    assert checked["place"] > 1500
    assert checked["relation"] > 300


def _is_there(item: SceneObject, where: str) -> bool:
    across = "left" if item.x < 400 else "right" if item.x > 600 else ""
    down = "top" if item.y < 400 else "bottom" if item.y > 600 else ""
    words = set(where.split()) & {"left", "right", "top", "bottom", "center"}
    return words == (({across, down} - {""}) or {"center"})


def _holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    return {
        "left of": first.x < second.x,
        "right of": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
    }[relation]


def test_captions_of_the_test_split_are_nearly_all_distinct_and_vary_in_wording() -> None:
    captions = list(ShapesSource(ShapesConfig(), "test", 64).captions())
    assert len(captions) == 512
    assert len(set(captions)) >= 480
    assert len({re.sub(r"a \w+ \w+ \w+", "OBJECT", caption) for caption in captions}) > 30


@pytest.mark.parametrize("size", [48, 64, 224])
def test_an_object_is_drawn_where_and_as_it_is_described(size: int) -> None:
    scene = Scene((thing(colour="blue", x=250, y=700, radius=150),), PLAIN)
    image = render(scene, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert tuple(image[size * 7 // 10, size // 4]) == PALETTE["blue"]
    rows, columns = np.nonzero(np.abs(image.astype(int) - PALETTE["blue"]).sum(axis=2) < 40)
    assert np.mean(rows) / size == pytest.approx(0.7, abs=0.5 / size + 0.01)
    assert np.mean(columns) / size == pytest.approx(0.25, abs=0.5 / size + 0.01)
    assert len(rows) / size**2 == pytest.approx(np.pi * 0.141**2, rel=0.25)


def test_no_two_shapes_sizes_or_colours_look_alike() -> None:
    pictures = {
        (colour, shape, radius): render(Scene((thing(colour=colour, shape=shape, radius=radius),), PLAIN), 64)
        for colour in COLOURS
        for shape in SHAPES
        for radius in (104, 153)
    }
    for one, two in combinations(pictures.values(), 2):
        assert (np.abs(one.astype(int) - two).sum(axis=2) > 45).sum() >= 24


def test_an_object_at_the_edge_is_cut_off_not_refused() -> None:
    for x, y in ((0, 0), (1000, 1000), (0, 1000)):
        assert (render(Scene((thing(x=x, y=y),), PLAIN), 40) != render(Scene((), PLAIN), 40)).any()


@pytest.mark.parametrize("kind", BACKGROUNDS)
@pytest.mark.parametrize("level", [44, 214])
def test_backgrounds_stay_within_their_range(kind: str, level: int) -> None:
    for slope in ((-2, 1), (0, 1), (2, 2)):
        background = replace(PLAIN, kind=kind, level=level, tint=(10, -10, 0), contrast=26, slope=slope, grain=999)
        ground = render(Scene((), background), 600).astype(int)
        assert np.abs(ground - level).max() <= 26 + 4 + 10
        assert ground.std() > 1


def test_edges_are_smooth() -> None:
    image = render(Scene((thing(colour="yellow"),), PLAIN), 64)
    assert len(np.unique(image[:, :, 0])) > 12


def test_split_is_kept_in_memory_only_when_it_is_small() -> None:
    small, large = ShapesSource(ShapesConfig(), "val", 32), ShapesSource(ShapesConfig(), "train", 512)
    assert small[0] is small[0]
    assert large[0] is not large[0]
    assert large[0].image.tobytes() == large[0].image.tobytes()


def test_scenes_of_a_small_split_are_drawn_once_for_texts_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[int] = Counter()
    draw = source_module.draw_scene
    monkeypatch.setattr(source_module, "draw_scene", lambda seed, split, i: drawn.update([i]) or draw(seed, split, i))
    reading = Reading(audio_seconds=1.0, dialogues=True)
    source = ShapesSource(ShapesConfig(num_val=4), "val", 32, reading)
    texts = [(captions, list(source.dialogues())) for captions in source.captions()]
    for _ in range(2):
        assert [source[i].captions[0] for i in range(4)] == [captions for captions, _ in texts]
    assert drawn == {0: 1, 1: 1, 2: 1, 3: 1}
    large = ShapesSource(ShapesConfig(num_val=4000), "val", 256)
    for _ in range(2):
        large[5]
    assert drawn[5] == 2


def test_drawn_pictures_do_not_travel_to_other_processes() -> None:
    source = ShapesSource(ShapesConfig(), "val", 64)
    fresh = len(pickle.dumps(source))
    picture = source[3]
    assert len(pickle.dumps(source)) == fresh
    assert pickle.loads(pickle.dumps(source))[3].image.tobytes() == picture.image.tobytes()


def test_a_scene_that_is_not_there_is_an_index_error() -> None:
    source = ShapesSource(ShapesConfig(num_val=4), "val", 32)
    assert len(source) == len(list(source.captions())) == 4
    assert [source[i].captions[0] for i in range(4)] == list(source.captions())
    for index in (4, -1):
        with pytest.raises(IndexError):
            source[index]


def test_colours_alone_do_not_solve_the_retrieval() -> None:
    train, test = (ShapesSource(ShapesConfig(num_train=1500), split, 32) for split in ("train", "test"))
    model = ColourHistogramModel(
        torch.stack([colour_histogram(train[i].image) for i in range(1500)]), [train[i].captions for i in range(1500)]
    )
    images = model.embed_images(torch.stack([colour_histogram(test[i].image) for i in range(512)]))
    texts = model.embed_texts(list(test.captions()))
    similarity = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    recall = (similarity.argmax(dim=1) == torch.arange(512)).float().mean().item()
    assert 0.02 < recall < 0.3
