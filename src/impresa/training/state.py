"""What moves while a model trains, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.experiment import OptimizationConfig
from impresa.errors import CheckpointError
from impresa.layers.state import trained_state
from impresa.training.averaging import WeightAverage, copy_weights
from impresa.training.distributed import Group
from impresa.training.optimizer import build_optimizer
from impresa.training.precision import Precision


class TrainState:
    """Model, optimizer, loss scale, averaged weights and the number of steps done.

    Args:
        model: turns a batch into a `ModelOutput`; its `commit` follows every optimizer step.
        config: optimizer, precision and average.
        group: the processes; the model moves to the device of this one.
    """

    def __init__(self, model: nn.Module, config: OptimizationConfig, group: Group) -> None:
        decay = config.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
        """What is validated and kept in place of the weights themselves."""
        self.precision = Precision(config.precision, group.device)
        self.precision.prepare_model(model)
        self.model = model.to(group.device)
        self.wrapped = group.wrap(model)
        """The model as training steps call it."""
        self.optimizer = build_optimizer(model, config)
        self.step = 0
        """Optimizer steps done since the start of the run, over all resumptions."""

    def checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values; what is frozen is left out."""
        scaler, average = self.precision.scaler, self.average
        return {
            "step": self.step,
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if average is None else average.state_dict(),
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on where `checkpoint` was written.

        Raises:
            CheckpointError: it is one of another model.
        """
        self._load_weights(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.precision.scaler is not None and checkpoint["scaler"]:
            self.precision.scaler.load_state_dict(checkpoint["scaler"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])
        self.step = checkpoint["step"]

    def take_best(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over what a checkpoint would be used with: its weights, or their average if there is one.

        Raises:
            CheckpointError: they are not those of this model.
        """
        self._load_weights(checkpoint["model"])
        average = checkpoint["average"] or {}
        # By parameter, because the state dict has a second name for an LM head that is the embedding table.
        copy_weights(average, {name: p for name, p in self.model.named_parameters() if name in average})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model as it is validated: nothing drops out, and the average is in the place of the weights."""
        modes = {module: module.training for module in self.model.modules()}  # frozen parts are in evaluation already
        self.model.eval()
        if self.average is not None:
            self.average.swap()
        try:
            with torch.no_grad():
                yield
        finally:
            if self.average is not None:
                self.average.swap()
            for module, mode in modes.items():
                module.training = mode

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        other = weights.keys() ^ trained_state(self.model).keys()
        if other:
            raise CheckpointError(
                f"checkpoint: does not fit the model ({min(other)}); resume with the run's own config"
            )
        self.model.load_state_dict(weights, strict=False)
