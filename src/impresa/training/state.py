"""The state that a training run moves: weights, their precision and average, the optimizer, the loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.optimization import OptimizationConfig
from impresa.config.optimization import Precision as PrecisionName
from impresa.decoders.base import Decoder
from impresa.encoders.memory import MemoryTokens
from impresa.errors import CheckpointError, ConfigError
from impresa.layers.state import trained_state
from impresa.losses.contrastive import ContrastiveLoss
from impresa.training.distributed import Group
from impresa.training.optimizer import build_optimizer
from impresa.training.sharded_checkpoints import Place, whole_content
from impresa.training.shared import gathered, is_shared, part_of, shared_like
from impresa.training.stored import check_tensors, load_optimizer


class TrainState:
    """Model, optimizer, loss scale, averaged weights and the number of steps done.

    Args:
        model: turns a batch into a `ModelOutput`; its `commit` follows every optimizer step.
        config: optimizer, precision and average.
        group: the processes; the model moves to the device of this one.
    """

    def __init__(self, model: nn.Module, config: OptimizationConfig, group: Group) -> None:
        decay, self.group = config.ema_decay, group
        place = None if group.shares_model else group.device  # else where the model is until it is shared out
        self.average = None if decay is None else WeightAverage(model, decay, place)
        """Validated and kept in place of the weights themselves."""
        self.precision = Precision(config.precision, group.device)
        if self.precision.has_bfloat16_weights:
            cast_weights(model)
        self.wrapped = group.wrap(model)
        """The model as training steps call it."""
        self.model = model
        if self.average is not None and group.shares_model:
            self.average.follow(model)
        self.optimizer = build_optimizer(model, config)
        self.step = 0
        """Optimizer steps done since the start of the run, over all resumptions."""

    def checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values; frozen parameters are left out."""
        return {
            "step": self.step,
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict() or None,
            "average": None if self.average is None else self.average.state_dict(),
        }

    def gathered(self) -> dict[str, Any]:
        """The weights, and their average if there is one, as in a checkpoint and whole; every process asks for them."""
        average = None if self.average is None else self.average.state_dict()
        parts = {"model": trained_state(self.model), "average": average}
        return {
            part: None if tensors is None else {name: gathered(tensor).cpu() for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue from where `checkpoint` was written.

        Raises:
            CheckpointError: it is one of another model.
        """
        checkpoint = whole_content(checkpoint, self._finder())
        load_weights(self.model, checkpoint["model"])
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        if checkpoint["scaler"]:
            self.precision.load_scale(checkpoint["scaler"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"] or {})
        self.step = checkpoint["step"]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, and with the average in place of the weights."""
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

    def _finder(self) -> Callable[[Place], Tensor | None]:
        """Finds a tensor of this state that is shared out as the one at a place of a checkpoint is to be."""
        trained, average = trained_state(self.model), {} if self.average is None else self.average.state_dict()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

        def find(place: Place) -> Tensor | None:
            match place:
                case ("model", str(name)):
                    return trained.get(name)
                case ("average", str(name)):
                    return average.get(name)
                case ("optimizer", "state", int(number), _) if number < len(parameters):
                    return parameters[number]
            return None

        return find


def take_best(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint of this model, or their average if there is one.

    Raises:
        CheckpointError: it is one of another model.
    """
    checkpoint = whole_content(checkpoint)
    load_weights(model, checkpoint["model"])
    average = checkpoint["average"] or {}
    # By parameter, because the state dict has a second name for an LM head that is the embedding table.
    own = {name: p for name, p in model.named_parameters() if name in average}
    check_tensors(average, own)
    copy_weights(average, own)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the trained part of a model's state; raises `CheckpointError` where it is of another model."""
    own = trained_state(model)
    check_tensors(weights, own)
    if any(map(is_shared, own.values())):  # of which torch loads none that was stored whole
        copy_weights(weights, own)
    else:
        model.load_state_dict(weights, strict=False)


class Precision:
    """Number types of the computation on a device, by `optimization.precision`."""

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.has_bfloat16_weights = name == "bf16-true"
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "16-mixed")
        """Scales losses so that small gradients survive in float16; in other precisions it does nothing."""
        self._device = device
        self._mixed = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(name)

    def forward(self, model: Callable[[Any], Any], batch: Any) -> Any:
        """The model's output for a batch, which is moved to the device."""
        mixed = self._mixed is not None
        autocast = torch.autocast(self._device.type, self._mixed, cache_enabled=False) if mixed else nullcontext()
        with autocast:
            return model(self.prepare_batch(batch.to(self._device, non_blocking=True)))

    def load_scale(self, state: dict[str, Any]) -> None:
        """Take over a stored loss scale; raises `CheckpointError` where it is none."""
        try:
            self.scaler.load_state_dict({name: state[name] for name in self.scaler.state_dict()})
        except LookupError as error:
            raise CheckpointError("checkpoint: has no loss scale; resume with the run's own config") from error

    def prepare_batch(self, batch: Any) -> Any:
        """The batch, with images and sounds in the type of the weights."""
        if not self.has_bfloat16_weights:
            return batch
        image, audio = (None if tensor is None else tensor.bfloat16() for tensor in (batch.image, batch.audio))
        return replace(batch, image=image, audio=audio)


def check_precision(name: PrecisionName, device: torch.device) -> None:
    """Refuse float16 on a CPU (`ConfigError`): its products are slower there than float32, and overflow."""
    if name == "16-mixed" and device.type == "cpu":
        fault = "16-mixed is for a GPU, and this run is on a CPU, where float16 is slow and saves nothing"
        raise ConfigError(f"optimization.precision: {fault}; use bf16-mixed or 32-true")


class WeightAverage:
    """Exponential moving average of a module's trainable parameters (Polyak and Juditsky 1992, as used by the Tiny
    Recursive Model and most diffusion models): steadier than the last weights, at the cost of one copy of them.

    In the first steps the average forgets the random start faster: step t keeps min(decay, t / (t + 9)) of it. Buffers
    are not averaged. At 16 bits most steps would be rounded away, so the average is in float32 or finer.

    torch's `swa_utils` copies the whole module instead, frozen language models included, in the module's own type.

    Args:
        module: whose parameters are averaged; it starts as their copy.
        decay: share of the average that a step keeps.
        device: device of the average; None stands for the module's.
    """

    def __init__(self, module: nn.Module, decay: float, device: torch.device | None = None) -> None:
        self._decay = decay
        self._current = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {
            name: p.detach().to(device, torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._current.items()
        }
        self._aside: dict[str, Tensor] = {}
        """The module's own weights while the average is in their place."""

    def follow(self, module: nn.Module) -> None:
        """Keep this process's part of the average alone, for a module that has been shared out since."""
        self._current = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: shared_like(self._average[name], p) for name, p in self._current.items()}

    def update(self, step: int) -> None:
        """Average in the weights after optimizer step number `step`, from 1."""
        keep = min(self._decay, step / (step + 9))
        now = [part_of(p).to(self._average[name].dtype) for name, p in self._current.items()]
        torch._foreach_lerp_([part_of(average) for average in self._average.values()], now, 1 - keep)

    def swap(self) -> None:
        """Give the module the average in place of its weights; a second call puts those back."""
        if self._aside:
            weights, self._aside = self._aside, {}
        else:
            weights, self._aside = self._average, {name: p.detach().clone() for name, p in self._current.items()}
        copy_weights(weights, self._current)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a stored average; raises `CheckpointError` where it is of another model."""
        check_tensors(state, self._average)
        copy_weights(state, self._average)


def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Write into each tensor of `target` the one of its name in `source`, whatever their types and devices are."""
    with torch.no_grad():
        for name, tensor in target.items():
            part_of(tensor).copy_(part_of(shared_like(source[name], tensor)))


def cast_weights(module: nn.Module) -> None:
    """Cast weights and stored buffers to bfloat16, except for those that small steps are added to, which would be
    rounded away: logit scale and bias, the state of the memory, and what a decoder wants in full precision. Computed
    buffers stay as they are."""
    precise = {id(tensor) for tensor in _precise(module)}
    stored = module.state_dict().keys()
    buffers = [buffer for name, buffer in module.named_buffers() if name in stored]
    for tensor in (*module.parameters(), *buffers):
        if tensor.is_floating_point() and id(tensor) not in precise:
            tensor.data = tensor.data.bfloat16()


def _precise(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        match part:
            case Decoder():
                yield from part.full_precision_parameters()
            case ContrastiveLoss():
                yield from (*part.parameters(), *part.buffers())
            case MemoryTokens() if not part.is_static:
                yield part.state
