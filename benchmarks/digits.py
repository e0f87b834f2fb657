"""What captions alone teach of handwritten digits, beside classifiers that are given pixels and labels.

    python examples/digits.py
    python benchmarks/digits.py  [--seeds 3] [--output FILE] [--quick]

Trains the profile `digits` for each seed and names the held-out digits of other writers by comparing them with text
prompts. Every run is one `impresa train`; finished ones stay in `runs/digits_figures/` and are not trained again. Three
seeds take ten minutes on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from recursion import train
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from timing import command, store

TRAIN, TEST = slice(0, 1257), slice(1437, 1797)
"""Rows of the file, as `examples/digits.py` splits it."""
QUICK = ("trainer.max_steps=2", "trainer.epochs=1")


def zero_shot_accuracy(run: Path) -> float:
    """Of a run's own evaluation, on the test digits."""
    found = json.loads((run / "evaluation.json").read_text())["zero_shot"]
    return float(found["accuracy"])


def classifiers() -> dict[str, float]:
    """Accuracy on the test digits of classifiers that see pixels, from 0 to 1, and labels of the training digits."""
    ink, labels = load_digits(return_X_y=True)
    pixels = ink / 16
    kinds = {"RBF SVM (C = 10)": SVC(C=10), "logistic regression": LogisticRegression(max_iter=5000)}
    for kind in kinds.values():
        kind.fit(pixels[TRAIN], labels[TRAIN])
    return {name: float(kind.score(pixels[TEST], labels[TEST])) for name, kind in kinds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits_figures"), help="folder of the runs")
    args = parser.parse_args(arguments)
    seeds, more = (1, QUICK) if args.quick else (args.seeds, ())
    args.runs.mkdir(parents=True, exist_ok=True)
    runs = [args.runs / f"seed{seed}" for seed in range(seeds)]
    for seed, run in enumerate(runs):
        train(run, "digits", f"seed={seed}", *more)
    found, others = [zero_shot_accuracy(run) for run in runs], classifiers()
    print(f"captions only: {', '.join(f'{value:.1%}' for value in found)}; mean {mean(found):.1%}")
    for name, value in others.items():
        print(f"{name} on pixels and labels: {value:.1%}")
    store(args.output, {"zero_shot": found, "mean": mean(found), "classifiers": others})


if __name__ == "__main__":
    main()
