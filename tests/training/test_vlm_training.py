"""Training runs of the tiny vision-language model: it learns, resumes to the bit, and weighs by tokens everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import impresa
from impresa.config import ExperimentConfig
from impresa.config.runs import adopt_towers
from impresa.data.dialogue import ask
from impresa.errors import DataError
from impresa.evaluation.results import read_evaluation
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.task import AnsweringTask
from impresa.tasks.base import ModelOutput
from impresa.training.checkpoints import read_checkpoint
from impresa.training.distributed import Group
from impresa.training.parts import build_parts
from impresa.training.run import train
from run_metrics import interrupt_after, numbers, rows
from tiny_qwen import save_qwen
from tiny_run import dry_run_of, finished_run, without_charts
from tiny_vlm import finished_vlm, picture, tiny_qwen_vlm, tiny_vlm, tiny_vlm_on
from two_processes import in_two_processes

COMMAND = ["impresa", "train", "shapes_vqa_trm"]
LIVELY = ("decoder.recursion.dropout=0.2", "optimization.ema_decay=0.6", "trainer.accumulate_grad_batches=2")
LIVELY += ("dataset.questions_per_image=2", "dataset.augmentation=clip", "trainer.epochs=3")
"""Everything that draws at random, and the average of the weights."""
NEW = ("dataset.batch_by_length=true", "dataset.batch_size=2", "fusion.projector=mlp", "decoder.prefix=cls_patches")
NEW += ("optimization.lr_fusion=2e-2",)
PLAIN = ("optimization.optimizer=sgd", "optimization.lr=0.1", "trainer.checkpoint.save_top_k=0", "trainer.epochs=2")
PLAIN += ("dataset.questions_per_image=2", "optimization.clip_grad=0", "dataset.shapes.num_train=24")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    one, other = (load_file(run_dir / "model.safetensors") for run_dir in (ours, theirs))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_checkpoint_has_what_is_trained_and_nothing_else() -> None:
    checkpoint = read_checkpoint(finished_vlm() / "checkpoints" / "last.ckpt")
    model = impresa.load(finished_vlm(), "cpu").model
    kept = checkpoint["model"].keys()
    parts = (("fusion", model.fusion), ("decoder", model.decoder))
    trained = {f"{part}.{name}" for part, module in parts for name in module.state_dict()}
    memory = {f"vision_encoder.backbone.memory.{name}" for name in ("state", "reset_pending")}
    assert kept == trained | memory  # buffers are kept, whoever has them
    assert {"fusion.projections.image.weight", "decoder.embedding.weight", "decoder.gain"} <= kept
    assert not kept & {name for name, _ in model.named_parameters() if name.startswith("vision_encoder.")}


class Answered(torch.nn.Module):
    """Gives each batch the loss and the exact match that its name says."""

    def forward(self, batch: DialogueBatch) -> ModelOutput:
        loss, exact_match = (torch.tensor(float(value)) for value in batch.ids[0].split())
        return ModelOutput(loss, {"loss": loss, "exact_match": exact_match})


def test_a_validation_weighs_losses_by_tokens_and_hits_by_dialogues() -> None:
    batches = [
        DialogueBatch(ids=["1.5 1"], dialogues=[ask("what?", "a long answer of nine tokens")], num_supervised=9),
        DialogueBatch(ids=["0.5 0"], dialogues=[ask("what?", "red")] * 3, num_supervised=3),
    ]
    validation, model = AnsweringTask(tiny_vlm()).validation(Group(torch.device("cpu"))), Answered()
    for batch in batches:
        validation.add(batch, model(batch))
    metrics = validation.metrics()
    loss = (9 * 1.5 + 3 * 0.5) / 12
    assert metrics == pytest.approx({"val_loss": loss, "val_exact_match": 0.25, "val_perplexity": math.exp(loss)})


def test_validation_tells_loss_perplexity_and_exact_match() -> None:
    validated = [row for row in rows(finished_vlm()) if row["val_loss"]]
    assert [int(row["step"]) for row in validated] == [3, 6]
    assert all(0 <= float(row["val_exact_match"]) <= 1 for row in validated)
    for row in validated:
        assert float(row["val_perplexity"]) == pytest.approx(math.exp(float(row["val_loss"])), rel=1e-5)
    assert not any("recall" in name for name in validated[0])


def test_the_evaluation_asked_every_question_of_the_test_split() -> None:
    from impresa.data.sources import Reading, open_source

    evaluation = read_evaluation(finished_vlm())
    config = impresa.load(finished_vlm(), "cpu").config
    source = open_source(config.dataset, "test", Reading(dialogues=True))
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


@pytest.mark.parametrize("stands_on", ["own tower", "tower of a run", "adapters"])
def test_a_resumed_run_is_the_straight_one_to_the_bit(
    stands_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match stands_on:
        case "own tower":
            config = tiny_vlm(*LIVELY, "vision_encoder.drop_rate=0.1", "vision_encoder.memory.enabled=true", *NEW)
        case "tower of a run":
            config = tiny_vlm_on(finished_run(), *LIVELY)
        case _:
            lora = (
                "decoder.use_lora=true",
                "decoder.lora.r=2",
                "decoder.load_in_4bit=true",
                "optimization.lr_lora=2e-3",
            )
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
    return [batch.num_supervised for batch in build_parts(config, None).data.train_loader()]


def test_batches_that_are_added_up_are_one_large_batch(tmp_path: Path) -> None:
    small = tiny_vlm(*PLAIN, "dataset.batch_size=4", "trainer.accumulate_grad_batches=3")
    assert len(set(tokens_of_batches(small))) > 1
    added = train(small, tmp_path / "added", command=COMMAND)
    large = train(tiny_vlm(*PLAIN, "dataset.batch_size=12"), tmp_path / "large", command=COMMAND)
    assert_same_weights(added, large)
    trained = ("step", "train_loss", "gradient_norm", "val_loss", "val_perplexity")
    assert numbers(added, *trained) == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in numbers(large, *trained)]


def whole(qwen: Path | None, *overrides: str) -> ExperimentConfig:
    """A run without dropout, of a decoder from scratch, or of adapters on a language model in four bits."""
    if qwen is None:
        return tiny_vlm(*PLAIN, *overrides)
    adapters = ("decoder.use_lora=true", "decoder.lora.r=2", "decoder.lora.dropout=0", "decoder.load_in_4bit=true")
    return tiny_qwen_vlm(qwen, *PLAIN, *adapters, "trainer.max_steps=2", *overrides)


def train_together(rank: int, run_dir: Path, qwen: Path | None) -> None:
    together = ("dataset.batch_size=4", "trainer.devices=2", "trainer.strategy=ddp")
    config = whole(qwen, *together, "trainer.accumulate_grad_batches=2", "dataset.eval_batch_size=2")
    train(config, run_dir, command=[])


@pytest.mark.parametrize("decoder", ["from scratch", "in four bits"])
def test_two_processes_are_one(decoder: str, tmp_path: Path) -> None:
    qwen = save_qwen(tmp_path / "qwen") if decoder == "in four bits" else None
    in_two_processes(train_together, tmp_path, tmp_path / "run", qwen, start="fork")
    alone = train(whole(qwen, "dataset.batch_size=16"), tmp_path / "alone", command=[])
    assert_same_weights(tmp_path / "run", alone)
    trained = ("step", "train_loss", "gradient_norm", "val_loss", "val_perplexity")
    ours = numbers(tmp_path / "run", *trained)
    assert ours == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in numbers(alone, *trained)]
    assert impresa.load(tmp_path / "run", "cpu").ask([picture(0)], "what?")


def test_a_dry_run_names_the_parts_and_what_is_validated() -> None:
    told = dry_run_of(tiny_vlm_on(finished_run()))
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
