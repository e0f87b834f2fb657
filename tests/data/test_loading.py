"""From a source to batches: draws of training, bad samples, workers, and the place in the data."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from impresa.config.dataset import DatasetConfig
from impresa.data.audio import Clip
from impresa.data.bad_samples import BadSampleList
from impresa.data.dialogue import ask
from impresa.data.images import ImageTransform, decode_image
from impresa.data.loading import BatchDataset, BatchLoader, TrainingView, identified
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.data.sampler import BatchSampler
from impresa.data.sources import BadSample
from impresa.data.tokenizers import train_tokenizer
from impresa.errors import DataError
from impresa.tasks.alignment.batch import Batch, Collator

SIZE = 8
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COLLATE = Collator(Preprocessing(train_tokenizer([" ".join(WORDS)] * 2, 300, 32), ImageTransform(SIZE)))


class Pictures:
    """Noise pictures with two captions each; those in `bad` are unusable."""

    def __init__(self, count: int, bad: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.bad = bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise BadSample(f"picture {index}", "broken")
        pixels = np.random.default_rng(index).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        captions = (f"{index} " + " ".join(WORDS), f"{index} " + " ".join(WORDS[::-1]))
        return Sample(f"picture {index}", Image.fromarray(pixels), captions, label=f"class {index % 2}")

    def captions(self) -> Iterator[str]:
        return (caption for index in range(self.count) for caption in self[index].captions)

    def blocks(self) -> None:
        return None


def view(**changes: object) -> TrainingView:
    return TrainingView(**{"seed": 0, "augmentation": "clip", "image": ImageTransform(SIZE), **changes})


def loader(
    source: Pictures,
    *,
    workers: int = 0,
    batch_size: int = 4,
    training: TrainingView | None = None,
    bad: Path | None = None,
    max_bad_fraction: float = 1.0,
    state: dict[str, int] | None = None,
    persistent: bool = True,
) -> BatchLoader:
    sampler = BatchSampler(num_samples=len(source), batch_size=batch_size, seed=0)
    if state:
        sampler.load_state_dict(state)
    return BatchLoader(
        BatchDataset(source, COLLATE, training or view()),
        sampler,
        BadSampleList(bad, "train", len(source), max_bad_fraction),
        DatasetConfig(num_workers=workers, prefetch_factor=2, persistent_workers=persistent, pin_memory=False),
    )


def assert_same(one: Batch, two: Batch) -> None:
    assert (one.ids, one.captions, one.labels, one.bad) == (two.ids, two.captions, two.labels, two.bad)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.attention_mask, two.attention_mask)


def test_a_batch_holds_what_the_samples_hold() -> None:
    batch = COLLATE([Pictures(9)[2], Pictures(9)[5]])
    assert len(batch) == 2
    assert batch.ids == ["picture 2", "picture 5"]
    assert batch.labels == ["class 0", "class 1"]
    assert batch.captions == [Pictures(9)[i].captions[0] for i in (2, 5)]
    assert batch.image.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(batch.image[1], ImageTransform(SIZE)(Pictures(9)[5].image))
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, batch.input_ids.shape[1])


def test_a_modality_that_no_sample_has_is_none() -> None:
    images = COLLATE([Sample("a", Pictures(1)[0].image)])
    texts = COLLATE([Sample("a", captions=("one",))])
    assert (images.input_ids, images.attention_mask, images.captions) == (None, None, [])
    assert texts.image is None
    assert texts.captions == ["one"]


def test_training_draws_caption_and_crop_from_seed_epoch_and_sample() -> None:
    sample = Pictures(1)[0]
    seen = [view(seed=seed)(sample, (epoch, index)) for seed in (0, 1) for epoch in range(8) for index in (0, 1)]
    again = [view(seed=seed)(sample, (epoch, index)) for seed in (0, 1) for epoch in range(8) for index in (0, 1)]
    assert [s.captions for s in seen] == [s.captions for s in again]
    assert [s.image.tobytes() for s in seen] == [s.image.tobytes() for s in again]
    assert {s.captions for s in seen} == {(caption,) for caption in sample.captions}
    assert len({s.image.tobytes() for s in seen}) > 16
    assert sample.captions == Pictures(1)[0].captions


def test_without_augmentation_images_stay_as_they_are() -> None:
    sample = Pictures(1)[0]
    assert view(augmentation="none")(sample, (3, 0)).image.tobytes() == sample.image.tobytes()
    assert view()(Sample("a", captions=("one",)), (0, 0)).image is None


def test_no_generator_is_made_where_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, still = Pictures(1)[0], view(augmentation="none")
    single = replace(sample, captions=sample.captions[:1], dialogues=(ask("what?", "a"),))
    drawing = {  # each is drawn from a generator of its own (seed, epoch, sample)
        "caption": (still, replace(single, captions=sample.captions)),
        "dialogue": (still, replace(single, dialogues=(ask("what?", "a"), ask("where?", "b")))),
        "crop": (view(), single),
        "words": (view(augmentation="none", caption_dropout=0.5), single),
    }
    made: list[object] = []
    generator = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or generator(seed))
    assert still(single, (3, 0)) == single
    assert view()(replace(single, image=None), (3, 0)) == replace(single, image=None)
    assert made == []
    for number, (draws, drawn_from) in enumerate(drawing.values(), start=1):
        draws(drawn_from, (3, 7))
        assert made == [(0, 3, 7)] * number


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_caption_dropout_drops_words_but_never_all(rate: float) -> None:
    words = " ".join(WORDS)
    kept = [view(caption_dropout=rate)(Sample("a", captions=(words,)), (0, i)).captions[0].split() for i in range(300)]
    assert all(words for words in kept)
    assert all([word for word in WORDS if word in set(part)] == part for part in kept)
    expected = max(1 - rate, 0.1)
    assert sum(map(len, kept)) / 3000 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    source = Pictures(22, bad=frozenset({3, 4}))
    plain, parallel = loader(source), loader(source, workers=workers)
    for _ in range(2):
        for one, two in zip(plain, parallel, strict=True):
            assert_same(one, two)


def test_what_workers_run_can_be_sent_to_them() -> None:
    dataset = BatchDataset(Pictures(9), COLLATE, view(caption_dropout=0.2))
    items = [(1, 5), (1, 2)]
    assert_same(pickle.loads(pickle.dumps(dataset)).__getitems__(items), dataset.__getitems__(items))


def test_epochs_differ_and_hold_every_sample_once() -> None:
    batches = loader(Pictures(22))
    epochs = [[id for batch in batches for id in batch.ids] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"picture {i}" for i in range(22))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 5, 6])
def test_resuming_in_the_middle_of_an_epoch_is_exact(workers: int, done: int) -> None:
    straight = loader(Pictures(20))
    expected = [batch for _ in range(2) for batch in straight]
    first = loader(Pictures(20), workers=workers)
    seen = []
    while len(seen) < done:
        for batch in first:
            seen.append(batch)
            if len(seen) == done:
                break
    state = json.loads(json.dumps(first.batch_sampler.state_dict()))
    second = loader(Pictures(20), workers=workers, state=state)
    assert len(second) == 5
    while len(seen) < 10:
        seen += list(second)
    for one, two in zip(expected, seen, strict=True):
        assert_same(one, two)


def test_bad_samples_are_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    batches = loader(Pictures(20, bad=frozenset({3, 7, 11})), workers=2, bad=path)
    for _ in range(2):
        assert sorted(id for batch in batches for id in batch.ids) == sorted(
            f"picture {i}" for i in range(20) if i not in (3, 7, 11)
        )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["picture 11", "picture 3", "picture 7"]
    assert {row["reason"] for row in rows} == {"broken"}


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    batches = loader(
        Pictures(40, bad=frozenset(range(0, 40, 4))), workers=2, bad=tmp_path / "bad", max_bad_fraction=0.1
    )
    with pytest.raises(DataError, match=r"train data: \d+ of 40 samples cannot be used and 4 are allowed"):
        list(batches)


def test_a_batch_of_bad_samples_takes_the_next_good_one() -> None:
    dataset = BatchDataset(Pictures(6, bad=frozenset({4, 5, 0})), COLLATE)
    batch = dataset.__getitems__([(0, 4), (0, 5)])
    assert batch.ids == ["picture 1"]
    assert batch.bad == [("picture 4", "broken"), ("picture 5", "broken"), ("picture 0", "broken")]


def test_data_are_tried_once_before_they_are_refused() -> None:
    read: list[int] = []

    class Counted(Pictures):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return super().__getitem__(index)

    dataset = BatchDataset(Counted(4, bad=frozenset(range(4))), COLLATE)
    with pytest.raises(DataError, match=r"^data: 4 samples in a row cannot be used, the first is picture 1: broken"):
        dataset.__getitems__([(0, 1), (0, 2)])
    assert sorted(read) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"^data: a sample cannot be used, picture 0: broken$"):
        BatchDataset(Pictures(1, bad=frozenset({0})), COLLATE).__getitems__([(0, 0)])


def test_a_batch_has_as_many_good_samples_as_it_needs_and_none_twice() -> None:
    dataset = BatchDataset(Pictures(6, bad=frozenset({4, 0})), COLLATE, least=2)
    batch = dataset.__getitems__([(0, 4), (0, 5)])
    assert batch.ids == ["picture 5", "picture 1"]
    assert batch.bad == [("picture 4", "broken"), ("picture 0", "broken")]
    with pytest.raises(DataError, match="data: 5 samples in a row cannot be used"):
        BatchDataset(Pictures(6, bad=frozenset(range(5))), COLLATE, least=2).__getitems__([(0, 5), (0, 2)])


@pytest.mark.parametrize("least", [0, 2])
def test_a_process_without_samples_has_an_empty_batch(least: int) -> None:
    """At the end of an epoch; where a batch is shared, also where none of its part can be read: none comes twice."""
    dataset = BatchDataset(Pictures(6, bad=frozenset({0, 4})), COLLATE, least=least)
    batches = [dataset.__getitems__([])]
    if not least:
        batches.append(dataset.__getitems__([(0, 4)]))
        assert batches[-1].bad == [("picture 4", "broken")]
    for batch in batches:
        assert (len(batch), batch.weight, batch.captions) == (0, 0, [])
        assert batch.image is not None
        assert not any(mask.any() for mask in batch.present.values())
        assert set(batch.present) == {"image", "text"}
    assert batches[0].bad == []


@pytest.mark.parametrize("augmentation", ["none", "clip"])
def test_keys_are_those_of_the_data_whatever_training_does_to_them(augmentation: str) -> None:
    class Twice(Pictures):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index % 3), captions=(f"{index % 2} " + " ".join(WORDS),))

    views = [view(augmentation=augmentation, caption_dropout=drop, identifies=True) for drop in (0.0, 0.5)]
    batches = [
        BatchDataset(Twice(6), COLLATE, one).__getitems__([(0, i) for i in range(6)]) for one in (*views, identified)
    ]
    for batch in batches:
        images, texts = batch.keys["image"], batch.keys["text"]
        assert (images[:, None] == images).tolist() == [[i % 3 == j % 3 for j in range(6)] for i in range(6)]
        assert (texts[:, None] == texts).tolist() == [[i % 2 == j % 2 for j in range(6)] for i in range(6)]
        assert torch.equal(images, batches[0].keys["image"])
        assert torch.equal(texts, batches[0].keys["text"])
    assert BatchDataset(Twice(6), COLLATE, view()).__getitems__([(0, 1), (0, 2)]).keys == {}


def test_equal_pixels_have_one_key_in_any_file_and_process() -> None:
    picture = Pictures(1)[0].image
    files = {}
    for kind in ("PNG", "BMP", "TIFF"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        files[kind] = stream.getvalue()
    keys = {Sample("x", decode_image(content)).image_key for content in files.values()}
    assert keys == {picture_key := Sample("x", picture).image_key}
    other = picture.copy()
    other.putpixel((3, 3), (1, 2, 3))
    reshaped = Image.frombytes("RGB", picture.size[::-1], picture.tobytes())
    assert picture_key not in {Sample("x", one).image_key for one in (other, reshaped, None)}
    assert Sample("x", Image.new("RGB", (2, 1))).image_key == -3443843167558542376  # the same on every machine


def test_equal_sounds_have_one_key_at_one_rate() -> None:
    clip = Clip(torch.arange(5.0), 8000)
    key = Sample("x", audio=clip).audio_key
    assert key == Sample("y", audio=Clip(torch.arange(5.0), 8000)).audio_key
    assert key not in {Sample("x", audio=Clip(torch.arange(5.0), 16_000)).audio_key, Sample("x").audio_key}


def test_data_without_any_good_sample_are_refused() -> None:
    dataset = BatchDataset(Pictures(500, bad=frozenset(range(500))), COLLATE)
    with pytest.raises(DataError, match=r"\d+ samples in a row cannot be used, the first is picture 3: broken"):
        dataset.__getitems__([(0, 3), (0, 4)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_worker_is_told_in_one_line(workers: int) -> None:
    batches = loader(Pictures(300, bad=frozenset(range(300))), workers=workers)
    with pytest.raises(DataError, match=r"^data: [^\n]+\Z"):
        list(batches)


def test_evaluation_takes_the_first_caption_and_the_whole_image() -> None:
    dataset = BatchDataset(Pictures(4), COLLATE)
    assert_same(dataset.__getitems__([(0, 2)]), COLLATE([Pictures(4)[2]]))
    assert len(dataset) == 4


def test_an_epoch_that_was_left_is_not_continued() -> None:
    batches = loader(Pictures(20))
    next(iter(batches))
    straight = loader(Pictures(20))
    list(straight)
    for one, two in zip(straight, batches, strict=True):
        assert_same(one, two)
