"""Two processes over gloo, two batches a step each, train as one process does on the same samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import impresa
from impresa.training.run import train
from run_metrics import numbers
from tiny_run import tiny_experiment
from two_processes import in_two_processes

# Full batches only, and no dropout: its draws depend on the rank.
EVEN = (
    *("dataset.shapes.num_train=16", "trainer.epochs=4", "vision_encoder.drop_rate=0", "text_encoder.drop_rate=0"),
    *("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8]", "dataset.eval_batch_size=4"),
    *("vision_encoder.memory.mem_reinit_steps=3", "trainer.logging.log_interval=1", "trainer.checkpoint.save_top_k=1"),
    # Adam would blow up the rounding of gradients that are zero in truth, as those of key biases are.
    *("optimization.optimizer=sgd", "optimization.lr=0.1"),
)
TOGETHER = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=2")
LIKE_ONE = {
    "own negatives": ((), ("trainer.accumulate_grad_batches=4",)),
    "gathered": (("losses.gather_distributed=true",), ("dataset.batch_size=8", "trainer.accumulate_grad_batches=2")),
}
"""What the two processes are told besides, and what makes one process see the same negatives."""


def train_together(rank: int, run_dir: Path, overrides: tuple[str, ...]) -> None:
    train(tiny_experiment(*EVEN, *TOGETHER, *overrides), run_dir, command=[])


@pytest.fixture(scope="module", params=list(LIKE_ONE))
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of two processes, and that of one."""
    for_two, for_one = LIKE_ONE[request.param]
    folder = tmp_path_factory.mktemp("runs")
    in_two_processes(train_together, folder, folder / "run", for_two, start="fork")
    return folder / "run", train(tiny_experiment(*EVEN, *for_one), folder / "one", command=[])


def test_the_weights_are_equal(runs: tuple[Path, Path]) -> None:
    together, alone = (load_file(run_dir / "model.safetensors") for run_dir in runs)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_metrics_are_equal(runs: tuple[Path, Path]) -> None:
    trained = (
        "step",
        "epoch",
        "train_loss",
        "lr",
        "gradient_norm",
        "contrastive",
        "mrl_8",
        "mean_cosine",
        "logit_scale",
    )
    validated = ("val_loss", "val_contrastive", "val_mrl_8", "val_image_to_text_recall_at_1")
    together, alone = (numbers(run_dir, *trained, *validated) for run_dir in runs)
    assert len(alone) == 8
    assert together == [pytest.approx(row, rel=1e-3, abs=1e-6) for row in alone]


def test_only_the_first_process_writes_and_the_run_is_whole(runs: tuple[Path, Path]) -> None:
    run_dir = runs[0]
    assert (run_dir / "report.html").exists()
    assert impresa.load(run_dir, "cpu").encode_text("a red circle").shape == (16,)
    assert not list(run_dir.rglob(".*.tmp"))
