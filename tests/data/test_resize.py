"""`dataset.resize`: how a picture that is no square becomes one, in training, evaluation and use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import tiny_hub
from impresa.config.compose import load_experiment
from impresa.config.dataset import Resize
from impresa.config.relevance import notices
from impresa.data.augmentation import augment
from impresa.data.images import CLIP_MEAN, CLIP_STD, ImageTransform
from impresa.data.preprocessing import prepare_image_transform
from impresa.errors import ConfigError
from impresa.evaluation.results import read_evaluation
from impresa.reports.html import render_report
from impresa.reports.tables import warnings
from impresa.run_dir.load import load_embedder
from impresa.training.run import train
from pictures import photo
from tiny_pair import pair_experiment
from tiny_run import TINY, tiny_experiment, without_charts

SIZES = [(60, 90), (90, 60), (641, 480), (32, 32), (7, 31), (500, 20), (20, 500), (1, 1), (33, 32)]
BARS = tuple(round(255 * share) for share in CLIP_MEAN)


def plain(image: Image.Image, resize: Resize, size: int) -> Image.Image:
    """The same by Pillow's own functions."""
    filter = Image.Resampling.BICUBIC
    match resize:
        case "crop":
            return ImageOps.fit(image, (size, size), filter)
        case "pad":
            return ImageOps.pad(image, (size, size), filter, BARS)
        case "squash":
            return image.resize((size, size), filter)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("image_size", SIZES)
def test_squares_are_those_of_pillow_and_numpy(resize: Resize, image_size: tuple[int, int]) -> None:
    image = photo(*image_size)
    theirs = np.asarray(plain(image, resize, 32))
    transform = ImageTransform(32, resize=resize)
    np.testing.assert_array_equal(transform.pixels([image])[0].numpy(), theirs)
    normalized = (theirs / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(transform(image).permute(1, 2, 0).numpy(), normalized, atol=1e-5)


def test_bars_have_the_mean_colour_and_the_share_that_is_cut_is_known() -> None:
    crop, pad, squash = (ImageTransform(32, resize=resize) for resize in ("crop", "pad", "squash"))
    padded = pad(photo(90, 30))
    assert padded[:, :10].abs().max() < 0.02
    assert padded[:, 22:].abs().max() < 0.02
    assert padded[:, 11:21].abs().max() > 0.5
    assert (pad(Image.new("RGB", (500, 3), "white")) > 1).any()  # a line that is thinner than a pixel stays one
    assert crop.share_cut((90, 30)) == pytest.approx(2 / 3)
    assert replace(crop, crop_fraction=0.5).share_cut((40, 40)) == pytest.approx(0.75)
    assert pad.share_cut((90, 30)) == squash.share_cut((90, 30)) == crop.share_cut((30, 30)) == 0


@pytest.mark.parametrize("kind", ["clip", "strong"])
def test_training_views_show_the_ends_that_only_pad_and_squash_keep(kind: str) -> None:
    picture = np.full((32, 128, 3), 60, np.uint8)
    picture[:, :12], picture[:, -12:] = (255, 0, 0), (0, 0, 255)
    image = Image.fromarray(picture)

    def seen(resize: Resize) -> float:
        views = [
            np.asarray(augment(image, kind, ImageTransform(32, resize=resize), np.random.default_rng(seed)))  # type: ignore[arg-type]
            for seed in range(20)
        ]
        assert {view.shape for view in views} == {(32, 32, 3)}
        red, blue = (np.array([(view[..., one].astype(int) - view[..., two] > 90).any() for view in views])
                     for one, two in ((0, 2), (2, 0)))  # fmt: skip
        return float((red | blue).mean())

    assert seen("crop") == 0
    assert seen("pad") == seen("squash") == 1


def test_a_view_between_bars_moves_within_them() -> None:
    view = augment(
        Image.new("RGB", (90, 30), "white"), "clip", ImageTransform(32, resize="pad"), np.random.default_rng(3)
    )
    rows = np.asarray(view).reshape(32, -1)
    white = (rows == 255).all(axis=1)
    assert 9 <= white.sum() <= 14
    assert (rows[~white].reshape(-1, 3) == BARS).all()


def test_the_run_keeps_it_and_every_use_of_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    without_charts(monkeypatch)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(12):
        photo(48, 24 + index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}")
    config = tiny_experiment(f"dataset.train_path={folder}", "dataset.val_fraction=0.3", "dataset.resize=pad")
    run_dir = train(config, tmp_path / "run", command=[])
    model = load_embedder(run_dir, "cpu")
    transform = model.preprocessing.image
    assert (transform.resize, transform.size) == ("pad", 16)
    wide = photo(64, 16)
    own = model.encode_image(plain(wide, "pad", 16))
    torch.testing.assert_close(model.encode_image(wide), own)
    assert not torch.allclose(model.encode_image(plain(wide, "crop", 16)), own)
    evaluation = read_evaluation(run_dir)
    assert evaluation is not None
    assert evaluation.share_cut == 0
    assert all(query.seen for query in evaluation.gallery.image_queries)
    assert "as the model saw it" in render_report(run_dir)
    assert not warnings(replace(evaluation, margins={}))
    said = "The square crop leaves out 34% of the images' area (mean): dataset.resize=pad shows them whole."
    assert warnings(replace(evaluation, margins={}, share_cut=0.341)) == [said]
    assert warnings(replace(evaluation, margins={}, share_cut=0.15)) == []
    stored = prepare_image_transform(tiny_experiment(f"vision_encoder.checkpoint={run_dir}"))
    assert stored.resize == "pad"
    with pytest.raises(ConfigError, match=r"^dataset\.resize: crop, but .*run was trained with pad; leave it out$"):
        prepare_image_transform(tiny_experiment(f"vision_encoder.checkpoint={run_dir}", "dataset.resize=crop"))


@pytest.mark.parametrize(("name", "auto"), [("clip", "crop"), ("siglip", "squash"), ("dinov2", "crop")])
def test_it_takes_the_place_of_a_pretrained_towers_own(tmp_path: Path, name: str, auto: Resize) -> None:
    folder = getattr(tiny_hub, name)(tmp_path / name)
    config = pair_experiment(folder, 20)
    own = prepare_image_transform(config)
    assert own.resize == auto
    for resize in ("crop", "pad", "squash"):
        asked = prepare_image_transform(replace(config, dataset=replace(config.dataset, resize=resize)))
        assert asked == (own if resize == auto else replace(own, resize=resize, crop_fraction=1.0))


def test_a_square_data_set_is_told_that_it_changes_nothing() -> None:
    line = "dataset.resize: changes nothing for the embedded shapes, which are square"
    assert line in notices(load_experiment("shapes", [*TINY, "dataset.resize=pad"]))
