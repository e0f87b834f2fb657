"""Bytes that processes exchange in an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from impresa.config.experiment import ExperimentConfig, towers

_FLOAT32, _INT64 = 4, 8
_KEYS = 2
"""Numbers of a row by which equal samples are known: one for each modality of a pair."""


@dataclass(frozen=True)
class Exchange:
    """Bytes of the tensors of one process's collective operations in a step, by the kind of operation. Small ones
    (logs, numbers of rows, buffers) are left out."""

    all_reduced: int
    """Gradients that are added up over the processes: of all trained weights (ddp), and of gathered embeddings."""
    all_gathered: int
    """Tensors that each process has of all others afterwards: embeddings, and the weights twice (fsdp)."""
    reduce_scattered: int = 0
    """Gradients that are added up and spread (fsdp)."""

    def sent(self, num_processes: int) -> int:
        """Bytes that each process sends, and receives, if the operations run around a ring."""
        once = self.all_gathered + self.reduce_scattered
        return round((2 * self.all_reduced + once) * (num_processes - 1) / num_processes)


def exchange(
    config: ExperimentConfig, num_processes: int, *, weights: int, gradients: int, is_sharded: bool | None = None
) -> Exchange:
    """The exchange of so many processes.

    Args:
        config: the experiment.
        num_processes: that train together.
        weights: bytes of the whole model.
        gradients: bytes of those of its trained weights.
        is_sharded: as with `trainer.strategy=fsdp`; None: as the config says.
    """
    num_batches = config.trainer.accumulate_grad_batches
    gathered, returned = gathered_bytes(config, num_processes)
    if config.trainer.strategy == "fsdp" if is_sharded is None else is_sharded:
        return Exchange(num_batches * returned, num_batches * (gathered + 2 * weights), gradients)
    return Exchange(gradients + num_batches * returned, num_batches * gathered)


def gathered_bytes(config: ExperimentConfig, num_processes: int) -> tuple[int, int]:
    """Bytes that a batch of a loss with `losses.gather_distributed` gathers, and those of the gradients that it sends
    back; with hard negatives the most that there can be, one for each sample."""
    losses = config.losses
    if config.decoder is not None or not losses.gather_distributed or num_processes == 1:
        return 0, 0
    num_rows = num_processes * config.dataset.batch_size
    width = config.vision_encoder.embed_dim
    num_pairs = len(losses.pairs or list(combinations(towers(config), 2)))
    rows = num_rows * width * _FLOAT32
    keys = num_rows * _KEYS * _INT64 if losses.duplicates == "positive" else 0
    # InfoNCE also adds up its columns over the rows of all processes, for each length of the embeddings.
    sums = num_processes * num_rows * _num_lengths(config) * _FLOAT32 if losses.type == "clip" else 0
    has_negatives = config.dataset.negative_column is not None
    wrong_keys = num_rows * _INT64 if has_negatives else 0
    gathered = num_pairs * (rows + keys + sums) + has_negatives * (rows + wrong_keys)
    return gathered, (num_pairs + has_negatives) * rows


def _num_lengths(config: ExperimentConfig) -> int:
    tower = config.vision_encoder
    if not tower.use_mrl:
        return 1
    shorter = [dim for dim in tower.mrl_dimensions if dim != tower.embed_dim]
    return 1 + (min(1, len(shorter)) if config.losses.sample_single_mrl_dim else len(shorter))
