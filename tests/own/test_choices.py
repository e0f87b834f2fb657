"""What `own` chooses for data of each size, and what the user's own settings change in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_hub
from impresa.config import load_experiment, to_yaml
from impresa.errors import ConfigError, DataError
from impresa.own import choices
from impresa.own.choices import Chosen, choose


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "is_at_hand", lambda name: False)
    monkeypatch.setattr(choices, "can_be_fetched", lambda: False)


def pictures(folder: Path, number: int, side: int = 80, name: str = "metadata.jsonl", **columns: str) -> str:
    """A folder of that many rows; all images but the first are links to a few files, of different names."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side + 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg")
    for index in range(1, number):
        (folder / f"{index}.jpg").hardlink_to(folder / "0.jpg")
    image, caption = columns.get("image", "image"), columns.get("caption", "caption")
    rows = ({image: f"{index}.jpg", caption: f"picture of number {index}"} for index in range(number))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def chosen(path: str, *overrides: str) -> Chosen:
    return choose([f"dataset.train_path={path}", *overrides])


def reasons(found: Chosen) -> dict[str, str]:
    return {choice.key: choice.reason for choice in found.choices}


@pytest.mark.parametrize(("number", "held_out"), [(20, 4), (300, 60), (500, 100), (700, 100), (1400, 140)])
def test_enough_images_are_held_out(tmp_path: Path, number: int, held_out: int) -> None:
    found = chosen(pictures(tmp_path / "photos", number))
    assert round(found.config.dataset.val_fraction * number) == held_out
    assert f"{held_out} of {number:,} images are held out" in reasons(found)["dataset.val_fraction"]


def test_the_run_is_named_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pictures(tmp_path / "My photos (2026)", 12)
    assert chosen(path).config.name == "My-photos-2026"
    assert chosen(f"{path}/metadata.jsonl").config.name == "metadata"
    monkeypatch.chdir(path)
    assert chosen(".").config.name == "My-photos-2026"
    assert chosen(path, "name=mine").config.name == "mine"


def test_small_pictures_are_not_enlarged_and_the_batch_leaves_several_a_pass(tmp_path: Path) -> None:
    found = chosen(pictures(tmp_path / "small", 60, side=41)).config
    assert found.dataset.image_size <= 41
    assert found.dataset.image_size % found.vision_encoder.patch_size == 0
    assert 3 * found.dataset.batch_size <= 48
    assert load_experiment("own").dataset.image_size > 41


def test_a_setting_of_the_user_wins_and_the_rest_follows_from_it(tmp_path: Path) -> None:
    path = pictures(tmp_path / "photos", 300)
    found = chosen(path, "dataset.batch_size=16", "dataset.val_fraction=0.5", "optimization.lr=1e-4")
    assert found.config.dataset.batch_size == 16
    assert found.config.dataset.val_fraction == 0.5
    assert found.config.optimization.lr == 1e-4
    assert reasons(found)["dataset.batch_size"] == reasons(found)["dataset.val_fraction"] == "as you set it"
    steps = found.config.trainer.epochs * -(-150 // 16)
    assert 0 <= steps - choices.STEPS_OF_FEW < 10


def test_words_have_an_order_only_where_there_are_enough_captions(tmp_path: Path) -> None:
    few, many = chosen(pictures(tmp_path / "few", 100)), chosen(pictures(tmp_path / "many", 1300))
    assert few.config.text_encoder.backbone == "bag"
    assert (many.config.text_encoder.backbone, many.config.text_encoder.depth) == ("transformer", choices.TEXT_DEPTH)
    kept = chosen(str(tmp_path / "many"), "text_encoder.backbone=bag")
    assert kept.config.text_encoder.backbone == "bag"
    assert reasons(kept)["text_encoder.backbone"] == "as you set it"


def test_the_same_settings_come_back_from_the_yaml_that_is_shown(tmp_path: Path) -> None:
    found = chosen(pictures(tmp_path / "photos", 30, image="picture", caption="title")).config
    (tmp_path / "kept.yaml").write_text(to_yaml(found))
    assert load_experiment(tmp_path / "kept.yaml") == found
    assert (found.dataset.image_column, found.dataset.caption_column) == ("picture", "title")


def test_data_that_are_too_small_for_what_is_asked_are_warned_of(tmp_path: Path) -> None:
    path = pictures(tmp_path / "photos", 30)
    text = "\n".join(chosen(path, "dataset.image_size=224", "dataset.batch_size=64").warnings)
    assert "6 held-out images are few" in text
    assert "24 samples are few to learn from scratch" in text
    assert "images of 80 px are enlarged to 224 px" in text
    assert "a batch of 64 is more than all 24 samples" in text
    assert chosen(pictures(tmp_path / "many", 1300)).warnings == ()


def test_separate_validation_data_are_counted_and_nothing_is_held_out(tmp_path: Path) -> None:
    path, val = pictures(tmp_path / "photos", 40), pictures(tmp_path / "val", 10)
    found = chosen(path, f"dataset.val_path={val}")
    assert "dataset.val_fraction" not in reasons(found)
    assert any("10 held-out images" in line for line in found.warnings)


def test_a_pretrained_pair_is_taken_where_it_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pictures(tmp_path / "photos", 300)
    scratch = chosen(path)
    assert "hf download openai/clip" in reasons(scratch)["vision_encoder.backbone"]
    monkeypatch.setattr(choices, "is_at_hand", lambda name: name == "openai/clip-vit-base-patch32")
    pretrained = chosen(path).config
    assert pretrained.vision_encoder == load_experiment("clip").vision_encoder
    assert pretrained.dataset.image_size == 224
    assert pretrained.trainer.epochs <= choices.MOST_EPOCHS_PRETRAINED
    own = chosen(path, "vision_encoder.backbone=vit", "vision_encoder.depth=2")
    assert own.config.vision_encoder.backbone == "vit"
    width = chosen(path, "vision_encoder.dim=96")  # of a tower from scratch alone
    assert width.config.vision_encoder.dim == 96
    assert "do not fit" in reasons(width)["vision_encoder.backbone"]


def test_a_pretrained_pair_of_the_user_s_is_taken(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "hub")
    backbones = [f"{part}.backbone={folder}" for part in ("vision_encoder", "text_encoder")]
    found = chosen(pictures(tmp_path / "photos", 30), *backbones).config
    assert found.text_encoder.backbone == str(folder)
    assert found.vision_encoder.projection == load_experiment("clip").vision_encoder.projection


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "dataset.train_path: own looks at your pictures first"),
        (["dataset.train_path=nowhere"], "nowhere does not exist"),
        (["dataset.train_path=shapes"], "`impresa train shapes`"),
        (["dataset.train_path=photos", "optimization.lrr=1"], "optimization.lrr: unknown key"),
        (["dataset.train_path=photos", "decoder.type=trm"], "decoder.type: own aligns"),
    ],
)
def test_what_cannot_be_chosen_for_is_one_line(
    overrides: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        choose(overrides)
    assert len(caught.value.lines) == 1
    assert line in caught.value.lines[0]


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = pictures(tmp_path / "photos", 4)
    for file in Path(path).glob("*.jpg"):
        file.unlink()
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no image that was looked at can be used .*impresa data check"):
        chosen(path)
