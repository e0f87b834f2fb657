"""Speed, memory and numbers on a GPU: all that a CPU cannot show, in one command, on random weights.

    python benchmarks/gpu.py [--minutes 8] [--output gpu.json] [--quick]

In this order, each part as long as there is time left and it fits:

* what the device reaches: a large matrix product in bfloat16, of which the other parts give their share (model flops
  utilisation: work that is done twice to save memory counts once);
* a step of CLIP ViT-B/16, batch 256 in bfloat16: transformers' CLIPModel, ours, and ours with compiled towers;
* a step of a vision-language model of Qwen2.5-3B's sizes in NF4 with LoRA, latent recursion and recomputed activations,
  and its generation with the cache;
* NF4 layers beside their own dequantised weights;
* the first losses of an alignment in each precision, beside float32;
* the tests that need CUDA.

Nothing is downloaded. Peers take turns, medians of wall-clock time. `--quick` runs the skeleton at tiny sizes, on a
CPU too, where the figures mean nothing.
"""

from __future__ import annotations

import copy
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import contrastive_step
import torch
import vlm_step
from rich.console import Console
from rich.table import Table
from timing import Work, command, largest_difference, peak_memory, store
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from impresa.config import load_experiment
from impresa.config.decoder import DecoderConfig, GenerationConfig, LoraConfig
from impresa.config.optimization import Precision
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.tasks.alignment.model import AlignmentModel
from impresa.training.distributed import Group
from impresa.training.loop import steps_of, train_step
from impresa.training.optimizer import build_optimizer
from impresa.training.parts import build_parts
from impresa.training.run import set_up

COMPILED = "impresa, compiled"
CLIP = contrastive_step.Sizes(
    **{"dim": 768, "text_dim": 512, "embed_dim": 512, "depth": 12, "heads": 12, "text_heads": 8},
    **{"image": 224, "patch": 16, "batch": 256, "context": 77, "vocab": 49408},
)
"""CLIP ViT-B/16."""
QWEN = vlm_step.Sizes(
    **{"layers": 36, "hidden": 2048, "mlp": 11008, "heads": 16, "kv_heads": 2},
    **{"batch": 16, "prefix": 64, "question": 64, "answer": 128},
)
"""Qwen2.5-3B, and a batch of answers of a paragraph."""
FLOAT32_TOLERANCE = 100
"""Kernels of a GPU sum in other orders than each other; a wrong model is off by far more."""
COMPILED_TOLERANCE = 1e-2
NF4_TOLERANCE = 1e-2
"""Largest relative difference of a layer in bfloat16 to the product with its dequantised weights."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    per_second: float
    unit: str
    peak_gib: float
    """Most memory of tensors above what was there before."""
    ratio: float | None = None
    """How many times faster than the peer; None without one."""
    utilisation: float | None = None
    """Share of the flops that the device reaches in a large matrix product; None where they were not counted."""


@dataclass(frozen=True)
class Bench:
    """The device and what it reaches."""

    device: torch.device
    quick: bool
    flops: float
    """Per second, in a large matrix product in bfloat16."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def utilisation(self, flops: float, seconds: float) -> float:
        return flops / seconds / self.flops


class Misses(Exception):  # noqa: N818 - an outcome of a part, not a fault of the program
    """A part of the benchmark that this machine cannot run, with the reason."""


