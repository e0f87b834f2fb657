from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch

from impresa.config.runs import adopt_towers
from impresa.run_dir.layout import PREPROCESSING
from impresa.training.parts import Parts, build_parts
from tiny_run import HEARING, copy_of_run, finished_run, tiny_experiment


def weights(parts: Parts) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parts.model.parameters()])


def test_the_seed_draws_the_weights_whatever_was_drawn_before() -> None:
    first = weights(build_parts(tiny_experiment(), None))
    torch.rand(7)
    assert torch.equal(weights(build_parts(tiny_experiment(), None)), first)
    assert not torch.equal(weights(build_parts(tiny_experiment("seed=1"), None)), first)


def test_a_resumed_run_keeps_its_tokenizer() -> None:
    other_captions = tiny_experiment("dataset.shapes.seed=5", "dataset.shapes.num_train=400")
    fresh = build_parts(other_captions, finished_run())
    resumed = build_parts(other_captions, finished_run(), resumed=True)
    assert fresh.preprocessing.tokenizer.vocab_size != resumed.preprocessing.tokenizer.vocab_size
    assert (
        resumed.preprocessing.tokenizer.vocab_size
        == build_parts(tiny_experiment(), None).preprocessing.tokenizer.vocab_size
    )


@pytest.mark.parametrize(
    ("processes", "line"),
    [
        ("1", "dataset.num_workers: 4 for 2 CPUs; fewer may be faster"),
        ("3", "dataset.num_workers: 4 in each of 3 processes for 2 CPUs; fewer may be faster"),
    ],
)
def test_too_many_workers_are_said_once_and_not_by_torch_for_each_loader(
    processes: str, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", processes)):
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as shown, caplog.at_level(logging.INFO, logger="impresa"):
        warnings.simplefilter("always")
        data = build_parts(tiny_experiment("dataset.num_workers=4"), None).data
        for _ in range(2):
            data.train_loader()
            data.val_loader()
    assert [str(warning.message) for warning in shown if "worker" in str(warning.message)] == []
    assert [record.message for record in caplog.records if "num_workers" in record.message] == [line]


def test_images_are_prepared_as_the_towers_run_prepares_them(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    theirs = json.loads((run_dir / PREPROCESSING).read_text())
    theirs["image"] |= {"mean": [0.1, 0.2, 0.3], "resize": "squash"}
    (run_dir / PREPROCESSING).write_text(json.dumps(theirs))
    parts = build_parts(adopt_towers(tiny_experiment(f"vision_encoder.checkpoint={run_dir}")), None)
    assert json.loads(json.dumps(parts.preprocessing.image.to_dict())) == theirs["image"]
    assert parts.preprocessing.image.to_dict() != build_parts(tiny_experiment(), None).preprocessing.image.to_dict()
    image, pixels = parts.data.val_source[0].image, next(iter(parts.data.val_loader())).image
    assert torch.equal(pixels[0], parts.preprocessing.image(image))


def test_parameters_are_counted_by_part(tmp_path: Path) -> None:
    parts = build_parts(tiny_experiment(), tmp_path)
    counted = dict(parts.parameters())
    assert set(counted) == {"vision_encoder", "text_encoder", "loss"}
    assert counted["loss"] == 1
    assert sum(counted.values()) == parts.num_parameters == len(weights(parts))
    assert not list(tmp_path.iterdir())


def test_sounds_are_changed_in_training_batches_alone() -> None:
    batches = {}
    for kind in ("none", "light", "strong"):
        data = build_parts(tiny_experiment(*HEARING, f"dataset.audio_augmentation={kind}"), None).data
        batches[kind] = next(iter(data.train_loader())), next(iter(data.val_loader()))
    for kind in ("light", "strong"):
        (plain, plain_val), (changed, val) = batches["none"], batches[kind]
        assert not torch.equal(changed.audio, plain.audio)
        assert torch.equal(changed.keys["audio"], plain.keys["audio"])
        assert torch.equal(changed.image, plain.image)
        assert torch.equal(val.audio, plain_val.audio)
