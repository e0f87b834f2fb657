"""A model shared out over two processes (`trainer.strategy: fsdp`) trains as one process does, and resumes on any."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from impresa.config import ExperimentConfig, load_experiment
from impresa.config.runs import prepare
from impresa.errors import ConfigError, Requeue
from impresa.run_dir.layout import WEIGHTS
from impresa.run_dir.load import load_embedder
from impresa.training.checkpoints import convert, read_checkpoint
from impresa.training.logs import Recorder
from impresa.training.run import train
from impresa.training.sharded_checkpoints import whole_content
from killed import keep_weights, without_end
from run_metrics import numbers
from tiny_qwen import save_qwen
from tiny_run import HEARING, tiny_experiment
from tiny_vlm import tiny_qwen_vlm, tiny_vlm
from two_processes import in_two_processes

STEPS, HALF = 10, 6
STOPPED = 5
"""A step after which nothing else would save."""
# 18 samples in steps of 8; without dropout, whose draws depend on the rank. A larger eps, for AdamW divides by
# gradients that are zero but for rounding, as those of the keys' biases are.
COMMON = (
    *("trainer.epochs=30", "optimization.eps=1e-4", "optimization.scheduler=constant", "optimization.warmup_epochs=0"),
    *("trainer.devices=auto", "trainer.logging.log_interval=1", "dataset.eval_batch_size=4"),
    *("trainer.logging.eval_interval=3", "trainer.logging.save_interval=3", "trainer.checkpoint.save_top_k=0"),
)
EVEN = ("vision_encoder.drop_rate=0", "text_encoder.drop_rate=0", "losses.gather_distributed=true")
MRL = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]", "optimization.ema_decay=0.9")
TOWERS = (
    *("text_encoder.backbone=bag", "text_encoder.depth=12", "text_encoder.num_heads=8"),
    *("vision_encoder.memory.enabled=false", "vision_encoder.use_attention_pooling=true"),
    *("vision_encoder.use_perceiver=true", "vision_encoder.perceiver_num_layers=2"),
    *("vision_encoder.perceiver_num_heads=2", "vision_encoder.perceiver_num_latents=3"),
    *("vision_encoder.activation_checkpointing=true", "optimization.optimizer=sgd"),
)
LORA = ("decoder.use_lora=true", "decoder.lora.r=2", "decoder.lora.dropout=0", "optimization.lr=1e-3")
KINDS = ("alignment", "towers", "answers", "recursion")
FSDP = ("trainer.strategy=fsdp",)


def experiment(kind: str, qwen: Path, processes: int, *more: str) -> ExperimentConfig:
    """A run of a kind, of 8 samples in a step."""
    sizes = (f"dataset.batch_size={4 // processes}", "trainer.accumulate_grad_batches=2", f"trainer.max_steps={STEPS}")
    if kind == "answers":
        packing = f"optimization.packing={'true' if processes > 1 else 'false'}"  # the same in rows of several samples
        return tiny_qwen_vlm(qwen, *COMMON, *LORA, packing, *sizes, *more)
    if kind == "recursion":
        recursion = ("decoder.use_trm_recursion=true", *LORA)
        return tiny_qwen_vlm(qwen, *COMMON, *recursion, "decoder.recursion.dropout=0", *sizes, *more)
    of_kind = {"alignment": MRL, "towers": (*TOWERS, *HEARING)}[kind]
    return tiny_experiment(*COMMON, *EVEN, *of_kind, *sizes, *more)


def train_together(rank: int, folder: Path, kinds: tuple[str, ...], qwen: Path) -> None:
    without_end()
    for kind in kinds:
        train(experiment(kind, qwen, 2, *FSDP), folder / kind, command=[])


def train_half(rank: int, folder: Path) -> None:
    """Until a scheduler's signal to one process, with a slow disk under the other."""
    without_end()
    record, write = Recorder.train, HuggingFaceStorageWriter.write_data

    def signalled(self: Recorder, at: int, *rest: Any) -> None:
        if at == STOPPED and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, at, *rest)

    def late(self: Any, plan: Any, planner: Any) -> Any:
        time.sleep(rank)
        return write(self, plan, planner)

    Recorder.train = signalled  # type: ignore[assignment, method-assign]
    HuggingFaceStorageWriter.write_data = late  # type: ignore[method-assign]
    run = folder / "half"
    with pytest.raises(Requeue):
        train(experiment("alignment", folder, 2, *FSDP), run, command=[])
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["step"] == STOPPED


def train_to_the_end(rank: int, run_dir: Path) -> None:
    few = ("trainer.max_steps=3", "trainer.logging.eval_interval=1", "trainer.checkpoint.save_top_k=1")
    train(experiment("alignment", run_dir, 2, *FSDP, *few), run_dir, command=[])


