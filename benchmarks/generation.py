"""Generation with the cache: the two-hundredth token costs about what the twentieth does, with recursion too.

    python benchmarks/generation.py [--output generation.json] [--quick]

One text behind a prefix of 64 and a prompt of 24 tokens, greedy, 220 new tokens, float32, one thread; random weights.
Decoders of width 256: a Qwen2 of 4 layers, the same with latent recursion on its last hidden states, and TRM, with the
default recursion (2 cycles of 2 updates of 2 blocks). The control is a step without the cache, which reads the whole
text anew: it shows what growth the comparison would find. Every token is compared with what the decoder says without
the cache before anything is timed. Takes about two minutes.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from timing import command, store
from torch import Tensor, nn
from transformers import Qwen2Config

from impresa.config.decoder import DecoderConfig, GenerationConfig
from impresa.decoders.base import Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.trm import TRMDecoder

HEADS, MLP_RATIO, LAYERS, PREFIX, PROMPT = 4, 4, 4, 64, 24
TIE = 1e-4
"""Logits this close, as a part of their spread, may change places between one order of the sums and another."""


@dataclass(frozen=True)
class Sizes:
    """Of the decoders, and which tokens are compared (counted from 1, both ends included)."""

    width: int = 256
    vocab: int = 8192
    early: tuple[int, int] = (10, 30)
    late: tuple[int, int] = (180, 220)


QUICK = Sizes(width=64, vocab=300, early=(2, 4), late=(8, 12))


@dataclass(frozen=True)
class Growth:
    """Median seconds of a token, early and late in the text."""

    early_s: float
    late_s: float

    @property
    def ratio(self) -> float:
        return self.late_s / self.early_s


class Text:
    """A decoder and the prompt that it continues."""

    def __init__(self, decoder: Decoder, sizes: Sizes) -> None:
        self.decoder, self.sizes = decoder.eval(), sizes
        self.prefix = torch.randn(1, PREFIX, decoder.hidden_size)
        self.prompt = torch.randint(sizes.vocab, (1, PROMPT))
        self.settings = GenerationConfig(max_new_tokens=sizes.late[1])
        self.new = torch.stack([token for token, _ in self.generate()], dim=1)

    def generate(self) -> Iterator[tuple[Tensor, float]]:
        """Each token (1,), and the CPU time that it took in seconds, the first with the reading of the prompt."""
        mask, before = torch.ones_like(self.prompt), time.process_time()
        rules = {"settings": self.settings, "end_ids": (), "pad_id": 0}
        for token in self.decoder.write(self.prompt, mask, self.prefix, **rules):
            now = time.process_time()
            yield token, now - before
            before = now

    @torch.inference_mode()
    def logits_without_cache(self, num_new: int, keep: int = 1) -> Tensor:
        """Logits (keep, V) at the last positions of the text with `num_new` new tokens, all of it read."""
        ids = torch.cat((self.prompt, self.new[:, :num_new]), dim=1)
        embeds = torch.cat((self.prefix, self.decoder.embed(ids)), dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        return self.decoder.head(self.decoder.run(embeds, CausalContext.of(mask))[-1][0, -keep:])

    def check(self) -> None:
        """Every token is the likeliest one without the cache too."""
        num_new = self.new.shape[1]
        logits = self.logits_without_cache(num_new - 1, keep=num_new)
        behind = logits.max(dim=-1).values - logits.gather(1, self.new[0, :, None]).squeeze(1)
        wrong = (~(behind <= TIE * logits.std(dim=-1))).nonzero().flatten().tolist()
        if wrong:
            raise SystemExit(f"{type(self.decoder).__name__}: token {wrong[0] + 1} is another one without the cache")

    def cached(self) -> tuple[list[float], list[float]]:
        """Seconds of the early and of the late tokens."""
        seconds = [spent for _, spent in self.generate()]
        return tuple(seconds[first - 1 : last] for first, last in (self.sizes.early, self.sizes.late))

    def uncached(self) -> tuple[list[float], list[float]]:
        """The same for one token in the middle of each."""
        return tuple([self._reading((first + last) // 2)] for first, last in (self.sizes.early, self.sizes.late))

    def _reading(self, num_new: int) -> float:
        start = time.process_time()
        self.logits_without_cache(num_new)
        return time.process_time() - start


def decoders(sizes: Sizes) -> dict[str, Decoder]:
    recursive = qwen(sizes, recursive=True)
    nn.init.ones_(recursive.recursion.gate)  # from zero, where it starts, it would write the plain model's text
    trm = TRMDecoder(DecoderConfig(type="trm", dim=sizes.width, num_heads=HEADS), sizes.vocab)
    return {"qwen": qwen(sizes, recursive=False), "qwen with recursion": recursive, "trm": trm}


def qwen(sizes: Sizes, *, recursive: bool) -> PretrainedDecoder:
    architecture = Qwen2Config(
        hidden_size=sizes.width,
        intermediate_size=MLP_RATIO * sizes.width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        vocab_size=sizes.vocab,
    )
    with tempfile.TemporaryDirectory() as folder:
        architecture.save_pretrained(folder)
        return PretrainedDecoder(DecoderConfig(model=folder, use_trm_recursion=recursive), load_weights=False)


def measure_growth(texts: dict[str, Text], repeats: int) -> dict[str, dict[str, Growth]]:
    """With the cache and without, medians over the tokens of all rounds; the rounds take turns as in `timing`."""
    works: dict[tuple[str, str], Callable[[], tuple[list[float], list[float]]]] = {}
    for name, text in texts.items():
        works[name, "cached"], works[name, "uncached"] = text.cached, text.uncached
    early: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    late: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    shuffle = random.Random(0).shuffle
    for round_ in range(repeats + 1):
        order = list(works)
        shuffle(order)
        for key in order:
            found = works[key]()
            if round_:
                early[key] += found[0]
                late[key] += found[1]

    def growth(name: str, how: str) -> Growth:
        return Growth(statistics.median(early[name, how]), statistics.median(late[name, how]))

    return {name: {how: growth(name, how) for how in ("cached", "uncached")} for name in texts}


def report(title: str, growths: dict[str, dict[str, Growth]]) -> None:
    caption = "median CPU time of a token early and late, and how much it grows"
    table = Table("", "with the cache, ms", "grows", "without, ms", "grows", title=title, caption=caption)
    for name, growth in growths.items():
        cells = []
        for how in ("cached", "uncached"):
            cells += [f"{growth[how].early_s * 1e3:.2f}, {growth[how].late_s * 1e3:.2f}", f"{growth[how].ratio:.2f}"]
        table.add_row(name, *cells)
    Console(width=160).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, repeats = (QUICK, 1) if given.quick else (Sizes(), 7)
    texts = {name: Text(decoder, sizes) for name, decoder in decoders(sizes).items()}
    for text in texts.values():
        text.check()
    growths = measure_growth(texts, repeats)
    title = f"generation, tokens {sizes.early[0]} to {sizes.early[1]} and {sizes.late[0]} to {sizes.late[1]}"
    report(title, growths)
    figures = {
        name: {how: {**asdict(growth), "ratio": growth.ratio} for how, growth in both.items()}
        for name, both in growths.items()
    }
    store(given.output, {"title": title, "decoders": figures})


if __name__ == "__main__":
    main()
