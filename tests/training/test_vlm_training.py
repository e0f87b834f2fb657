"""Whole trainings of the tiny vision-language model: it learns, resumes to the bit, and weighs by tokens everywhere."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import impresa
from impresa.config.adopt import adopt_towers
from impresa.errors import DataError
from impresa.evaluation.results import read_evaluation
from impresa.training.checkpoints import read_checkpoint
from impresa.training.dry_run import dry_run
from impresa.training.parts import build_parts
from impresa.training.recorder import Recorder
from impresa.training.run import train
from tiny_qwen import save_qwen
from tiny_run import finished_run, without_charts
from tiny_vlm import finished_vlm, picture, tiny_qwen_vlm, tiny_vlm, tiny_vlm_on

COMMAND = ["impresa", "train", "shapes_vqa_trm"]
LIVELY = ("decoder.recursion.dropout=0.2", "optimization.ema_decay=0.6", "trainer.accumulate_grad_batches=2")
LIVELY += ("dataset.questions_per_image=2", "dataset.augmentation=clip", "trainer.epochs=3")
"""Everything that draws at random, and the average of the weights."""
PLAIN = ("optimization.optimizer=sgd", "optimization.lr=0.1", "trainer.checkpoint.save_top_k=0", "trainer.epochs=2")
PLAIN += ("dataset.questions_per_image=2", "optimization.clip_grad=0", "dataset.shapes.num_train=24")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in csv.DictReader(file)]


def numbers(run_dir: Path, *names: str) -> list[dict[str, float]]:
    return [{name: float(row[name]) for name in names if row[name]} for row in rows(run_dir)]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    one, other = (load_file(run_dir / "model.safetensors") for run_dir in (ours, theirs))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_checkpoint_has_what_is_trained_and_nothing_else() -> None:
    checkpoint = read_checkpoint(finished_vlm() / "checkpoints" / "last.ckpt")
    model = impresa.load(finished_vlm(), "cpu").model
    trained = {*model.fusion.parameters(), *model.decoder.parameters()}
    expected = {f"model.{name}" for name, parameter in model.named_parameters() if parameter in trained}
    expected |= {
        f"model.{name}" for name, buffer in model.named_buffers() if f"model.{name}" in checkpoint["state_dict"]
    }
    assert checkpoint["state_dict"].keys() == expected
    assert not any("vision_encoder" in name for name, _ in model.named_parameters() if f"model.{name}" in expected)


def test_validation_tells_loss_and_exact_match() -> None:
    validated = [row for row in rows(finished_vlm()) if row["val_loss"]]
    assert [int(row["step"]) for row in validated] == [3, 6]
    assert all(0 <= float(row["val_exact_match"]) <= 1 for row in validated)
    assert not any("recall" in name for name in validated[0])


def test_the_evaluation_asked_every_question_of_the_test_split() -> None:
    from impresa.data.sources import open_source

    evaluation = read_evaluation(finished_vlm())
    config = impresa.load(finished_vlm(), "cpu").config
    source = open_source(config.dataset, "test", dialogues=True)
    assert evaluation is not None
    assert evaluation.answers is not None
    assert evaluation.num_texts == sum(len(source[i].dialogues) for i in range(len(source)))
    assert evaluation.answers.blind is not None
    assert set(evaluation.answers.kinds) == {d.kind for i in range(len(source)) for d in source[i].dialogues}


def test_the_loss_falls(tmp_path: Path) -> None:
    run_dir = train(tiny_vlm("trainer.epochs=12"), tmp_path / "run", command=COMMAND)
    losses = [float(row["val_loss"]) for row in rows(run_dir) if row["val_loss"]]
    assert min(losses) < losses[0] - 1
    assert losses[0] < math.log(300) + 1
    evaluation = read_evaluation(run_dir)
    assert evaluation is not None
    assert evaluation.answers is not None
    assert evaluation.answers.perplexity == pytest.approx(math.exp(evaluation.answers.loss))


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the given step is made."""
    record = Recorder.on_train_batch_end

    def press(self: Recorder, trainer: Any, module: Any, *rest: Any) -> None:
        if module.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        record(self, trainer, module, *rest)

    monkeypatch.setattr(Recorder, "on_train_batch_end", press)


