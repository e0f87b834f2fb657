"""Weights between a small CLIP pair and its fine-tuning on new concepts: what is kept of the old, what is gained.

    python benchmarks/wise_ft.py [--output wise_ft.json] [--quick]

A CLIP pair of 300,000 parameters is made on the spot and trained, by transformers' own loss, on drawings of 24 concepts
(six shapes in four colours). `impresa train clip` fine-tunes the text tower and the last block of the image tower on 16
concepts of four other shapes, of which the pair has seen nothing, and `impresa interpolate` measures the line between
the two: classification of the new concepts on validation data, which chooses, and of the old ones. The figure is the
best share of the gain among the alphas that keep 95% of the old accuracy, by seed. Two minutes a seed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from math import cos, pi, sin
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from timing import command, store

from impresa.cli.main import main as impresa

COLOURS = {"red": (205, 45, 40), "green": (40, 160, 60), "blue": (45, 80, 205), "yellow": (230, 200, 40)}
OLD = ("circle", "square", "triangle", "ring", "cross", "bar")
NEW = ("star", "diamond", "arrow", "moon")
SIZE_PX = 32
KEEP, SHARE_OF_GAIN = 0.95, 0.9


def draw(shape: str, colour: str, generator: np.random.Generator) -> Image.Image:
    """One shape on a ground of its own, at a random place and size, with noise."""
    scale = 4
    ground = tuple(int(value) for value in generator.integers(150, 256, 3))
    image = Image.new("RGB", (SIZE_PX * scale, SIZE_PX * scale), ground)
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    r = generator.uniform(7, 12) * scale
    x, y = generator.uniform(r, SIZE_PX * scale - r, 2)

    def polygon(*radii: float, turn: float = -pi / 2) -> None:
        step = 2 * pi / len(radii)
        pen.polygon(
            [(x + r * f * cos(turn + step * i), y + r * f * sin(turn + step * i)) for i, f in enumerate(radii)], fill
        )

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return x + r * left, y + r * top, x + r * right, y + r * bottom

    match shape:
        case "circle":
            pen.ellipse(box(-1, -1, 1, 1), fill)
        case "square":
            pen.rectangle(box(-0.8, -0.8, 0.8, 0.8), fill)
        case "triangle":
            polygon(1, 1, 1)
        case "ring":
            pen.ellipse(box(-1, -1, 1, 1), None, fill, width=int(0.4 * r))
        case "cross":
            pen.rectangle(box(-1, -0.3, 1, 0.3), fill)
            pen.rectangle(box(-0.3, -1, 0.3, 1), fill)
        case "bar":
            pen.rectangle(box(-1, -0.35, 1, 0.35), fill)
        case "star":
            polygon(*(1, 0.4) * 5)
        case "diamond":
            polygon(1, 0.55, 1, 0.55)
        case "arrow":
            pen.polygon([(x + r, y), (x, y - 0.9 * r), (x, y + 0.9 * r)], fill)
            pen.rectangle(box(-1, -0.3, 0.1, 0.3), fill)
        case "moon":
            pen.ellipse(box(-1, -1, 1, 1), fill)
            pen.ellipse(box(-0.4, -1.05, 1.4, 1.05), ground)
    small = np.asarray(image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX), dtype=np.float64)
    return Image.fromarray(np.uint8(np.clip(small + generator.normal(0, 8, small.shape), 0, 255)))


def concepts(shapes: Sequence[str]) -> list[tuple[str, str]]:
    return list(product(shapes, COLOURS))


def write(folder: Path, shapes: Sequence[str], each: int, seed: int) -> Path:
    """A folder with `each` drawings of each concept, their captions and labels."""
    folder.mkdir(parents=True)
    generator, rows = np.random.default_rng(seed), []
    for number, (shape, colour) in enumerate(concepts(shapes) * each):
        draw(shape, colour, generator).save(folder / f"{number}.png")
        words = f"{colour} {shape}"
        rows.append({"image": f"{number}.png", "caption": f"a photo of a {words}.", "label": words})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<end>", "<start>", "[UNK]", "a", "photo", "of", ".", *COLOURS, *OLD, *NEW]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 1), ("<end>", 0)]
    model.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="[UNK]",
        model_max_length=12,
    )  # fmt: skip


def pretrain(folder: Path, steps: int, seed: int) -> Path:
    """A CLIP pair trained on the old concepts: each batch has one drawing of each."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    words = tokenizer()
    block = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4}
    text = {**block, "num_hidden_layers": 2, "vocab_size": len(words), "max_position_embeddings": 12}
    text |= {"bos_token_id": 1, "eos_token_id": 0}
    vision = {**block, "num_hidden_layers": 4, "image_size": SIZE_PX, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    side = {"height": SIZE_PX, "width": SIZE_PX}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size=side)
    known = concepts(OLD)
    captions = words([f"a photo of a {colour} {shape}." for shape, colour in known], return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        pictures = [draw(shape, colour, generator) for shape, colour in known]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        loss = model(input_ids=captions["input_ids"], pixel_values=pixels, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for part in (model, words, processor):
        part.save_pretrained(folder)
    return folder


def overrides(pair: Path, data: Path, seed: int, epochs: int) -> Iterator[str]:
    """The keys of the fine-tuning, beside those of the profile `clip`."""
    for part in ("vision_encoder", "text_encoder"):
        yield from (f"{part}.backbone={pair}", f"{part}.embed_dim=64")
    yield from (f"dataset.{split}_path={data / split}" for split in ("train", "val", "test"))
    yield from (f"dataset.image_size={SIZE_PX}", "dataset.batch_size=32", "dataset.num_workers=0", f"seed={seed}")
    yield from ("vision_encoder.freeze=true", "vision_encoder.unfreeze_last=1", "dataset.augmentation=none")
    yield from ("optimization.lr_pretrained=3e-4", f"trainer.epochs={epochs}", "losses.duplicates=positive")
    yield from ("trainer.accelerator=cpu", "trainer.logging.tensorboard=false")


def curve(folder: Path, seed: int, *, steps: int, each: int, epochs: int) -> dict[str, object]:
    """The curve of one seed, as `impresa interpolate` stores it, and the best share of the gain that keeps the old."""
    pair = pretrain(folder / "pair", steps, seed)
    for place, (split, number) in enumerate((("train", 2 * each), ("val", each), ("test", each))):
        write(folder / "new" / split, NEW, number, 100 * seed + place)
    old, run, out = write(folder / "old", OLD, each, 100 * seed + 10), folder / "run", folder / "between"
    train = ["train", "clip", "--output-dir", str(run), *overrides(pair, folder / "new", seed, epochs)]
    mix = ["interpolate", str(pair), str(run), "--alpha", "0,0.1,...,1", "--old-data", str(old), "--out", str(out)]
    for words in (train, [*mix, "--keep", str(KEEP)]):
        if impresa(words):
            raise SystemExit(f"impresa {words[0]} failed")
    found = json.loads((out / "interpolation.json").read_text())
    points, chosen = found["points"], found["chosen"]["alpha"]
    gain = points[-1]["new"] - points[0]["new"]
    best = max(point["new"] for point in points if point["old"] >= KEEP * points[0]["old"])
    return {
        "seed": seed,
        "points": points,
        "chosen": chosen,
        "tested": found["tested"],
        "share_of_gain": (best - points[0]["new"]) / gain if gain > 0 else 0.0,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = command(__doc__).parse_args(arguments)
    sizes = {"steps": 4, "each": 2, "epochs": 1} if args.quick else {"steps": 1500, "each": 25, "epochs": 12}
    curves = []
    for seed in range(1 if args.quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            curves.append(curve(Path(folder), seed, **sizes))
        store(args.output, {"keep": KEEP, **sizes, "curves": curves})
    shares = [float(str(found["share_of_gain"])) for found in curves]
    print(f"share of the gain that keeps {KEEP:.0%} of the old: {', '.join(f'{share:.0%}' for share in shares)}")
    if not args.quick and min(shares) < SHARE_OF_GAIN:
        print(f"below {SHARE_OF_GAIN:.0%} in a seed")


if __name__ == "__main__":
    main()
