"""Memory of a process that shares the model with another (`trainer.strategy: fsdp`), against one that has it whole.

    python benchmarks/fsdp.py [--output fsdp.json] [--quick]

Two processes on a CPU, joined by gloo, make one step of AdamW with `impresa train model=large` at 28 px, a pair of
picture and caption each. Then the bytes of the tensors that a process has are counted: weights, gradients, moments.
Losses are compared. Takes a few minutes and 16 GB.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from chunked_batch import CAPTION
from timing import command, store
from torch import Tensor, distributed

from impresa.config import load_experiment
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.training.distributed import join_group
from impresa.training.loop import seed_step
from impresa.training.shared import part_of
from impresa.training.state import TrainState

PROCESSES = 2
TOLERANCE = 1e-5
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Sizes:
    """The model."""

    model: str = "large"
    depth: int = 24
    vocab: int = 32_000
    image: int = 28


QUICK = Sizes("tiny", depth=2, vocab=300, image=32)


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds after its step."""

    loss: float
    weights: int
    """Bytes, as of the others."""
    gradients: int
    optimizer: int

    @property
    def num_bytes(self) -> int:
        return self.weights + self.gradients + self.optimizer


def batch_of(rank: int, sizes: Sizes) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(1, sizes.vocab - 1, (2, CAPTION), generator=generator)
    ids[:, -1] = sizes.vocab - 1
    image = torch.randn(2, 3, sizes.image, sizes.image, generator=generator)
    mask = torch.ones(2, CAPTION, dtype=torch.bool)
    return Batch(ids=["one", "two"], image=image, input_ids=ids, attention_mask=mask)


def step(rank: int, strategy: Strategy, sizes: Sizes, folder: Path) -> None:
    """Join the other process, make a step, and write what this one has then."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    names = (f"model={sizes.model}", f"model.image_size={sizes.image}")
    depths = (f"model.depth={sizes.depth}", f"model.text.depth={sizes.depth}")
    config = load_experiment("default", [*names, *depths])
    trainer = replace(config.trainer, strategy=strategy, accelerator="cpu")  # it is read in another dialect
    torch.manual_seed(0)
    model = build_alignment(config, sizes.vocab, end_id=sizes.vocab - 1).train()
    state = TrainState(model, config.optimization, join_group(trainer))
    seed_step(0, 0, rank)
    loss = state.wrapped(batch_of(rank, sizes)).loss
    loss.backward()
    state.optimizer.step()
    parameters = list(state.model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    moments = [value for entries in state.optimizer.state.values() for value in entries.values()]
    held = Held(loss.item(), num_bytes(parameters), num_bytes(gradients), num_bytes(moments))
    torch.save(asdict(held), folder / f"{rank}.pt")
    distributed.barrier()


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in map(part_of, tensors))


def held_with(strategy: Strategy, sizes: Sizes) -> list[Held]:
    """Bytes that each process holds."""
    context: Any = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [context.Process(target=step, args=(rank, strategy, sizes, folder)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [Held(**torch.load(folder / f"{rank}.pt")) for rank in range(PROCESSES)]


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__).parse_args(arguments)
    sizes = QUICK if args.quick else Sizes()
    whole, shared = (held_with(strategy, sizes) for strategy in ("ddp", "fsdp"))
    for one, other in zip(whole, shared, strict=True):
        assert abs(one.loss - other.loss) <= TOLERANCE * one.loss, (one, other)
    most = {name: max(held.num_bytes for held in found) for name, found in (("ddp", whole), ("fsdp", shared))}
    share = most["fsdp"] / most["ddp"]
    told = ", ".join(f"{size / 2**20:.0f} MiB with {name}" for name, size in most.items())
    print(f"weights, gradients and moments of a process: {told}, {share:.3f} of it")
    figures = {"memory_share": share, "ratio": 1 / share, "bytes": most, "sizes": asdict(sizes)}
    store(args.output, {**figures, "ddp": [asdict(held) for held in whole], "fsdp": [asdict(held) for held in shared]})


if __name__ == "__main__":
    main()
