"""An epoch on kept features of a frozen image tower, against the first epoch, which computes them.

    python benchmarks/cached_features.py [--output cached_features.json] [--quick]

A frozen ViT-B/32 of CLIP's (random weights, 224 pixels) with a projection and a head that are trained, beside a text
transformer of 4 blocks of width 256; photographs of 640 x 480 pixels in JPEG files. The first epoch begins with what
`dataset.cache_features` does before the first step, so it decodes and encodes each image once; the second one reads
features. Beside them an epoch without kept features, and the start of another run, which only looks whether the images
are the same. Before anything is timed, a step on features must have the gradients of a step on images. Each round has a
new folder; one thread, batches of 32, float32, no workers. Takes about four minutes.
"""

from __future__ import annotations

import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from timing import command, largest_difference, store

from impresa.config import ExperimentConfig
from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import TrainerConfig
from impresa.config.optimization import OptimizationConfig
from impresa.config.runs import prepare
from impresa.training.distributed import Group
from impresa.training.features import FeatureKeeper
from impresa.training.loop import Training, steps_of, train_step
from impresa.training.parts import Parts, build_parts
from impresa.training.processes import GracefulStop
from impresa.training.run import set_up

FULL, QUICK = (128, 32, 3), (12, 4, 1)
"""Images, samples in a batch, rounds."""
VALIDATED = 2
"""Images to validate, which are encoded before the first step too."""
TOLERANCE = 5e-3
"""Of gradients, as a part of their norm; half precision rounds each feature by up to one 2048th of it."""
B32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def write_data(folder: Path, count: int, seed: int) -> None:
    """Photographs as smooth noise, each with a caption."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
        words = " ".join(f"word{word}" for word in generator.integers(0, 500, 12))
        lines.append(f'{{"image": "{number}.jpg", "caption": "{words}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))


def write_tower(folder: Path, sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=32, **sizes)).save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)


def config_of(folder: Path, batch_size: int, text: EncoderConfig) -> ExperimentConfig:
    return ExperimentConfig(
        dataset=DatasetConfig(
            train_path=str(folder / "train"),
            val_path=str(folder / "val"),
            batch_size=batch_size,
            augmentation="none",
            num_workers=0,
        ),
        vision_encoder=EncoderConfig(backbone=str(folder / "tower"), freeze=True, embed_dim=256),
        text_encoder=text,
        optimization=OptimizationConfig(warmup_epochs=0),
        trainer=TrainerConfig(accelerator="cpu"),
    )


def training_of(config: ExperimentConfig) -> tuple[Parts, Training]:
    parts = build_parts(config, None)
    return parts, set_up(config, parts, Group(torch.device("cpu")))


def keep(config: ExperimentConfig, parts: Parts, training: Training) -> None:
    """What a run does before its first step."""
    keeper = FeatureKeeper(config, parts.preprocessing.image, training.state, training.group, GracefulStop())
    keeper.keep(parts.data.kept_sources)


def epoch(training: Training) -> None:
    for batches in islice(steps_of(training.train_loader, 1), training.plan.steps_per_epoch):
        train_step(training, batches)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def gradients(config: ExperimentConfig) -> list[torch.Tensor]:
    """Of the first batch."""
    parts, training = training_of(config)
    if parts.data.kept_sources:
        keep(config, parts, training)
    model, (batches,) = training.state.model, islice(steps_of(training.train_loader, 1), 1)
    training.state.precision.forward(model, batches[0]).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def one_round(config: ExperimentConfig, folder: Path) -> dict[str, float]:
    plain = replace(config, dataset=replace(config.dataset, cache_features=None))
    kept = replace(config, dataset=replace(config.dataset, cache_features=str(folder)))
    parts, training = training_of(kept)
    found = {"first": seconds(keep, kept, parts, training) + seconds(epoch, training)}
    found["second"] = seconds(epoch, training)
    found["start of another run"] = seconds(keep, kept, *training_of(kept))
    found["without"] = seconds(epoch, training_of(plain)[1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__ or "").parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("impresa").setLevel(logging.WARNING)
    count, batch_size, rounds = QUICK if args.quick else FULL
    dim, depth = (32, 1) if args.quick else (256, 4)
    text = EncoderConfig(backbone="transformer", dim=dim, depth=depth, num_heads=4, embed_dim=256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "train", count, seed=0)
        write_data(folder / "val", VALIDATED, seed=1)
        write_tower(folder / "tower", SMALL if args.quick else B32)
        config = prepare(config_of(folder, batch_size, text))
        checked = replace(config, dataset=replace(config.dataset, cache_features=str(folder / "checked")))
        difference = largest_difference(gradients(checked), gradients(config), TOLERANCE)
        bytes_kept = sum(file.stat().st_size for file in (folder / "checked").glob("*/0.*"))
        runs = [one_round(config, folder / f"kept {number}") for number in range(rounds)]
    speeds = {part: count / statistics.median(run[part] for run in runs) for part in runs[0]}
    ratio = speeds["second"] / speeds["first"]
    for part, speed in speeds.items():
        print(f"{part}: {speed:.1f} samples a second of the processor")
    print(
        f"second epoch against first: {ratio:.1f} times; gradients differ by {difference:.1e}; {bytes_kept} bytes kept"
    )
    figures = {"ratio": ratio, "samples_per_second": speeds, "rounds": runs}
    store(
        args.output,
        {"images": count, **figures, "difference": difference, "bytes_per_image": bytes_kept // (count + VALIDATED)},
    )


if __name__ == "__main__":
    main()