# --- measuring ---------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(works: Mapping[str, Work], bench: Bench, repeats: int = 10) -> dict[str, float]:
    """Median wall-clock seconds of each work; the works take turns, and two rounds of warming up do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    shuffle = random.Random(0).shuffle
    for round_ in range((1 if bench.quick else repeats) + 2):
        order = list(works)
        shuffle(order)
        for name in order:
            synchronize(bench.device)
            start = time.perf_counter()
            works[name]()
            synchronize(bench.device)
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak_gib(work: Work, device: torch.device) -> float:
    """Most GiB of tensors on the device that `work` holds at once above those before it."""
    if device.type != "cuda":
        return peak_memory(work) / 2**30
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def flops_of(work: Work) -> float:
    """Floating-point operations of matrix products, convolutions and attention in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def reachable_flops(device: torch.device, size: int) -> float:
    """Flops per second of a product of two (size, size) matrices in bfloat16, the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    fastest = float("inf")
    for _ in range(12):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


# --- the parts ---------------------------------------------------------------------------------------------------


def contrastive(bench: Bench) -> list[Row]:
    """A step of both towers, forward to optimizer, on short captions and on captions that fill the context."""
    sizes = contrastive_step.QUICK if bench.quick else CLIP
    rows = []
    for captions, words in (("captions of 8 to 14 words", (8, 14)), ("captions of 77 tokens", None)):
        step = contrastive_step.Step(sizes, words, bench.device)
        check = contrastive_step.Step(replace(sizes, batch=min(sizes.batch, 32)), words, bench.device)
        with without_tf32():
            check.check(FLOAT32_TOLERANCE)
        del check
        rows += [replace(row, what=f"{row.what}, {captions}") for row in contrastive_rows(step, bench)]
    return rows


def contrastive_rows(step: contrastive_step.Step, bench: Bench) -> list[Row]:
    peers = (contrastive_step.PADDED, contrastive_step.LONGEST, contrastive_step.OURS, contrastive_step.PACKED)
    their_optimizer = torch.optim.AdamW(step.theirs.parameters(), lr=contrastive_step.LR)
    works = {
        peers[0]: trained(step.losses[peers[0]], their_optimizer, bench),
        peers[1]: trained(step.losses[peers[1]], their_optimizer, bench),
        peers[2]: trained(step.losses[peers[2]], build_optimizer(step.ours, OPTIMIZATION), bench),
        peers[3]: trained(step.losses[peers[3]], build_optimizer(step.ours, OPTIMIZATION), bench),
    }
    flops = {name: flops_of(work) for name, work in works.items()}
    if bench.device.type == "cuda":  # the compiler for CPUs takes minutes
        compiled = copy.deepcopy(step.ours)
        compiled.text_encoder.pack(False)
        compiled.vision_encoder.compile()
        compiled.text_encoder.compile()
        check_compiled(compiled, step, bench)
        works[COMPILED] = trained(lambda: compiled(step.batch()).loss, build_optimizer(compiled, OPTIMIZATION), bench)
        flops[COMPILED] = flops[peers[2]]
    seconds = seconds_of(works, bench)
    return [
        Row(
            name,
            step.sizes.batch / seconds[name],
            "samples/s",
            peak_gib(work, bench.device),
            seconds[peers[0]] / seconds[name],
            bench.utilisation(flops[name], seconds[name]),
        )
        for name, work in works.items()
    ]


def check_compiled(compiled: AlignmentModel, step: contrastive_step.Step, bench: Bench) -> None:
    """The compiled towers give the loss of the plain ones, but for the rounding of bfloat16."""
    with bench.autocast(), torch.no_grad():
        found, expected = (model(step.batch()).loss for model in (compiled, step.ours))
    largest_difference([found], [expected], COMPILED_TOLERANCE)


OPTIMIZATION = replace(load_experiment("default", []).optimization, lr=contrastive_step.LR)


def trained(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, bench: Bench) -> Work:
    def step() -> None:
        with bench.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class LanguageModel:
    """A decoder of Qwen's architecture with random weights, as the spec's large profile trains it.

    Raises:
        Misses: bitsandbytes is not there.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.sizes = vlm_step.QUICK if bench.quick else QWEN
        self.decoder = quantized(self.sizes, bench.device)

    def rows(self) -> list[Row]:
        return [self._step(), *self._generation()]

    def _step(self) -> Row:
        sizes, bench = self.sizes, self.bench
        step = vlm_step.Step(sizes, self.decoder.train())

        def train() -> None:
            with bench.autocast():
                loss = step.ours()
            loss.backward()
            step.optimizer.step()
            step.forget()

        seconds = seconds_of({"step": train}, bench)["step"]
        num_tokens = sizes.batch * (sizes.prefix + sizes.question + sizes.answer)
        # Frozen weights: forward, and backward to the activations. Adapters and recursion are not counted.
        blocks = sizes.layers * weights_of_block(sizes) * num_tokens
        head = sizes.hidden * sizes.vocab * sizes.batch * sizes.answer
        share = bench.utilisation(4 * (blocks + head), seconds)
        memory = peak_gib(train, bench.device)
        return Row("vision-language step", num_tokens / seconds, "tokens/s", memory, utilisation=share)

    def _generation(self) -> list[Row]:
        decoder, bench = self.decoder.eval(), self.bench
        num_new = 4 if bench.quick else 128
        rows = []
        for batch in (1, 8):
            prefix = torch.randn(batch, self.sizes.prefix, self.sizes.hidden, device=bench.device)
            prompt = torch.randint(self.sizes.vocab, (batch, self.sizes.question), device=bench.device)
            settings = GenerationConfig(max_new_tokens=num_new)

            def generate(prompt: torch.Tensor = prompt, prefix: torch.Tensor = prefix) -> None:
                rules: dict[str, Any] = {"settings": settings, "end_ids": (), "pad_id": 0}  # noqa: B023
                decoder.generate(prompt, torch.ones_like(prompt), prefix, **rules)

            seconds = seconds_of({"text": generate}, bench, repeats=2)["text"]
            memory = peak_gib(generate, bench.device)
            rows.append(Row(f"generation, batch {batch}", batch * num_new / seconds, "tokens/s", memory))
        return rows


