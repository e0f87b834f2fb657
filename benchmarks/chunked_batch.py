"""A contrastive batch encoded in chunks (`optimization.chunk_size`), against the whole batch at once.

    python benchmarks/chunked_batch.py [--output chunked_batch.json] [--quick]

`impresa train model=base` at 64 px: a ViT-B/16 with 64 memory tokens and a text tower of 12 blocks, captions of 18
tokens, float32, one thread. A step is forward and backward; gradients are in the memory, weights are not. Loss and
gradients are compared before anything is timed.

Time is that of batches of 256, in turns. Memory is that of a batch of 1,024: in chunks of 64 it is measured; at once
the batch takes 33 GB, so that its memory is reckoned from batches of 128 and 256, for it grows by equal steps. Takes
about twenty minutes and 10 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from timing import command, largest_difference, measure, peak_memory, report, store
from torch import Tensor

from impresa.config import load_experiment
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel

WHOLE, CHUNKED = "the whole batch", "in chunks"
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5
IMAGE_SIZE, CAPTION = 64, 18


@dataclass(frozen=True)
class Sizes:
    """The model and the batches."""

    model: str = "base"
    depth: int = 12
    vocab: int = 8192
    chunk: int = 64
    timed: int = 256
    """Rows of the batches that are timed; half of them give the second point of the line of memory."""
    batch: int = 1024


QUICK = Sizes("tiny", depth=2, vocab=100, chunk=4, timed=16, batch=32)


def build(sizes: Sizes) -> AlignmentModel:
    depths = (f"model.depth={sizes.depth}", f"model.text.depth={sizes.depth}")
    config = load_experiment("default", [f"model={sizes.model}", f"model.image_size={IMAGE_SIZE}", *depths])
    torch.manual_seed(0)
    return build_alignment(config, sizes.vocab, end_id=sizes.vocab - 1).train()


def batch_of(rows: int, sizes: Sizes) -> Batch:
    ids = torch.randint(1, sizes.vocab - 1, (rows, CAPTION))
    ids[:, -1] = sizes.vocab - 1
    mask = torch.ones(rows, CAPTION, dtype=torch.bool)
    image = torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE)
    return Batch(ids=[str(row) for row in range(rows)], image=image, input_ids=ids, attention_mask=mask)


def step(model: AlignmentModel, batch: Batch, chunk_size: int | None) -> Callable[[], Tensor]:
    """A function that computes loss and gradients."""

    def work() -> Tensor:
        model.chunk_size = chunk_size
        loss = model(batch).loss
        loss.backward()
        return loss.detach()

    return work


def check(model: AlignmentModel, sizes: Sizes) -> dict[str, float]:
    """Largest relative differences of loss and gradients, the last chunk being smaller than the others."""
    chunk_size = min(sizes.chunk, 8)
    batch = batch_of(2 * chunk_size + 1, sizes)
    found = []
    for size in (None, chunk_size):
        loss = step(model, batch, size)()
        # No loss depends on the bias of keys: its gradient is rounding noise.
        grads = {name: p.grad for name, p in model.named_parameters() if not name.endswith("key_value.bias")}
        found.append((loss, [grad for grad in grads.values() if grad is not None]))
        model.zero_grad()
    (loss, gradients), (chunked_loss, chunked_gradients) = found
    return {
        "loss": largest_difference([chunked_loss], [loss], LOSS_TOLERANCE),
        "gradients": largest_difference(chunked_gradients, gradients, GRADIENT_TOLERANCE),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__).parse_args(arguments)
    sizes = QUICK if args.quick else Sizes()
    torch.set_num_threads(1)
    model = build(sizes)
    differences = check(model, sizes)
    timed, half, whole = (batch_of(rows, sizes) for rows in (sizes.timed, sizes.timed // 2, sizes.batch))
    works = {WHOLE: step(model, timed, None), CHUNKED: step(model, timed, sizes.chunk)}
    costs = measure(works, repeats=1, prepare=model.zero_grad)
    report(f"loss and gradients of a batch of {sizes.timed}, chunks of {sizes.chunk}", costs, [WHOLE])
    peaks = []
    for work in (step(model, half, None), step(model, whole, sizes.chunk)):
        model.zero_grad()
        peaks.append(peak_memory(work))
    of_half, chunked = peaks
    per_half = costs[WHOLE].peak_bytes - of_half
    reckoned = of_half + per_half * (2 * sizes.batch // sizes.timed - 1)
    memory, time = chunked / reckoned, costs[CHUNKED].seconds / costs[WHOLE].seconds
    print(
        f"batch {sizes.batch}: {chunked / 2**20:.0f} MiB in chunks, {memory:.3f} of the {reckoned / 2**20:.0f} MiB "
        f"that it takes at once (reckoned); {time:.2f} times the time (batch {sizes.timed})"
    )
    found = {name: asdict(cost) for name, cost in costs.items()}
    peak = {"in chunks": chunked, "at once, reckoned": reckoned, "half": of_half}
    figures = {"memory_share": memory, "time_ratio": time, "peak_bytes": peak}
    store(args.output, {**figures, "costs": found, "differences": differences, "sizes": asdict(sizes)})


if __name__ == "__main__":
    main()
