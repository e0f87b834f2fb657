"""The bytes that processes exchange, reckoned, beside those that two of them do exchange."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from impresa.config import ExperimentConfig
from impresa.losses import gather
from impresa.training.exchange import Exchange, exchange, gathered_bytes
from tiny_run import tiny_experiment
from two_processes import in_two_processes

GATHERING = ("losses.gather_distributed=true", "dataset.batch_size=2", "dataset.eval_batch_size=4")


def exchanged(rank: int, config: ExperimentConfig) -> dict[str, int]:
    """Bytes of a training step in one of two processes, by kind."""
    from impresa.training.loop import steps_of, train_step
    from impresa.training.parts import build_parts
    from impresa.training.run import join_group, set_up

    counts = Counter[str]()
    group = join_group(config.trainer)
    training = set_up(config, build_parts(config, None, world_size=2), group)

    def hook(state: Any, bucket: Any) -> Any:
        counts["gradients"] += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    hook.__annotations__.clear()  # torch wants its own names there, which `from __future__` makes texts of
    training.state.wrapped.register_comm_hook(None, hook)  # type: ignore[operator]

    def gathering(parts: list[Tensor], own: Tensor) -> None:
        counts["gathered"] += sum(part.nbytes for part in parts) if own.ndim else 0  # numbers of rows are left out
        distributed.all_gather(parts, own)

    def reducing(total: Tensor) -> None:
        counts["returned"] += total.nbytes
        distributed.all_reduce(total)

    # For the losses alone: all else of torch's module stays as it is.
    of_losses = {**vars(distributed), "all_gather": gathering, "all_reduce": reducing}
    gather.distributed = SimpleNamespace(**of_losses)  # type: ignore[assignment]
    train_step(training, next(steps_of(training.train_loader, config.trainer.accumulate_grad_batches)))
    return dict(counts)


@pytest.mark.parametrize(
    "overrides",
    [("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]"), ("losses.duplicates=ignore",)],
)
def test_two_processes_exchange_what_is_reckoned(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny_experiment(*GATHERING, *overrides)
    for counted in in_two_processes(exchanged, tmp_path, config, start="fork"):
        found = exchange(config, 2, weights=0, gradients=counted["gradients"])
        assert found.all_gathered == counted["gathered"]
        assert found.all_reduced - counted["gradients"] == counted["returned"]


def test_by_hand() -> None:
    config = tiny_experiment(
        "losses.gather_distributed=true", "dataset.batch_size=4", "trainer.accumulate_grad_batches=3"
    )
    rows = 8 * 4
    # Embeddings of 16 numbers, two keys of a row, and for each row of all one sum of each process.
    gathered, returned = rows * 16 * 4 + rows * 2 * 8 + 8 * rows * 4, rows * 16 * 4
    assert gathered_bytes(config, 8) == (gathered, returned)
    assert exchange(config, 8, weights=800, gradients=640) == Exchange(640 + 3 * returned, 3 * gathered)
    sharded = exchange(config, 8, weights=800, gradients=640, is_sharded=True)
    assert sharded == Exchange(3 * returned, 3 * (gathered + 1600), 640)
    assert Exchange(800, 80, 8).sent(8) == round((1600 + 88) * 7 / 8)
    alone = tiny_experiment("dataset.batch_size=4")
    assert gathered_bytes(alone, 8) == (0, 0)
    assert gathered_bytes(config, 1) == (0, 0)
