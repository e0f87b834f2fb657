"""What the switches of alignment learn in equal steps: Perceiver, SigLIP and Matryoshka against their plain forms.

    python benchmarks/learning.py perceiver | frozen | siglip | matryoshka  [--seeds 3] [--steps 300] [--output FILE]

Small towers on the embedded scenes (48 pixels, batch 128, memory off), tested on scenes whose pairs of colour and shape
were never trained. Where learning rates are compared, each form has the one of the same small grid that is best on the
validation scenes. R@1 is the mean of both directions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from statistics import mean

import torch
from timing import command, store

from impresa.config import load_experiment
from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import Source, open_source
from impresa.evaluation.retrieval import retrieval_metrics
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import AlignmentModel
from impresa.training.loop import seed_step
from impresa.training.optimizer import build_optimizer
from impresa.training.parts import TrainingData, build_parts
from impresa.training.plan import make_plan
from impresa.training.schedule import make_schedule

PLAIN = ("vision_encoder.memory.enabled=false", "dataset.batch_size=128", "optimization.clip_grad=1.0")
ATTENTION = ("vision_encoder.use_attention_pooling=true",)
PERCEIVER = (
    "vision_encoder.use_perceiver=true",
    "vision_encoder.perceiver_num_latents=16",
    "vision_encoder.perceiver_num_layers=2",
    "vision_encoder.perceiver_num_heads=4",
)
GRID = (1.5e-3, 3e-3)
EIGHTH = 8
QUICK = (
    "dataset.shapes.num_train=256",
    "dataset.shapes.num_val=32",
    "dataset.shapes.num_test=32",
    "optimization.warmup_epochs=0",
)


def train(config: ExperimentConfig, steps: int, prepare: Callable[[AlignmentModel], None] | None = None) -> dict:
    """Train for so many steps and test; `prepare` may change the fresh model."""
    parts = build_parts(config, None)
    model = parts.model
    assert isinstance(model, AlignmentModel)
    if prepare is not None:
        prepare(model)
    batches, plan = forever(parts.data), make_plan(config.trainer, len(parts.data.train_loader()))
    schedule, optimizer = make_schedule(config.optimization, plan), build_optimizer(model, config.optimization)
    model.train()
    for step in range(steps):
        seed_step(config.seed, step, 0)
        loss = model(next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimization.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step + 1, group["peak_lr"])
        optimizer.step()
        optimizer.zero_grad()
        model.commit(step + 1)
    images, texts, captions = embed(model.eval(), parts.data, open_source(config.dataset, "test"))
    width = config.vision_encoder.embed_dim
    return {
        "loss": loss.item(),
        "r_at_1_validation": recall(*embed(model, parts.data, parts.data.val_source)),
        "r_at_1": recall(images, texts, captions),
        "r_at_1_eighth": recall(images[:, : width // EIGHTH], texts[:, : width // EIGHTH], captions),
        "model": model,
    }


def forever(data: TrainingData) -> Iterator[Batch]:
    loader = data.train_loader()
    while True:
        yield from loader


@torch.no_grad()
def embed(model: AlignmentModel, data: TrainingData, source: Source) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    collate = data._collate
    batches = [
        collate([source[i] for i in range(start, min(start + 128, len(source)))])
        for start in range(0, len(source), 128)
    ]
    images = torch.cat([model.embed_image(batch.image) for batch in batches])
    texts = torch.cat([model.embed_text(batch.input_ids, batch.attention_mask) for batch in batches])
    return images, texts, [caption for batch in batches for caption in batch.captions]


def recall(images: torch.Tensor, texts: torch.Tensor, captions: list[str]) -> float:
    found = retrieval_metrics(images, texts, torch.arange(len(images)), captions)
    return (found.image_to_text.recall_at[1] + found.text_to_image.recall_at[1]) / 2


def settings(steps: int, seed: int, *more: str) -> ExperimentConfig:
    return load_experiment("shapes", [*PLAIN, f"trainer.max_steps={steps}", f"seed={seed}", *more])


def compare(forms: dict[str, tuple[str, ...]], args: argparse.Namespace, rates: tuple[float, ...]) -> dict:
    """R@1 of each form by learning rate, over the seeds."""
    found: dict = {}
    for name, overrides in forms.items():
        found[name] = {}
        for rate in rates:
            runs = []
            for seed in range(args.seeds):
                config = settings(args.steps, seed, f"optimization.lr={rate}", *overrides, *args.more)
                result = train(config, args.steps, args.prepare)
                result.pop("model")
                runs.append(result)
                print(f"{name:12} lr {rate:g} seed {seed}: " + show(result), flush=True)
            found[name][f"{rate:g}"] = runs
    return found


def show(result: dict) -> str:
    return f"loss {result['loss']:.3f}, R@1 {result['r_at_1']:.1%}, at an eighth {result['r_at_1_eighth']:.1%}"


def best(runs_by_rate: dict, key: str = "r_at_1") -> float:
    """The mean over seeds on the test scenes, at the learning rate that is best on the validation scenes."""
    chosen = max(runs_by_rate.values(), key=lambda runs: mean(run["r_at_1_validation"] for run in runs))
    return mean(run[key] for run in chosen)


def frozen_backbone(args: argparse.Namespace) -> Callable[[AlignmentModel], None]:
    """Train a tower with mean pooling first; hand its backbone, frozen, and its text tower to the forms."""
    config = settings(2 * args.steps, 100, "vision_encoder.pooling=mean", "optimization.lr=2.5e-3", *args.more)
    trained = train(config, 2 * args.steps)
    print("backbone:    " + show(trained), flush=True)
    source = trained["model"]

    def prepare(model: AlignmentModel) -> None:
        model.vision_encoder.backbone.load_state_dict(source.vision_encoder.backbone.state_dict())
        model.vision_encoder.backbone.requires_grad_(False)
        model.text_encoder.load_state_dict(source.text_encoder.state_dict())

    return prepare


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("name", choices=("perceiver", "frozen", "siglip", "matryoshka"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(arguments)
    args.prepare, args.more = None, ()
    if args.quick:
        args.seeds, args.steps, args.more = 1, 2, QUICK
    match args.name:
        case "perceiver" | "frozen":
            if args.name == "frozen":
                args.prepare = frozen_backbone(args)
            found = compare({"attention": ATTENTION, "perceiver": PERCEIVER}, args, GRID)
            ratio = best(found["perceiver"]) / best(found["attention"])
            print(f"R@1 of the Perceiver is {ratio:.0%} of that of attention pooling")
        case "siglip":
            found = compare({"clip": (), "siglip": ("losses.type=siglip",)}, args, (2.5e-3,))
            ratio = best(found["siglip"]) / best(found["clip"])
            print(f"R@1 of siglip is {ratio:.0%} of that of clip")
        case "matryoshka":
            nested = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[64,32,16]")
            found = compare({"plain": (), "matryoshka": nested}, args, (2.5e-3,))
            ratio = best(found["matryoshka"], "r_at_1_eighth") / best(found["matryoshka"])
            cut = best(found["plain"], "r_at_1_eighth") / best(found["plain"])
            print(f"an eighth of the width keeps {ratio:.0%} of R@1, by plain cutting {cut:.0%}")
    store(args.output, {"steps": args.steps, "ratio": ratio, "runs": found})


if __name__ == "__main__":
    main()
