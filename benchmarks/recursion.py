"""What latent recursion brings to answers: TRM beside the plain decoder of equal parameters, at equal steps and time.

    python benchmarks/recursion.py shapes_vqa_trm | digits_vqa  [--seeds 3] [--output FILE] [--quick]

Trains, for each seed, the encoder of the profile, and behind it the recursive decoder; the same on kept features
(`dataset.cache_features`) for 1.3 times the epochs, which takes about as long, where the images are not augmented; the
plain one in as many epochs; and the plain one in as many epochs as take the processor as long as the recursive one.
Every run is one `impresa train`; finished ones stay in `runs/recursion/` and are not trained again. Three seeds of
`shapes_vqa_trm` take more than an hour on two cores.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import command, store

from impresa.config import load_experiment

ENCODERS = {"shapes_vqa_trm": "shapes", "digits_vqa": "digits"}
RECURSIVE, KEPT, EQUAL_STEPS, EQUAL_TIME = "TRM", "TRM, kept features", "plain, equal steps", "plain, equal time"
MORE_ON_KEPT = 1.3
"""Times the epochs on kept features, whose steps spare the encoder."""
PLAIN = "decoder.recursion.recursive=false"
QUICK = (
    "trainer.max_steps=2",
    "dataset.shapes.num_train=256",
    "dataset.shapes.num_test=16",
    "dataset.shapes.num_val=16",
)


def train(run: Path, profile: str, *overrides: str) -> float:
    """CPU seconds of `impresa train`, with its evaluation; those of the first time if the run is there."""
    record = run.with_suffix(".json")
    if not record.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call = [sys.executable, "-m", "impresa.cli.main", "train", profile, "--output-dir", str(run), *overrides]
        subprocess.run(call, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record.write_text(json.dumps({"cpu_seconds": seconds}) + "\n")
    return float(json.loads(record.read_text())["cpu_seconds"])


def answers(run: Path, split: str) -> dict[str, Any]:
    """Exact match of a run on a split of its data: in all, by type of question, and beside it."""
    if split == "test":
        found = json.loads((run / "evaluation.json").read_text())["answers"]
    else:
        call = [sys.executable, "-m", "impresa.cli.main", "eval", str(run), "--split", split, "--json"]
        found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)["answers"]
    return {
        "questions": found["model"]["num_questions"],
        "exact_match": found["model"]["exact_match"],
        "other_images": found["shuffled"]["exact_match"],
        "most_frequent": found["blind"]["exact_match"],
        "kinds": {kind: scores["model"]["exact_match"] for kind, scores in found["kinds"].items()},
    }


def compare(profile: str, work: Path, seeds: Sequence[int], extra: Sequence[str]) -> dict[str, Any]:
    """Train and test all forms; the longest comes last, for its epochs follow from the times of the others."""
    config = load_experiment(profile, [])
    epochs, keeps = config.trainer.epochs, config.dataset.augmentation == "none"
    counts = {RECURSIVE: epochs} | ({KEPT: round(MORE_ON_KEPT * epochs)} if keeps else {}) | {EQUAL_STEPS: epochs}
    seconds: dict[str, list[float]] = {form: [] for form in (*counts, EQUAL_TIME)}

    def one(form: str, seed: int, *overrides: str) -> None:
        given = (f"seed={seed}", f"vision_encoder.checkpoint={work / f'encoder-{seed}'}", *overrides, *extra)
        seconds[form].append(train(folder(work, form, seed), profile, *given))

    for seed in seeds:
        train(work / f"encoder-{seed}", ENCODERS[profile], f"seed={seed}", *extra)
        one(RECURSIVE, seed)
        if keeps:
            one(KEPT, seed, f"dataset.cache_features={work / 'features'}", f"trainer.epochs={counts[KEPT]}")
        one(EQUAL_STEPS, seed, PLAIN)
    longer = round(epochs * mean(seconds[RECURSIVE]) / mean(seconds[EQUAL_STEPS]))
    for seed in seeds:
        one(EQUAL_TIME, seed, PLAIN, f"trainer.epochs={longer}")
    runs = {
        form: [
            {"seed": seed, "cpu_seconds": time, "test": answers(folder(work, form, seed), "test")}
            for seed, time in zip(seeds, times, strict=True)
        ]
        for form, times in seconds.items()
    }
    for run in runs[RECURSIVE]:
        run["val"] = answers(folder(work, RECURSIVE, run["seed"]), "val")
    return {"profile": profile, "epochs": {**counts, EQUAL_TIME: longer}, "runs": runs}


def folder(work: Path, form: str, seed: int) -> Path:
    return work / f"{form.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: a title, then for each form the mean over seeds, in all with the spread, and by type of question."""
    kinds = sorted(figures["runs"][RECURSIVE][0]["test"]["kinds"])
    found = [("exact match", "epochs", "CPU time", "all (lowest to highest)", *kinds)]
    for form, runs in figures["runs"].items():
        tests = [run["test"] for run in runs]
        scores = [test["exact_match"] for test in tests]
        minutes = mean(run["cpu_seconds"] for run in runs) / 60
        spread = f"{mean(scores):.1%} ({min(scores):.1%} to {max(scores):.1%})"
        by_kind = (f"{mean(test['kinds'][kind] for test in tests):.1%}" for kind in kinds)
        found.append((form, str(figures["epochs"][form]), f"{minutes:.1f} min", spread, *by_kind))
    tests = [run["test"] for run in figures["runs"][RECURSIVE]]
    for title, key in (("TRM, other images", "other_images"), ("the most frequent answers", "most_frequent")):
        found.append((title, "", "", f"{mean(test[key] for test in tests):.1%}", *("" for _ in kinds)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("profile", choices=tuple(ENCODERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/recursion"), help="folder for the runs")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    work = given.work / given.profile
    work.mkdir(exist_ok=True)
    figures = compare(given.profile, work, range(1 if given.quick else given.seeds), QUICK if given.quick else ())
    title, *found = rows(figures)
    table = Table(*title, title=given.profile)
    for row in found:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    store(given.output, figures)


if __name__ == "__main__":
    main()
