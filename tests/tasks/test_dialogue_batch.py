"""Questions and answers as batches: rows and labels, what is drawn for training, and what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.decoder import DecoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip, LogMelTransform
from impresa.data.chat import PlainChat
from impresa.data.dialogue import Dialogue, Turn, ask
from impresa.data.images import ImageTransform
from impresa.data.loading import BatchDataset, TrainingView
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.decoders.base import IGNORED
from impresa.errors import DataError
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.training.parts import TrainingData

SIZE = 8
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIALOGUES = tuple(ask(f"what is {word}?", f"{word} is {word}", word) for word in WORDS)
CHAT = PlainChat.train(DIALOGUES * 2, 400)
COLLATE = DialogueCollator(Preprocessing(CHAT, ImageTransform(SIZE)), max_len=30)
LONG_ANSWER = ask("what?", "one " * 40)
SHAPES = DatasetConfig(
    image_size=16, batch_size=4, num_workers=0, shapes=ShapesConfig(num_train=22, num_val=10, num_test=4)
)


def sample(number: int, dialogues: Sequence[Dialogue], **changes: Any) -> Sample:
    picture = Image.new("RGB", (SIZE, SIZE), (20 * number, 0, 0))
    return replace(Sample(f"sample {number}", picture, dialogues=tuple(dialogues)), **changes)


class Samples:
    """A source that holds its samples."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def captions(self) -> Iterator[str]:
        return iter(())

    def dialogues(self) -> Iterator[Dialogue]:
        return (dialogue for sample in self.samples for dialogue in sample.dialogues)

    def blocks(self) -> None:
        return None


def view(**changes: Any) -> TrainingView:
    return TrainingView(**{"seed": 0, "augmentation": "none", "image": ImageTransform(SIZE), **changes})


def test_each_dialogue_is_a_row_and_each_image_there_once() -> None:
    samples = [sample(1, DIALOGUES[:2]), sample(2, DIALOGUES[5:6]), sample(3, DIALOGUES[2:5])]
    batch = COLLATE(samples)
    assert len(batch) == 3
    assert batch.ids == ["sample 1", "sample 2", "sample 3"]
    assert batch.image.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(batch.image[1], ImageTransform(SIZE)(samples[1].image))
    assert batch.image_of_row.tolist() == [0, 0, 1, 2, 2, 2]
    asked = [*DIALOGUES[:2], DIALOGUES[5], *DIALOGUES[2:5]]
    assert batch.dialogues == asked
    assert [dialogue.kind for dialogue in batch.dialogues] == ["one", "two", "six", "three", "four", "five"]
    assert (batch.audio, batch.image_present, batch.present, batch.bad) == (None, None, {}, [])


def test_rows_are_padded_on_the_right_and_only_answers_have_labels() -> None:
    long = Dialogue((Turn("what is one?", "one"), Turn("what is the two, and the three?", "two")))
    batch = COLLATE([sample(0, [DIALOGUES[0], long])])
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.attention_mask.dtype) == (*[torch.int64] * 2, torch.bool)
    for row, dialogue in enumerate((DIALOGUES[0], long)):
        ids, supervised = CHAT.encode(dialogue, 30)
        rest = batch.input_ids.shape[1] - len(ids)
        assert batch.input_ids[row].tolist() == ids + [CHAT.pad_id] * rest
        assert batch.attention_mask[row].tolist() == [True] * len(ids) + [False] * rest
        labels = [id if learn else IGNORED for id, learn in zip(ids, supervised, strict=True)]
        assert batch.labels[row].tolist() == labels + [IGNORED] * rest
    assert batch.attention_mask.all(dim=1).tolist() == [False, True]
    assert batch.num_supervised == int((batch.labels != IGNORED).sum()) > 4
    assert batch.dialogues[1].turns[-1].question == "what is the two, and the three?"


def test_an_answer_that_is_too_long_costs_its_sample_and_is_named() -> None:
    batch = COLLATE(
        [sample(0, [DIALOGUES[0]]), sample(1, [DIALOGUES[1], LONG_ANSWER]), sample(2, []), sample(3, DIALOGUES)]
    )
    assert batch.ids == ["sample 0", "sample 3"]
    assert batch.image_of_row.tolist() == [0] + [1] * 10
    assert [id for id, _ in batch.bad] == ["sample 1", "sample 2"]
    assert batch.bad[0][1] == "an answer of 40 tokens leaves no room for a question in 30 tokens; raise decoder.max_len"
    assert batch.bad[1][1] == "nothing is asked"
    nothing = COLLATE([sample(1, [LONG_ANSWER])])
    assert (len(nothing), nothing.input_ids, len(nothing.bad)) == (0, None, 1)


def test_a_dialogue_with_nothing_to_learn_is_refused() -> None:
    class Silent(PlainChat):
        def encode(self, dialogue: Dialogue, max_len: int) -> tuple[list[int], list[bool]]:
            ids, flags = super().encode(dialogue, max_len)
            return ids, [flag and dialogue != DIALOGUES[0] for flag in flags]

    collate = DialogueCollator(Preprocessing(Silent(CHAT._tokenizer), ImageTransform(SIZE)), max_len=30)
    assert collate([sample(0, DIALOGUES[:2]), sample(1, DIALOGUES[1:])]).bad == [
        ("sample 0", "no token of an answer is supervised")
    ]


