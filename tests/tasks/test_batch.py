"""Batches of samples that lack modalities, and what training draws for them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip, LogMelTransform
from impresa.data.images import ImageTransform
from impresa.data.loading import TrainingView
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.data.tokenizers import train_tokenizer
from impresa.tasks.alignment.batch import Collator
from impresa.training.parts import TrainingData
from sounds_on_disk import sine

IMAGES, SOUNDS = ImageTransform(8), LogMelTransform(max_seconds=1.0)
TOKENIZER = train_tokenizer(["a short text", "another text"], 300, 16)
COLLATE = Collator(Preprocessing(TOKENIZER, IMAGES, SOUNDS))


def image(grey: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (grey, grey, grey))


def clip(seconds: float) -> Clip:
    return Clip(sine(440, seconds), 16_000)


WHOLE = Sample("whole", image(10), ("a short text",), audio=clip(0.2))
SILENT = Sample("silent", image(90), ("another text",))
BLIND = Sample("blind", None, ("text",), audio=clip(0.5))
MUTE = Sample("mute", image(200), (), audio=clip(0.1))


def test_rows_of_absent_modalities_are_marked() -> None:
    batch = COLLATE([WHOLE, SILENT, BLIND, MUTE])
    assert {name: mask.tolist() for name, mask in batch.present.items()} == {
        "image": [True, True, False, True],
        "text": [True, True, True, False],
        "audio": [True, False, True, True],
    }
    assert batch.captions == ["a short text", "another text", "text", ""]
    assert batch.image.shape == (4, 3, 8, 8)
    for row, sample in enumerate((WHOLE, SILENT, BLIND, MUTE)):
        if sample.image is not None:
            assert torch.equal(batch.image[row], IMAGES(sample.image))
        if sample.audio is not None:
            features, _ = SOUNDS([sample.audio])
            frames = int(batch.audio_mask[row].sum())
            assert frames == features.shape[1]
            torch.testing.assert_close(batch.audio[row, :frames], features[0])
    assert batch.attention_mask.any(dim=1).all()
    assert batch.audio.shape[:2] == batch.audio_mask.shape == (4, 50)


def test_where_nothing_is_absent_there_is_no_mask() -> None:
    batch = COLLATE([WHOLE, WHOLE])
    assert batch.present == {}
    without = Collator(Preprocessing(TOKENIZER, IMAGES))([WHOLE, SILENT])
    assert without.audio is without.audio_mask is None
    assert without.present == {}


def test_with_sound_a_batch_has_all_modalities_even_if_no_sample_has_one() -> None:
    batch = COLLATE([SILENT, SILENT])
    assert batch.audio_present.tolist() == [False, False]
    assert batch.audio.shape == (2, 1, 128)
    batch = COLLATE([BLIND])
    assert (batch.image.shape, batch.image_present.tolist()) == ((1, 3, 8, 8), [False])


def test_masks_move_with_the_batch() -> None:
    batch = COLLATE([WHOLE, SILENT]).to("meta")
    assert batch.audio.device.type == batch.audio_mask.device.type == batch.audio_present.device.type == "meta"


def test_training_draws_nothing_for_what_is_absent() -> None:
    view = TrainingView(seed=0, augmentation="clip", image=ImageTransform(8), caption_dropout=0.5)
    assert view(MUTE, (0, 1)).captions == ()
    assert view(BLIND, (0, 1)).image is None
    assert view(BLIND, (0, 1)).audio is BLIND.audio


def batches(**dataset: object) -> list[str]:
    """The captions of a training epoch."""
    shapes = ShapesConfig(num_train=16, num_val=2, num_test=2)
    config = ExperimentConfig(
        dataset=DatasetConfig(image_size=8, batch_size=8, num_workers=0, shapes=shapes, **dataset),
        audio_encoder=EncoderConfig(audio_max_seconds=1.0),
    )
    loader = TrainingData(config, Preprocessing(TOKENIZER, IMAGES, SOUNDS)).train_loader()
    found = list(loader)
    assert all(batch.audio.shape == (8, 100, 128) for batch in found)
    return [caption for batch in found for caption in batch.captions]


def test_caption_dropout_drops_words_of_training_captions() -> None:
    plain, dropped = batches(), batches(caption_dropout=0.4)
    assert plain != dropped
    assert all(set(few.split()) <= set(all_.split()) for few, all_ in zip(dropped, plain, strict=True))
    lengths = [[len(text.split()) for text in texts] for texts in (dropped, plain)]
    assert 0.4 < np.sum(lengths[0]) / np.sum(lengths[1]) < 0.8
