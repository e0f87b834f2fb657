"""The meter of a training run: samples, seconds, peak memory, and the work of a step."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from impresa.decoders.quantization import num_weights
from impresa.run_dir.cost import Amount, Cost, Count

_aten = torch.ops.aten


class Spent(BaseModel):
    """Costs of a run so far, over all its parts; in its checkpoints."""

    samples: Count = 0
    step_seconds: Amount = 0.0
    """Steps alone, without validations."""
    seconds: Amount = 0.0
    """Steps, validations and checkpoints."""
    peak_memory_bytes: Count = 0
    flops_per_sample: Amount | None = None


class CostMeter:
    """Adds up what a run costs, from the first step of this part on.

    Args:
        stored: `spent` of the run's earlier part, as a dictionary; empty for a new run.
        peak_flops: floating-point operations per second that each device reaches at most, if that is known.
    """

    def __init__(self, stored: Mapping[str, Any], peak_flops: float | None = None) -> None:
        self._before = Spent(**stored)
        self._samples, self._paused = 0, 0.0
        self._flops_per_sample: float | None = None
        self._useful_flops_per_sample, self._world_size = 0.0, 1
        self._peak_flops = peak_flops
        self._started: float | None = None

    @contextmanager
    def step(self, num_samples: int, world_size: int) -> Iterator[None]:
        """One optimizer step over so many samples of all processes; the work of the first one is counted."""
        if self._started is not None:
            self._samples += num_samples
            yield
            return
        self._started = time.monotonic()
        self._samples += num_samples
        with FlopCounter() as counter:
            yield
        self._world_size, share = world_size, world_size / max(num_samples, 1)
        self._flops_per_sample = counter.flops * share
        self._useful_flops_per_sample = counter.useful * share

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not that of steps."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def utilisation(self, samples_per_second: float) -> float | None:
        """Share of the devices' peak that so many samples of all processes a second make use of (MFU): work that is
        done twice to save memory counts once. None where the peak is not known."""
        if self._peak_flops is None:
            return None
        return utilisation(self._useful_flops_per_sample * samples_per_second, self._peak_flops, self._world_size)

    def spent(self) -> Spent:
        """The costs up to now."""
        before = self._before
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        return Spent(
            samples=before.samples + self._samples,
            step_seconds=before.step_seconds + max(seconds - self._paused, 0.0),
            seconds=before.seconds + seconds,
            peak_memory_bytes=max(before.peak_memory_bytes, peak_memory_bytes()),
            flops_per_sample=self._flops_per_sample or before.flops_per_sample,
        )


def utilisation(flops_per_second: float, peak_flops: float, num_devices: int) -> float:
    """Share of what so many devices reach at most."""
    return flops_per_second / (peak_flops * num_devices)


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas (`torch.utils.flop_counter`).

    torch's `FlopCounterMode` also takes composite operations apart, which changes the last bits of a step; a step that
    is counted must equal one that is not, or a resumed run would differ from a straight one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._repeated = 0

    @property
    def useful(self) -> int:
        """Without forward passes that the backward pass repeats, as activation checkpointing and chunks do."""
        return self.flops - self._repeated

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.overloadpacket) or _OF_FEW_BITS.get(str(func.overloadpacket))
        if formula is not None:
            work = formula(*args, **(kwargs or {}), out_val=out)
            self.flops += work
            self._repeated += work if _repeats_forward() else 0
        return out


def _repeats_forward() -> bool:
    """True in a forward pass, which has gradients, from inside of a backward pass, which has none of its own."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1


def cost_of(spent: Spent, model: nn.Module) -> Cost:
    """The costs of the training of a model, as its run stores them."""
    return Cost(
        parameters=num_weights(model),
        trainable_parameters=num_weights(model, trainable=True),
        flops_per_sample=spent.flops_per_sample,
        samples_per_second=spent.samples / spent.step_seconds if spent.step_seconds else 0.0,
        peak_memory_bytes=spent.peak_memory_bytes,
        training_seconds=spent.seconds,
    )


def uses_gpu() -> bool:
    """True once this process has computed on a GPU."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU if it uses one, else of the machine."""
    if uses_gpu():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _product_flops(inputs: Tensor, *args: Any, out_val: Any, **kwargs: Any) -> int:
    out = out_val if isinstance(out_val, Tensor) else out_val[0]
    return 2 * out.numel() * inputs.shape[-1]


_OF_FEW_BITS: dict[str, Any] = {
    f"bitsandbytes.{name}": _product_flops
    for name in ("gemm_4bit", "gemv_4bit", "int8_linear_matmul", "int8_scaled_mm", "int8_mixed_scaled_mm")
}
"""By the name of the operation, for its library need not be there."""
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # Attention on a CPU, which torch's counter leaves out.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""By operation."""
