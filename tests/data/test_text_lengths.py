"""Lengths of texts, by which batches are made up; and that batches of a training have less padding for it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from impresa.data.dialogue import Dialogue, Turn, ask
from impresa.data.sources import open_source, reading_of
from impresa.data.sources.text_lengths import text_lengths
from impresa.training.parts import build_parts
from tiny_vlm import picture, tiny_vlm


class Dialogues:
    """A source that has dialogues and nothing else."""

    def __init__(self, *by_sample: tuple[Dialogue, ...]) -> None:
        self.dialogues_by_sample = lambda: iter(by_sample)


@pytest.mark.parametrize(("num_asked", "length"), [(1, 22 / 3), (2, (8 + 11) / 2), (3, 11), (9, 11)])
def test_it_is_that_of_the_longest_dialogue_that_may_be_drawn(num_asked: int, length: float) -> None:
    several = (ask("q?", "a"), ask("quite a?", "lot"), ask("q?", "longer"))  # 3, 11 and 8 bytes
    talk = Dialogue((Turn("q?", "a"), Turn("and now?", "b")))
    source = Dialogues((ask("w?", "ab"),), (ask("what is?", "ä"),), several, (talk,))
    assert text_lengths(source, num_asked).tolist() == pytest.approx([4, 10, length, 12])  # type: ignore[arg-type]


def test_a_sample_that_cannot_be_used_counts_as_one_of_the_middle() -> None:
    source = Dialogues((), (ask("q?", "a"),), (ask("q?", "abc"),), (ask("q?", "abcdefgh"),))
    assert text_lengths(source, 1).tolist() == [5, 3, 5, 10]  # type: ignore[arg-type]
    assert text_lengths(Dialogues((), ()), 1).tolist() == [0, 0]  # type: ignore[arg-type]


def test_every_kind_of_source_knows_them(tmp_path: Path) -> None:
    write(tmp_path, 12)
    for path in ("shapes", str(tmp_path)):
        config = tiny_vlm(f"dataset.train_path={path}", f"dataset.val_path={path}")
        source = open_source(config.dataset, "train", reading_of(config))
        assert len(text_lengths(source, 1)) == len(source)


def write(folder: Path, num: int) -> None:
    """Pictures, each with a question and an answer of another length."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for index in range(num):
        picture(index).save(folder / f"{index}.png")
        words = " ".join(["red"] * int(generator.integers(1, 14)))
        rows.append({"image": f"{index}.png", "question": "what?", "answer": words})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_a_training_has_less_padding_and_reads_each_sample_once(tmp_path: Path) -> None:
    write(tmp_path, 96)
    shares = {}
    for switch in ("false", "true"):
        settings = ("dataset.batch_size=4", f"dataset.batch_by_length={switch}", "decoder.max_len=96")
        config = tiny_vlm(f"dataset.train_path={tmp_path}", f"dataset.val_path={tmp_path}", *settings)
        loader = build_parts(config, None).data.train_loader()
        epochs = [list(islice(loader, 24)) for _ in range(2)]
        masks = [batch.attention_mask for epoch in epochs for batch in epoch]
        shares[switch] = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
        for epoch in epochs:
            assert sorted(id for batch in epoch for id in batch.ids) == sorted(f"{i}.png" for i in range(96))
    assert shares["true"] < 0.5 * shares["false"]
