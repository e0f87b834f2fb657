"""The metrics of a validation do not depend on the number of processes that share it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from impresa.training.distributed import Group
from impresa.training.loop import validate
from impresa.training.parts import build_parts
from impresa.training.run import set_up
from tiny_run import tiny_experiment
from two_processes import in_two_processes

SOME_ALONE = ("dataset.shapes.num_val=21", "dataset.eval_batch_size=4")
"""Five batches, the last of five samples."""


def metrics(rank: int, world_size: int, overrides: tuple[str, ...]) -> dict[str, float]:
    """Of an untrained model."""
    config = tiny_experiment(*SOME_ALONE, *overrides)
    training = set_up(config, build_parts(config, None), Group(torch.device("cpu"), rank, world_size))
    return validate(training)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_it_is_equal_in_one_two_and_four_processes(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.tasks.alignment.validation.NUM_RETRIEVED", 13)
    overrides = (f"losses.type={loss}", "losses.gather_distributed=true")
    alone = metrics(0, 1, overrides)
    assert {"val_loss", "val_contrastive", "val_image_to_text_recall_at_1"} <= alone.keys()
    assert alone["val_loss"] > 0.5
    for count in (2, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        for found in in_two_processes(metrics, folder, count, overrides, start="fork", count=count):
            assert found == pytest.approx(alone, rel=1e-9)