def weights_of_block(sizes: vlm_step.Sizes) -> int:
    """Weights of the linear layers of a block."""
    kv_width = sizes.hidden // sizes.heads * sizes.kv_heads
    return 2 * sizes.hidden**2 + 2 * sizes.hidden * kv_width + 3 * sizes.hidden * sizes.mlp


def quantized(sizes: vlm_step.Sizes, device: torch.device) -> PretrainedDecoder:
    """A decoder in NF4 with LoRA and recursion; its weights are written to disk first, as four bits are always read."""
    from transformers import Qwen2ForCausalLM

    import_or_miss("bitsandbytes")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(device):
            Qwen2ForCausalLM(vlm_step.architecture(sizes)).bfloat16().save_pretrained(folder)
        config = DecoderConfig(
            model=folder,
            load_in_4bit=True,
            use_lora=True,
            lora=LoraConfig(r=16, dropout=0.0),
            use_trm_recursion=True,
            activation_checkpointing=True,
        )
        return PretrainedDecoder(config, precision="bf16-mixed").to(device)


def nf4(bench: Bench) -> dict[str, float]:
    """Relative difference of each four-bit layer of the first block to the product with its dequantised weights."""
    import_or_miss("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    decoder = quantized(replace(vlm_step.QUICK if bench.quick else QWEN, layers=1, vocab=1000), bench.device)
    found = {}
    for name, layer in decoder.model.named_modules():
        if isinstance(layer, Linear4bit):
            x = torch.randn(64, layer.in_features, device=bench.device, dtype=torch.bfloat16)
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            expected = nn.functional.linear(
                x.float(), weight.float(), None if layer.bias is None else layer.bias.float()
            )
            found[name] = float((layer(x).float() - expected).norm() / expected.norm())
    if not found or max(found.values()) > NF4_TOLERANCE:
        raise SystemExit(f"four-bit layers differ from their dequantised weights: {found}")
    return found


def precisions(bench: Bench) -> dict[str, list[float]]:
    """Losses of the first steps of an alignment of scenes in each precision, from equal weights on equal batches."""
    sizes = ("dataset.batch_size=8", "dataset.shapes.num_train=16") if bench.quick else ("dataset.batch_size=128",)
    num_steps = 2 if bench.quick else 50
    losses = {}
    for name in get_args(Precision):
        config = load_experiment("shapes", [*sizes, f"optimization.precision={name}", "dataset.num_workers=0"])
        training = set_up(config, build_parts(config, None), Group(bench.device))
        training.state.model.train()
        steps = islice(steps_of(training.train_loader, 1), num_steps)
        losses[name] = [float(train_step(training, batches)["loss"]) for batches in steps]
    return losses


def cuda_tests(bench: Bench) -> str:
    """The last line of pytest on the tests that need CUDA."""
    if bench.device.type != "cuda":
        raise Misses("there is no GPU")
    root = Path(__file__).parents[1]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    print(tests.stdout[-4000:] if tests.returncode else "", end="")
    return tests.stdout.strip().splitlines()[-1]


# --- the whole ---------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], Any]] = {
    "contrastive": contrastive,
    "language model": lambda bench: LanguageModel(bench).rows(),
    "nf4": nf4,
    "precisions": precisions,
    "tests": cuda_tests,
}


