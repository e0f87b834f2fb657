"""Images in tiles: what the language model reads of them, in training, evaluation and use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import impresa
from impresa.config import ExperimentConfig, load_experiment
from impresa.config.relevance import notices
from impresa.data.dialogue import ask
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.data.sources import open_train_and_val, reading_of
from impresa.errors import ConfigError
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.answering.build import build_vlm
from impresa.tasks.answering.squares import Place
from impresa.tasks.answering.subjects import subjects_of
from impresa.training.run import train
from shared_folder import shared_folder
from tiny_qwen import save_qwen
from tiny_run import dry_run_of
from tiny_vlm import SIZE, chat, picture, rough, tiny_qwen_vlm, tiny_vlm

TILES = 4
FUSIONS = {
    "concat": (),
    "cross_attention": ("fusion.strategy=cross_attention", "fusion.num_queries=6", "fusion.layers=1"),
    "gated": ("fusion.strategy=gated", "fusion.num_queries=6"),
}
KINDS = {
    "tokens": (),
    "perceiver": tuple(
        f"vision_encoder.{name}"
        for name in (
            "use_perceiver=true",
            *(f"perceiver_num_{count}" for count in ("latents=5", "heads=2", "layers=1")),
        )
    ),
    "memory": tuple(f"vision_encoder.memory.{name}" for name in ("enabled=true", "dim=16", "num_memory_tokens=3")),
}


def tiled(*overrides: str) -> ExperimentConfig:
    return tiny_vlm(f"decoder.tiles={TILES}", *overrides)


def sample(number: int, *images: Image.Image) -> Sample:
    first, *more = images
    return Sample(f"s{number}", first, dialogues=(ask("what colour?", "red"),), more_images=tuple(more))


def collated(samples: Sequence[Sample], max_images: int = 1) -> DialogueBatch:
    collate = DialogueCollator(Preprocessing(chat(), ImageTransform(SIZE)), 160, max_images, TILES)
    batch = collate(samples)
    assert not batch.bad
    return batch


def wide(seed: int) -> Image.Image:
    """Three tiles."""
    return picture(seed, 60).resize((96, 32))


SMALL, SQUARE, WIDE = picture(1, SIZE), picture(2, 40), wide(3)
MIXED = [sample(0, SMALL), sample(1, SQUARE), sample(2, WIDE)]


def test_a_batch_holds_the_whole_and_the_tiles_of_each_image() -> None:
    batch = collated(MIXED)
    assert batch.image.shape == (1 + 5 + 4, 3, SIZE, SIZE)
    assert batch.places[:2] == [Place(0), Place(1)]
    assert batch.places[2:6] == [Place(1, 0, row, column) for row in (1, 2) for column in (1, 2)]
    assert batch.places[6:] == [Place(2), *(Place(2, 0, 1, column) for column in (1, 2, 3))]
    assert (len(batch), batch.num_images) == (3, 3)
    assert torch.equal(batch.image[1], ImageTransform(SIZE)(SQUARE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_loss_and_prefix_are_the_same_alone_and_beside_larger_images(fusion: str, kind: str) -> None:
    model = rough(build_vlm(tiled(*FUSIONS[fusion], *KINDS[kind], f"decoder.prefix={kind}"), 280)).eval()
    whole, total, weight = model.prefix(collated(MIXED)), torch.zeros(()), 0
    for number, one in enumerate(MIXED):
        batch = collated([one])
        alone = model.prefix(batch)
        torch.testing.assert_close(
            whole.tokens[number, whole.mask[number]], alone.tokens[alone.mask], atol=1e-5, rtol=0
        )
        total, weight = total + model(batch).loss * batch.weight, weight + batch.weight
    torch.testing.assert_close(model(collated(MIXED)).loss, total / weight, atol=1e-5, rtol=0)


def test_the_prefix_has_the_tokens_of_each_square() -> None:
    model = rough(build_vlm(tiled(), 280)).eval()
    prefix = model.prefix(collated(MIXED))
    assert prefix.mask.sum(dim=1).tolist() == [4, 5 * 4, 4 * 4]
    assert prefix.tokens.shape[1] == model.longest_prefix == (1 + TILES) * 4
    model.longest_prefix = 0
    model.prefix(collated(MIXED[:1]))
    assert model.longest_prefix == (1 + TILES) * 4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_lost_in_the_whole_is_read_in_the_tiles(fusion: str) -> None:
    """Two images that differ in one row of tiles and whose wholes are equal: their tiles are exchanged."""
    model = rough(build_vlm(tiled(*FUSIONS[fusion]), 280)).eval()
    batch = collated([sample(0, SQUARE)])
    exchanged = batch.image[[0, 3, 4, 1, 2]]
    loss, other = (model(replace(batch, image=image)).loss for image in (batch.image, exchanged))
    assert abs(loss - other) > 1e-4
    for name in ("rows", "columns"):
        getattr(model.square_marks, name).data.zero_()
    loss, other = (model(replace(batch, image=image)).loss for image in (batch.image, exchanged))
    assert (abs(loss - other) < 1e-4) == (fusion != "concat")  # queries know no place but by the marks


def test_every_tile_and_mark_gets_a_gradient() -> None:
    model = rough(build_vlm(tiled(), 280))
    batch = collated([*MIXED, sample(3, WIDE.rotate(90, expand=True)), sample(4, WIDE.resize((128, 32)))])
    pixels = batch.image.requires_grad_()
    model(replace(batch, image=pixels)).loss.backward()
    assert all(pixels.grad.flatten(1).abs().sum(dim=1) > 0)
    assert model.square_marks.columns.grad.abs().sum(dim=1).gt(0).tolist() == [True] * (1 + TILES)
    assert model.square_marks.images is None


def test_several_images_may_be_in_tiles_each() -> None:
    config = tiled("dataset.max_images=2")
    model = rough(build_vlm(config, 280)).eval()
    pairs = [sample(0, SQUARE, WIDE), sample(1, SMALL)]
    batch = collated(pairs, 2)
    assert [(place.image, place.row) for place in batch.places[4:7]] == [(0, 2), (1, 0), (1, 1)]
    whole, alone = model.prefix(batch), model.prefix(collated(pairs[1:], 2))
    assert whole.mask.sum(dim=1).tolist() == [(5 + 4) * 4, 4]
    torch.testing.assert_close(whole.tokens[1, whole.mask[1]], alone.tokens[alone.mask], atol=1e-5, rtol=0)
    assert model.longest_prefix == 2 * (1 + TILES) * 4
    used = AnsweringModel(model, config, Preprocessing(chat(), ImageTransform(SIZE)), "cpu")
    asked = used._prefix(subjects_of([[SQUARE, WIDE], SMALL], None)[0])
    torch.testing.assert_close(asked.tokens, whole.tokens, atol=1e-5, rtol=0)
    assert torch.equal(asked.mask, whole.mask)


def test_an_augmentation_that_makes_squares_first_is_refused() -> None:
    fault = r"^decoder\.tiles: 4 cuts images, and dataset\.augmentation clip makes them small squares first; set that"
    with pytest.raises(ConfigError, match=fault):
        load_experiment("shapes_vqa_trm", ["decoder.tiles=4", "dataset.augmentation=clip"])
    assert [line for line in notices(tiled()) if "decoder.tiles" in line] == [
        "decoder.tiles: changes nothing for the embedded shapes, which are drawn at dataset.image_size"
    ]


def test_a_prefix_that_the_language_model_has_no_positions_for_is_refused_at_the_first_batch(tmp_path: Path) -> None:
    config = tiny_qwen_vlm(save_qwen(tmp_path, max_position_embeddings=172), f"decoder.tiles={TILES}")
    model = build_vlm(config, 280)
    with pytest.raises(ConfigError, match=r"^decoder\.max_len: prefix, question and answer of up to 180 tokens, but "):
        model.prefix(collated([sample(0, SMALL)]))


@cache
def data() -> Path:
    """Photos of several shapes."""
    folder = shared_folder()
    for number in range(8):
        pixels = np.asarray(picture(number, 160).resize((160, 80 if number % 2 else 160)))
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    rows = [{"image": f"{n}.jpg", "question": "is it wide?", "answer": ["no", "yes"][n % 2]} for n in range(8)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def on_data() -> ExperimentConfig:
    files = (f"dataset.train_path={data()}", f"dataset.val_path={data()}", "dataset.batch_size=4", "trainer.epochs=1")
    return tiled(*files)


def test_training_images_are_decoded_large_enough() -> None:
    sources = {tiles: tiny_vlm(f"dataset.train_path={data()}", f"decoder.tiles={tiles}") for tiles in (1, TILES)}
    sizes = {}
    for tiles, config in sources.items():
        train_source, _ = open_train_and_val(config.dataset, reading_of(config))
        sizes[tiles] = max(train_source[0].image.size)
    assert sizes == {1: 40, TILES: 160}


def test_a_run_sees_the_same_tiles_in_evaluation_and_in_use() -> None:
    assert "prefix:         up to 20 tokens" in dry_run_of(on_data())
    run_dir = train(on_data(), shared_folder() / "run", command=[])
    lines = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    model = impresa.load(run_dir, "cpu")  # its golden inputs are asked again
    assert isinstance(model, AnsweringModel)
    assert "up to 4 tiles an image" in repr(model)
    files = [data() / line["sample"] for line in lines]
    assert model.ask(files, "is it wide?") == [line["answer"] for line in lines]
    assert model._prefix(subjects_of(files[:2], None)[0]).tokens.shape[1] > 4
    assert "without its tiles" in model.explain(files[0]).notes[0]