def test_samples_may_lack_image_or_sound() -> None:
    collate = DialogueCollator(Preprocessing(CHAT, ImageTransform(SIZE), LogMelTransform(1.0)), 30)
    noise = Clip(torch.randn(8000, generator=torch.Generator().manual_seed(0)), 16_000)
    batch = collate(
        [
            sample(3, DIALOGUES[:2], audio=noise),
            sample(4, DIALOGUES[:1], image=None, audio=noise),
            sample(5, DIALOGUES[:1]),
        ]
    )
    assert {name: mask.tolist() for name, mask in batch.present.items()} == {
        "image": [True, False, True],
        "audio": [True, True, False],
    }
    assert batch.image.shape == (3, 3, SIZE, SIZE)
    assert not batch.image[1].any()
    features, mask = LogMelTransform(1.0)([noise, noise, Clip(torch.zeros(1), 16_000)])
    assert torch.equal(batch.audio, features)
    assert torch.equal(batch.audio_mask, mask)


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = COLLATE([sample(0, DIALOGUES[:3])]).to("meta")
    for name in ("image", "input_ids", "attention_mask", "labels", "image_of_row"):
        assert getattr(batch, name).is_meta
    assert (batch.ids, batch.num_supervised > 0) == (["sample 0"], True)


def test_training_draws_different_questions_from_seed_epoch_and_sample() -> None:
    whole = sample(0, DIALOGUES, captions=("one two three",))
    three = view(questions_per_image=3, caption_dropout=0.9)
    drawn = [three(whole, (epoch, 0)).dialogues for epoch in range(200)]
    assert all(len(set(dialogues)) == 3 for dialogues in drawn)
    assert {dialogue for dialogues in drawn[:40] for dialogue in dialogues} == set(DIALOGUES)
    assert drawn[7] == three(whole, (7, 0)).dialogues
    for other in (three(whole, (7, 1)), view(questions_per_image=3, seed=1)(whole, (7, 0))):
        assert other.dialogues != drawn[7]
    first = [dialogues[0] for dialogues in drawn]
    assert all(8 <= first.count(dialogue) <= 35 for dialogue in DIALOGUES)
    assert len(view()(whole, (0, 0)).dialogues) == 1
    assert sorted(view(questions_per_image=99)(whole, (0, 0)).dialogues, key=DIALOGUES.index) == list(DIALOGUES)


def test_words_are_never_dropped_from_questions_or_answers() -> None:
    seen = view(caption_dropout=0.9, questions_per_image=9)(sample(0, DIALOGUES, captions=("a b c d e f",)), (0, 0))
    assert len(seen.captions[0].split()) < 6
    assert set(seen.dialogues) < set(DIALOGUES)


def test_questions_change_no_draw_of_alignment() -> None:
    plain = sample(0, (), captions=("a b c d e f", "g h i j k l"))
    asked = replace(plain, dialogues=DIALOGUES)
    draw = view(augmentation="strong", caption_dropout=0.5)
    for epoch in range(5):
        one, two = draw(plain, (epoch, 0)), draw(asked, (epoch, 0))
        assert one.captions == two.captions
        assert one.image.tobytes() == two.image.tobytes()
        assert one.dialogues == ()


def test_a_dataset_names_what_the_batch_refused_and_goes_on() -> None:
    bad = [sample(number, [LONG_ANSWER]) for number in range(3)]
    source = Samples(bad[0], sample(3, DIALOGUES[:2]), bad[1], bad[2], sample(4, DIALOGUES[:1]))
    dataset = BatchDataset(source, COLLATE)
    batch = dataset.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert (batch.ids, [id for id, _ in batch.bad]) == (["sample 3"], ["sample 0", "sample 1"])
    batch = dataset.__getitems__([(0, 2), (0, 3)])  # none is good, so the next one of the source is taken
    assert (batch.ids, [id for id, _ in batch.bad]) == (["sample 4"], ["sample 1", "sample 2"])
    with pytest.raises(DataError, match=r"^data: a sample cannot be used, sample 0: an answer of 40 tokens"):
        BatchDataset(Samples(bad[0]), COLLATE).__getitems__([(0, 0)])


def module(bad: Path | None = None, **changes: Any) -> TrainingData:
    config = ExperimentConfig(
        dataset=replace(SHAPES, **changes), decoder=DecoderConfig(type="trm", max_len=40, vocab_size=300)
    )
    return TrainingData(config, Preprocessing(CHAT, ImageTransform(16)), bad)


def test_a_run_with_a_decoder_asks_some_in_training_and_all_in_validation() -> None:
    one, two = module(), module(questions_per_image=2)
    batch = next(iter(one.train_loader()))
    assert isinstance(batch, DialogueBatch)
    assert batch.image_of_row.tolist() == [0, 1, 2, 3]
    numbers = [len(batch.dialogues) for batch in two.train_loader()]
    assert 22 < sum(numbers) <= 44
    asked = [dialogue for batch in one.val_loader() for dialogue in batch.dialogues]
    assert asked == list(one.val_source.dialogues())
    epochs = [[batch.dialogues for batch in loader] for loader in [one.train_loader()] for _ in range(2)]
    assert sorted(map(len, epochs[0])) == sorted(map(len, epochs[1]))
    assert epochs[0] != epochs[1]


def test_the_decoders_length_bounds_the_rows(tmp_path: Path) -> None:
    config = ExperimentConfig(
        dataset=replace(SHAPES, max_bad_fraction=0.2), decoder=DecoderConfig(type="trm", max_len=4)
    )
    data = TrainingData(config, Preprocessing(CHAT, ImageTransform(16)), tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r"raise decoder\.max_len"):
        list(data.train_loader())
    assert "leaves no room for a question in 4 tokens" in (tmp_path / "bad.jsonl").read_text()


def test_workers_give_the_same_batches() -> None:
    alone, helped = module(questions_per_image=2), module(questions_per_image=2, num_workers=2)
    for one, two in zip(alone.train_loader(), helped.train_loader(), strict=True):
        assert (one.ids, one.dialogues) == (two.ids, two.dialogues)
        assert torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(one.image, two.image)
