"""Do the same seeds still give the same weights? Digests of short runs, held against those that are stored.

Ten runs of a few steps each cover what a change of the training could move: memory, Matryoshka with one drawn
dimension, SigLIP, sound, a Tiny Recursive Model, Qwen with LoRA, four bits and recursion, accumulation, averaged
weights, two processes with gathered negatives, and a run that is interrupted and resumed. Each runs through the command
line, on one thread, so that nothing but the code and the versions of the libraries decides the bits.

    python benchmarks/digests.py --write            # before a change
    python benchmarks/digests.py                    # after it: lists what differs, and by how much

A digest depends on the processor and on the version of torch: compare on one machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STORED = Path(__file__).parent / "results" / "digests.json"
SHAPES = (
    *("dataset.image_size=32", "dataset.batch_size=16", "dataset.num_workers=0"),
    *("dataset.shapes.num_train=200", "dataset.shapes.num_val=48", "dataset.shapes.num_test=32"),
    *("vision_encoder.dim=32", "vision_encoder.depth=2", "vision_encoder.embed_dim=32"),
    *("vision_encoder.memory.dim=32", "vision_encoder.memory.num_memory_tokens=4"),
    *("text_encoder.dim=32", "text_encoder.embed_dim=32", "trainer.logging.eval_interval=8"),
    *("optimization.lr=2.5e-3",),
    *("trainer.logging.save_interval=4", "trainer.logging.log_interval=1", "trainer.epochs=2"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.logging.tensorboard=false"),
)
"""`shapes` made small: 13 steps an epoch, with drop-out and augmentation, so that their seeds count."""
NOISE = ("vision_encoder.drop_rate=0.1", "text_encoder.drop_rate=0.1", "dataset.augmentation=clip")
WITHOUT_MEMORY = tuple(o for o in SHAPES if "memory" not in o)
ANSWERS = (
    *("dataset.image_size=32", "dataset.batch_size=8", "dataset.num_workers=0"),
    *("dataset.shapes.num_train=64", "dataset.shapes.num_val=16", "dataset.shapes.num_test=8"),
    *("decoder.prefix_layer=last", "trainer.logging.log_interval=1", "trainer.epochs=2"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.logging.tensorboard=false"),
)
SOUND = ("audio_encoder.dim=32", "audio_encoder.embed_dim=32", "audio_encoder.depth=1")
QWEN = ("decoder.model=models/qwen", "decoder.use_lora=true", "decoder.load_in_4bit=true")

RECIPES: dict[str, tuple[str, ...]] = {
    "memory": ("shapes", *SHAPES, *NOISE),
    "mrl": (
        "shapes",
        *SHAPES,
        "vision_encoder.use_mrl=true",
        "vision_encoder.mrl_dimensions=[16,8]",
        "losses.sample_single_mrl_dim=true",
    ),
    "siglip": ("shapes", *SHAPES, *NOISE, "losses.type=siglip"),
    "audio": ("shapes_audio", *WITHOUT_MEMORY, *SOUND),
    "accumulation": ("shapes", *SHAPES, *NOISE, "trainer.accumulate_grad_batches=3"),
    "ema": ("shapes", *SHAPES, *NOISE, "optimization.ema_decay=0.9"),
    "two_processes": ("shapes", *SHAPES, *NOISE, "losses.gather_distributed=true", "trainer.devices=2"),
    "resumed": ("shapes", *SHAPES, *NOISE, "optimization.ema_decay=0.9", "trainer.epochs=6"),
    "trm": ("shapes_vqa_trm", *ANSWERS, "vision_encoder.checkpoint=memory", "decoder.recursion.num_cycles=2"),
    "qwen": ("shapes_vqa_qwen", *ANSWERS, "vision_encoder.checkpoint=memory", *QWEN, "decoder.use_trm_recursion=true"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the digests instead of comparing")
    parser.add_argument("--folder", type=Path, default=Path("runs/digests"), help="where the runs go")
    parser.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES), help="some of the recipes")
    parser.add_argument("--against", type=Path, help="folder of earlier runs: say how far weights and losses lie apart")
    args = parser.parse_args()
    found = {}
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = digest(train(name, args.folder))
    if args.write:
        before = json.loads(STORED.read_text()) if STORED.exists() else {}
        STORED.write_text(json.dumps({**before, **found}, indent=2) + "\n")
        return 0
    stored = json.loads(STORED.read_text())
    differing = [name for name in found if found[name] != stored.get(name)]
    for name, digests in found.items():
        parts = [part for part, value in digests.items() if stored.get(name, {}).get(part) != value]
        print(f"{name:<14} {'equal' if not parts else 'differs: ' + ', '.join(parts)}")
        if parts and args.against is not None:
            print(f"{'':<14} {apart(args.folder / name, args.against / name)}")
    return len(differing) > 0


def train(name: str, folder: Path) -> Path:
    """Train a recipe in a folder of its name; `resumed` is interrupted on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = folder / name
    shutil.rmtree(run_dir, ignore_errors=True)
    if name == "qwen" and not (folder / "models/qwen").exists():
        script = Path(__file__).parent.parent / "examples/small_qwen.py"
        subprocess.run([sys.executable, script, "models/qwen"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "impresa.cli.main", "train", *RECIPES[name], "--output-dir", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if name == "resumed":
        interrupt(command, environment, folder, run_dir)
        command.append("--resume")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return run_dir


def interrupt(command: list[str], environment: dict[str, str], folder: Path, run_dir: Path) -> None:
    """Start a run and press Ctrl-C once it has a checkpoint."""
    started = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (run_dir / "checkpoints/last.ckpt").exists():
        time.sleep(0.02)
        if started.poll() is not None:
            sys.exit("resumed: the run ended before it had a checkpoint")
    os.kill(started.pid, signal.SIGINT)
    started.wait()


def digest(run_dir: Path) -> dict[str, str]:
    """Digests of the weights (names, types, shapes, bytes) and of the metrics without the speed."""
    import torch
    from safetensors.torch import load_file

    weights = hashlib.sha256()
    for name, tensor in sorted(load_file(run_dir / "model.safetensors").items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        weights.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    metrics = hashlib.sha256(json.dumps(rows(run_dir)).encode())
    return {"weights": weights.hexdigest(), "metrics": metrics.hexdigest()}


def rows(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics, without what no two runs share."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in csv.DictReader(file)]


def apart(run_dir: Path, other: Path) -> str:
    """How far two runs lie apart."""
    from safetensors.torch import load_file

    a, b = load_file(run_dir / "model.safetensors"), load_file(other / "model.safetensors")
    if a.keys() != b.keys():
        return f"other weights: {sorted(a.keys() ^ b.keys())[:4]}"
    worst = max((float((a[name].double() - b[name].double()).abs().max()), name) for name in a)
    ours, theirs = rows(run_dir), rows(other)
    if len(ours) != len(theirs):
        return f"weights differ by {worst}; {len(ours)} rows of metrics in place of {len(theirs)}"
    cells = [
        (abs(float(x[k]) - float(y[k])), f"step {x['step']} {k}")
        for x, y in zip(ours, theirs, strict=True)
        for k in x
        if x.get(k) and y.get(k)
    ]
    names = sorted({k for row in ours for k in row} ^ {k for row in theirs for k in row})
    return f"weights differ by {worst}; metrics by {max(cells)}; columns {names}"


if __name__ == "__main__":
    sys.exit(main())