@pytest.mark.parametrize("stands_on", ["own tower", "tower of a run", "adapters"])
def test_a_resumed_run_is_the_straight_one_to_the_bit(
    stands_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match stands_on:
        case "own tower":
            config = tiny_vlm(*LIVELY, "vision_encoder.drop_rate=0.1", "vision_encoder.memory.enabled=true")
        case "tower of a run":
            config = tiny_vlm_on(finished_run(), *LIVELY)
        case _:
            lora = ("decoder.use_lora=true", "decoder.lora.r=2", "decoder.load_in_4bit=true")
            config = tiny_qwen_vlm(save_qwen(tmp_path / "qwen"), *LIVELY, *lora, "trainer.epochs=2")
    straight = train(config, tmp_path / "straight", command=COMMAND)
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", command=COMMAND)
    train(config, tmp_path / "run", command=COMMAND, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert rows(tmp_path / "run") == rows(straight)
    assert len(rows(straight)) >= 4


def tokens_of_batches(config: Any) -> list[int]:
    """Supervised tokens of the first epoch's batches."""
    return [batch.num_supervised for batch in build_parts(config, None).data.train_dataloader()]


def test_batches_that_are_added_up_are_one_large_batch(tmp_path: Path) -> None:
    small = tiny_vlm(*PLAIN, "dataset.batch_size=4", "trainer.accumulate_grad_batches=3")
    assert len(set(tokens_of_batches(small))) > 1
    added = train(small, tmp_path / "added", command=COMMAND)
    large = train(tiny_vlm(*PLAIN, "dataset.batch_size=12"), tmp_path / "large", command=COMMAND)
    assert_same_weights(added, large)
    trained = ("step", "train_loss", "gradient_norm", "val_loss")
    assert numbers(added, *trained) == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in numbers(large, *trained)]


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """What a launcher would start as process `rank`."""
    code = 1
    try:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        os.environ.update(address, LOCAL_RANK=str(rank), NODE_RANK="0")
        together = ("dataset.batch_size=4", "trainer.devices=2", "trainer.strategy=ddp")
        config = tiny_vlm(*PLAIN, *together, "trainer.accumulate_grad_batches=2", "dataset.eval_batch_size=2")
        train(config, folder / "run", command=[])
        torch.distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # leaving the usual way aborts now and then in gloo's threads


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported there
    processes = [context.Process(target=one_of_two, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = train(tiny_vlm(*PLAIN, "dataset.batch_size=16"), tmp_path / "alone", command=[])
    assert_same_weights(tmp_path / "run", alone)
    trained = ("step", "train_loss", "gradient_norm", "val_loss")
    ours = numbers(tmp_path / "run", *trained)
    assert ours == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in numbers(alone, *trained)]
    assert impresa.load(tmp_path / "run", "cpu").ask([picture(0)], "what?")


def test_a_dry_run_names_the_parts_and_what_is_validated() -> None:
    told = dry_run(tiny_vlm_on(finished_run()))
    for part in ("vision_encoder:", "fusion:", "decoder:", "val_exact_match", "val_loss"):
        assert part in told


def test_answers_that_do_not_fit_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no room for a question in 3 tokens; raise decoder.max_len"):
        train(tiny_vlm("decoder.max_len=3"), tmp_path / "run", command=COMMAND)


def test_the_environment_is_that_of_any_run() -> None:
    environment = json.loads((finished_vlm() / "environment.json").read_text())
    assert environment["command"] == COMMAND
    assert environment["started"] <= environment["finished"]


def test_frozen_towers_have_no_place_in_the_optimizer() -> None:
    from impresa.training.optimizer import build_optimizer

    config = adopt_towers(tiny_vlm_on(finished_run()))
    model = build_parts(config, None).model
    kept = {id(p) for group in build_optimizer(model, config.optimization).param_groups for p in group["params"]}
    assert kept == {id(p) for p in [*model.fusion.parameters(), *model.decoder.parameters()]}