def go_on(rank: int, run_dir: Path) -> None:
    without_end()
    train(experiment("alignment", run_dir, 1, *FSDP), run_dir, command=[], resume=True)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> Path:
    """The folder of the runs of two processes, and of the first part of one."""
    folder = tmp_path_factory.mktemp("shared")
    for number, kinds in enumerate((KINDS[:2], KINDS[2:])):
        meeting = folder / str(number)
        meeting.mkdir()
        in_two_processes(train_together, meeting, folder, kinds, qwen, start="fork")
    in_two_processes(train_half, folder, folder, start="fork")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> Path:
    """The folder of the same runs of one process, and of the first part of one."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("impresa.training.finish.finish", keep_weights)
        for kind in KINDS:
            train(experiment(kind, qwen, 1), folder / kind, command=[])
        train(experiment("alignment", qwen, 1, f"trainer.max_steps={HALF}"), folder / "half", command=[])
    return folder


def assert_equal(one: Path, other: Path, atol: float = 1e-6) -> None:
    weights, others = (load_file(run / WEIGHTS) for run in (one, other))
    assert weights.keys() <= others.keys() or others.keys() <= weights.keys()
    common = weights.keys() & others.keys()
    assert common
    for name in common:
        torch.testing.assert_close(others[name].float(), weights[name].float(), rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, shared: Path, alone: Path) -> None:
    tolerance = 1e-6
    names = ("train_loss", "gradient_norm", "val_loss")
    losses = numbers(alone / kind, *names)
    assert sum("train_loss" in row for row in losses) == STEPS
    assert numbers(shared / kind, *names) == [pytest.approx(row, abs=tolerance, rel=10 * tolerance) for row in losses]
    assert_equal(alone / kind, shared / kind, tolerance)


def test_a_finished_run_is_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    in_two_processes(train_to_the_end, tmp_path, run, start="fork")
    assert (run / "report.html").exists()
    assert load_embedder(run, "cpu").encode_text("a red circle").shape == (16,)
    assert not list(run.rglob(".*.tmp"))
    best, last = sorted((run / "checkpoints").iterdir())
    assert best.name in read_checkpoint(best)["scores"]
    average, weights = whole_content(read_checkpoint(best))["average"], load_file(run / WEIGHTS)
    assert average
    for name, value in average.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    assert {file.name for file in best.iterdir()} == {file.name for file in last.iterdir()}


def test_a_checkpoint_has_a_part_of_each_process(shared: Path) -> None:
    folder = shared / "alignment" / "checkpoints" / "last.ckpt"
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert len(sizes) == 3
    first, second = (size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert first == pytest.approx(second, rel=0.2)
    assert read_checkpoint(folder)["step"] == STEPS


@pytest.mark.parametrize("form", ["parts", "one file"])
def test_one_process_goes_on_from_two(
    form: str, shared: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.training.finish.finish", keep_weights)
    run = tmp_path / "run"
    shutil.copytree(shared / "half", run)
    if form == "one file":
        last = run / "checkpoints" / "last.ckpt"
        convert(last, tmp_path / "single.ckpt", to="single")
        shutil.rmtree(last)
        shutil.move(tmp_path / "single.ckpt", last)
    train(experiment("alignment", Path(), 2), run, command=[], resume=True)
    assert_equal(alone / "alignment", run)
    assert (run / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("form", ["one file", "parts"])
def test_two_processes_go_on_from_one(form: str, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone / "half", run)
    if form == "parts":
        last = run / "checkpoints" / "last.ckpt"
        convert(last, tmp_path / "sharded.ckpt", to="sharded")
        last.unlink()
        shutil.move(tmp_path / "sharded.ckpt", last)
    in_two_processes(go_on, tmp_path, run, start="fork")
    assert_equal(alone / "alignment", run)
    assert (run / "checkpoints" / "last.ckpt").is_dir()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["optimization.optimizer=muon"], "has parts of matrices, and optimization.optimizer muon needs them whole; "),
        (["optimization.optimizer=adamw8bit"], "has parts of matrices, and optimization.optimizer adamw8bit rounds"),
        (["optimization.precision=16-mixed"], "has no loss scale that all processes agree on, which "),
        (["optimization.chunk_size=2"], "would gather each block again for every chunk of optimization.chunk_size; "),
        (["trainer.compile=blocks"], "gathers weights between the blocks, which trainer.compile does not know of; "),
        (["vision_encoder.freeze=true", "dataset.cache_features=kept"], "gathers towers whole, and dataset.cache_feat"),
        (["decoder.type=qwen", "decoder.load_in_4bit=true"], "cannot take apart the packed weights of decoder.load_in"),
        (["decoder.type=qwen", "decoder.load_in_8bit=true"], "cannot take apart the packed weights of decoder.load_in"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("shapes", [*FSDP, *overrides])
    lines = [line for line in caught.value.lines if line.startswith("trainer.strategy: fsdp ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"trainer.strategy: fsdp {reason}")
    assert lines[0].endswith(", or use ddp")


def test_batch_norms_are_refused() -> None:
    from impresa.training.sharding import check_can_share

    model = torch.nn.ModuleDict({"vision_encoder": torch.nn.Sequential(torch.nn.BatchNorm2d(3))})
    with pytest.raises(ConfigError, match=r"^trainer\.strategy: vision_encoder trains with batch norms, .* use ddp$"):
        check_can_share(model)


def test_one_process_shares_with_nobody_and_says_so(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impresa.training.finish.finish", keep_weights)
    run = train(tiny_vlm(*FSDP, "trainer.max_steps=1"), tmp_path / "run", command=[])
    assert "trainer.strategy: fsdp has nobody to share the model with" in caplog.text
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_it_is_ready_to_be_run() -> None:
    assert prepare(tiny_experiment(*FSDP)).trainer.strategy == "fsdp"
