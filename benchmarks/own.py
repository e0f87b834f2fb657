"""What `impresa train own` learns of 300 photos with captions, beside a colour histogram and a ridge regression.

    python benchmarks/own.py  [--seeds 3] [--output FILE] [--quick]

Draws 300 photos (`photos.py`), of which the profile holds out a fifth to choose the best step, and 100 others that no
training sees. Trains the profile on the 300, from scratch and otherwise as it is, for each seed, and compares the mean
reciprocal rank on the 100, both directions, with that of the baselines. Finished runs stay in `runs/own/` and are not
trained again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from photos import write_photos
from recursion import train
from timing import command, store

NUM_PHOTOS, NUM_TEST = 300, 100
QUICK = ("trainer.max_steps=2", "dataset.image_size=32", "vision_encoder.depth=1", "dataset.num_workers=0")


def figures_of(run: Path, cpu_seconds: float) -> dict[str, Any]:
    """Mean reciprocal rank of the model and the baselines on the photos of no training."""
    margins = json.loads((run / "evaluation.json").read_text())["margins"]
    model = next(margin["model"] for margin in margins.values())
    return {"cpu_seconds": cpu_seconds, "mrr": model, **{name: found["baseline"] for name, found in margins.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/own"), help="folder for photos and runs")
    args = parser.parse_args(arguments)
    numbers, seeds, more = (NUM_PHOTOS, NUM_TEST), range(args.seeds), ()
    if args.quick:
        numbers, seeds, more = (20, 8), range(1), QUICK
    photos, test = (args.work / name for name in ("photos", "test"))
    for folder, number, seed in ((photos, numbers[0], 0), (test, numbers[1], 200)):
        if not (folder / "captions.csv").exists():
            write_photos(folder, number, seed)
    given = (f"dataset.train_path={photos}", f"dataset.test_path={test}", "vision_encoder.backbone=convnet")
    found = []
    for seed in seeds:
        run = args.work / f"seed{seed}"
        found.append(figures_of(run, train(run, "own", f"seed={seed}", *given, *more)))
    for name in sorted(found[0]):
        values = [run[name] for run in found]
        print(f"{name}: {', '.join(f'{value:.3f}' for value in values)}; mean {mean(values):.3f}")
    store(args.output, {"photos": numbers[0], "test": numbers[1], "runs": found})


if __name__ == "__main__":
    main()