def without_tf32() -> Any:
    """Float32 products with all their bits, for comparisons."""
    if not torch.cuda.is_available():
        return nullcontext()
    return torch.backends.cudnn.flags(allow_tf32=False)


def import_or_miss(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise Misses(f"{package} cannot be imported") from error


def run_parts(bench: Bench, minutes: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Results of the parts, and reasons of those that are missing."""
    start, found, missing = time.monotonic(), {}, {}
    for name, part in PARTS.items():
        if time.monotonic() - start > minutes * 60:
            missing[name] = f"{minutes:g} minutes are over"
            continue
        try:
            found[name] = part(bench)
        except Misses as reason:
            missing[name] = str(reason)
        except torch.OutOfMemoryError:
            missing[name] = "it does not fit into this device's memory"
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found, missing


def show(card: str, found: Mapping[str, Any], missing: Mapping[str, str]) -> None:
    caption = "against padded CLIPModel; share: of the flops that a large matrix product in bfloat16 reaches here"
    table = Table("", "", "", "peak GiB", "times as fast", "share", title=card, caption=caption)
    for row in (*found.get("contrastive", ()), *found.get("language model", ())):
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        share = "" if row.utilisation is None else f"{row.utilisation:.0%}"
        table.add_row(row.what, f"{row.per_second:,.0f}", row.unit, f"{row.peak_gib:.2f}", ratio, share)
    Console(width=140).print(table)
    if "nf4" in found:
        print(f"NF4 beside its dequantised weights: at most {max(found['nf4'].values()):.1e} of the norm")
    for name, losses in found.get("precisions", {}).items():
        print(f"{name}: first losses {', '.join(f'{loss:.4f}' for loss in losses[:3])}; last {losses[-1]:.4f}")
    if "tests" in found:
        print(f"tests that need CUDA: {found['tests']}")
    for name, reason in missing.items():
        print(f"{name}: left out, {reason}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="begin no part after so many minutes (default 8)")
    given = parser.parse_args(arguments)
    if not (given.quick or torch.cuda.is_available()):
        raise SystemExit("there is no GPU here; --quick shows on a CPU that the script runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    bench = Bench(device, given.quick, reachable_flops(device, 256 if given.quick else 8192))
    print(f"{card}: {bench.flops / 1e12:.0f} TFLOP/s in a matrix product in bfloat16")
    found, missing = run_parts(bench, given.minutes)
    show(card, found, missing)
    plain = {
        name: [asdict(row) for row in part] if name in {"contrastive", "language model"} else part
        for name, part in found.items()
    }
    store(given.output, {"card": card, "flops": bench.flops, "parts": plain, "missing": missing})


if __name__ == "__main__":
    main()
