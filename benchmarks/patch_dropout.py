"""The training step of an image tower that leaves patches out, against one that reads them all.

    python benchmarks/patch_dropout.py [--output patch_dropout.json] [--quick]

A ViT-B/16 at 224 px from scratch, so 196 patches, in a batch of 8; float32, one thread. A step is forward, backward and
AdamW. `vision_encoder.patch_dropout` is 0, 0.5 and 0.75 in turns. At rate 0 the embedding must be the very one of
evaluation before anything is timed. Takes about six minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from timing import command, largest_difference, measure, report, store

from impresa.config.encoder import EncoderConfig
from impresa.encoders.vision import VisionEncoder

RATES = (0.0, 0.5, 0.75)
VIT_B = EncoderConfig(dim=768, depth=12, num_heads=12, patch_size=16, projection="none")
QUICK = EncoderConfig(dim=32, depth=2, num_heads=2, patch_size=16, embed_dim=8, projection="none")


def step_of(config: EncoderConfig, image: torch.Tensor) -> tuple[VisionEncoder, Callable[[], None]]:
    """A tower and its training step."""
    torch.manual_seed(0)
    tower = VisionEncoder(config, image.shape[-1])
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        tower(image).pooled.square().mean().backward()
        optimizer.step()

    return tower, step


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__).parse_args(arguments)
    base, side, batch = (QUICK, 128, 4) if args.quick else (VIT_B, 224, 8)
    image = torch.randn(batch, 3, side, side)
    works = {}
    for rate in RATES:
        tower, works[f"patch dropout {rate:g}"] = step_of(replace(base, patch_dropout=rate), image)
        if rate == 0:
            with torch.no_grad():
                largest_difference([tower(image).pooled], [tower.eval()(image).pooled], tolerance=1e-6)
            tower.train()
    costs = measure(works, repeats=1 if args.quick else 3)
    report("training step of the image tower", costs, [next(iter(works))])
    store(args.output, {"costs": {name: asdict(cost) for name, cost in costs.items()}})


if __name__ == "__main__":
    main()
