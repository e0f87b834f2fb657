"""The group of processes that train one model together, each on a device of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from impresa.config.experiment import TrainerConfig
from impresa.errors import ConfigError
from impresa.training.processes import Process, set_rendezvous, this_process

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train together, seen from one of them. Every method is a collective call: all must make it."""

    device: torch.device
    """The device of this process."""
    rank: int = 0
    world_size: int = 1
    shares_model: bool = False
    """Each has a part of the weights (`trainer.strategy: fsdp`) in place of all of them; true for several alone."""
    patience: timedelta = field(default=timedelta(minutes=30), compare=False)
    """Longest time that one waits for the others."""
    connections: distributed.ProcessGroup | None = None
    """The process group that they talk over; None: torch's default one."""

    @property
    def is_main(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with the weights of the first process, and gradients that are averaged over the processes."""
        if self.shares_model:
            from impresa.training.sharding import share_out  # takes a while, and most runs do not need it

            return share_out(model, self)
        model.to(self.device)
        if self.world_size == 1:
            return model
        index = self.device.index
        return nn.parallel.DistributedDataParallel(model, device_ids=None if index is None else [index])

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, in a new tensor on the device of `value`."""
        if self.world_size == 1:
            return value
        total = value.to(self.device, copy=True)
        distributed.all_reduce(total, group=self.connections)
        return total.to(value.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return value if self.world_size == 1 else self.sum(value) / self.world_size

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each of these tensors over the processes, all of which have the same ones; by one exchange."""
        if self.world_size == 1 or not values:
            return dict(values)
        flat = self.sum(torch.cat([value.flatten() for value in values.values()]))
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}

    def gather(self, items: Iterable[T]) -> list[T]:
        """The items of all processes, in the order of the ranks."""
        if self.world_size == 1:
            return list(items)
        everyone: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everyone, list(items), group=self.connections)
        return [item for own in everyone for item in own]

    def any(self, value: bool) -> bool:
        """True in all processes if it is true in one."""
        return value if self.world_size == 1 else bool(self.sum(torch.tensor(int(value))) > 0)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            distributed.barrier(group=self.connections)

    def by_first(self, work: Callable[[], T]) -> T:
        """The result of `work` in the first process, for all of them; an error there is raised in all of them."""
        if self.world_size == 1:
            return work()
        own: list[tuple[Any, Exception | None]] = []
        if self.is_main:
            try:
                own = [(work(), None)]
            except Exception as error:
                own = [(None, error)]
        told = self.gather(own)
        result, fault = (own or told)[0]
        if fault is not None:
            raise fault
        return result

    def aside(self) -> Group:
        """The same processes with connections of their own, for a thread beside the training.

        Processes match collectives by their order alone, and two threads have none: over the same connections, one
        would take the gradients of another for what that has to say of a checkpoint, or all would wait for ever.
        """
        if self.world_size == 1:
            return self
        connections = distributed.new_group(backend="gloo", timeout=self.patience)
        return replace(self, device=torch.device("cpu"), connections=connections)


def in_step(batches: Iterable[T], group: Group) -> Iterator[tuple[T, bool]]:
    """The batches of each process, and true; a process that has fewer than another repeats one, with false, because all
    must run the model together. One without any takes the first batch of all."""
    iterator, last = iter(batches), None
    while group.any((batch := next(iterator, None)) is not None):
        if group.any(batch is None and last is None):
            first, *_ = group.gather([] if batch is None else [batch])
            last = first if last is None else last
        last = last if batch is None else batch
        assert last is not None  # one process at least has had one
        yield last, batch is not None


def no_sync(model: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """A backward pass that leaves the gradients where they are: processes exchange them with a step's last batch."""
    if enabled and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def join_group(settings: TrainerConfig) -> Group:
    """The group of this process: one that exists already, or else that of the processes started with it."""
    kind, process, shares = device_type(settings), this_process(), settings.strategy == "fsdp"
    # Longer than a process may take for a step, so that the watchdog speaks first and says where each stands.
    patience = timedelta(minutes=max(settings.timeout_minutes + 5, 30))
    if distributed.is_available() and distributed.is_initialized():
        world_size = distributed.get_world_size()
        return Group(_device(kind, process), distributed.get_rank(), world_size, shares and world_size > 1, patience)
    if process.world_size == 1:
        return Group(_device(kind, process))
    _check_launch(settings, process)
    device = _device(kind, process)
    set_rendezvous(process)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, device_id=device if kind == "cuda" else None, timeout=patience)
    logger.info(f"{process.world_size} processes train together, on {kind} by {backend}")
    return Group(device, process.rank, process.world_size, shares, patience)


def device_type(settings: TrainerConfig) -> str:
    """`cuda`, `mps` or `cpu`, as `trainer.accelerator` means on this machine."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else int(torch.backends.mps.is_available())
    if settings.accelerator == "cpu" or (settings.accelerator == "auto" and num_gpus == 0):
        return "cpu"
    if num_gpus and (settings.devices == "auto" or settings.devices <= num_gpus):
        return "cuda" if torch.cuda.is_available() else "mps"
    reason = f"there are {num_gpus} GPUs" if num_gpus > 1 else "there is one GPU" if num_gpus else "torch finds no GPU"
    asked = f"accelerator {settings.accelerator}, devices {settings.devices}"
    raise ConfigError(f"trainer.accelerator: {asked} cannot be had here ({reason}); try cpu or auto")


def processes_to_start(settings: TrainerConfig) -> int:
    """Number of processes to start on this machine; 1 in a process that was started with others."""
    kind = device_type(settings)
    if this_process().world_size > 1 or (distributed.is_available() and distributed.is_initialized()):
        return 1
    if settings.num_nodes > 1:
        fix = f"`torchrun --nnodes {settings.num_nodes} ... -m impresa train`, or by SLURM's srun"
        fault = f"{settings.num_nodes} machines need a launcher on each"
        raise ConfigError(f"trainer.num_nodes: {fault}; start the command there by {fix}")
    if settings.devices != "auto":
        return settings.devices
    return torch.cuda.device_count() if kind == "cuda" else 1


def use_deterministic_algorithms(wanted: bool) -> None:
    """Allow only algorithms that give the same bits each time (`trainer.deterministic`), or all of them."""
    if torch.are_deterministic_algorithms_enabled() != wanted:  # a change imports torch's compiler, whose setting it is
        torch.use_deterministic_algorithms(wanted)
    if wanted:
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by cuBLAS


def leave_cores_to_workers(num_workers: int) -> None:
    """On a CPU, compute with the cores that the data workers leave free, unless OMP_NUM_THREADS says otherwise.

    More threads than cores wait for each other, which costs small models on small machines half of their speed.
    """
    if num_workers and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        free = max((os.cpu_count() or 1) - num_workers, 1)
        torch.set_num_threads(min(free, torch.get_num_threads()))


def _device(kind: str, process: Process) -> torch.device:
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", process.local_rank)
    torch.cuda.set_device(device)
    return device


def _check_launch(settings: TrainerConfig, process: Process) -> None:
    """Refuse a config that asks for another number of processes than were started; `auto` takes what there is."""
    nodes, started = process.world_size // process.local_world_size, process.local_world_size
    if settings.devices not in ("auto", started):
        fault = f"the config asks for {settings.devices} on each machine, and {started} processes were started there"
        raise ConfigError(f"trainer.devices: {fault}; set trainer.devices=auto to take what was started")
    if settings.num_nodes not in (1, nodes):
        fault = f"the config asks for {settings.num_nodes} machines, and processes were started on {nodes}"
        raise ConfigError(f"trainer.num_nodes: {fault}; leave it out to take what was started")
