"""The training step of a vision-language model: its language model's head works only where there is an answer.

    python benchmarks/vlm_step.py [--output vlm_step.json] [--quick]

A Qwen2 of width 896 with random weights and a vocabulary of 151,936, LoRA of rank 16 in all its linear layers, a batch
of 8 with a prefix of 64, a question of 24 and an answer of 12 tokens; float32, one thread. A step is forward, backward
(to the adapters and the prefix) and AdamW on the adapters. Peers, on the very same model:

* transformers with `labels=`, which computes the logits of all positions;
* transformers with `logits_to_keep`, which computes those of the last 13 (each predicts the next, so one too many).

With 4 layers, and with the 24 of Qwen2.5-0.5B, where the head weighs less. Loss and gradients are compared before
anything is timed. LoRA's dropout is off, so that they can be. Takes about ten minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timing import Cost, command, largest_difference, measure, report, store
from torch import Tensor, nn
from transformers import Qwen2Config

from impresa.config.decoder import DecoderConfig, LoraConfig
from impresa.decoders.base import IGNORED
from impresa.decoders.pretrained import PretrainedDecoder

FULL, KEPT, OURS = "transformers, labels=", "transformers, logits_to_keep", "impresa"
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What a step is made of: widths of the model, tokens of the batch."""

    layers: int = 4
    hidden: int = 896
    mlp: int = 4864
    heads: int = 14
    kv_heads: int = 2
    vocab: int = 151_936
    batch: int = 8
    prefix: int = 64
    question: int = 24
    answer: int = 12


QUICK = Sizes(layers=2, hidden=64, mlp=128, heads=4, vocab=1000, batch=2, prefix=6, question=4, answer=3)


class Step:
    """One model, one batch, and the three ways to a loss.

    Args:
        sizes: of model and batch.
        decoder: the model, on its device; None builds it on the CPU.
    """

    def __init__(self, sizes: Sizes, decoder: PretrainedDecoder | None = None) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        self.decoder = decoder or decoder_of(sizes)
        device = next(self.decoder.parameters()).device
        self.prefix = nn.Parameter(torch.randn(sizes.batch, sizes.prefix, sizes.hidden).to(device))
        self.ids = torch.randint(sizes.vocab, (sizes.batch, sizes.question + sizes.answer)).to(device)
        self.mask = torch.ones_like(self.ids)
        self.labels = self.ids.clone()
        self.labels[:, : sizes.question] = IGNORED
        self.adapters = [parameter for parameter in self.decoder.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.adapters, lr=1e-6)

    def full_logits(self) -> Tensor:
        behind_prefix = nn.functional.pad(self.labels, (self.sizes.prefix, 0), value=IGNORED)
        return self.decoder.model(**self._joined(), labels=behind_prefix).loss

    def kept_logits(self) -> Tensor:
        kept = self.sizes.answer + 1
        return self.decoder.model(**self._joined(), labels=self.labels[:, -kept:], logits_to_keep=kept).loss

    def ours(self) -> Tensor:
        return self.decoder(self.ids, self.mask, self.prefix, self.labels).loss

    def _joined(self) -> dict[str, Any]:
        text = self.decoder.embed(self.ids)
        embeds = torch.cat((self.prefix, text), dim=1)
        return {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2]).long(), "use_cache": False}

    def gradients(self, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """The loss, and its gradients to prefix and adapters."""
        value = loss()
        return value, *torch.autograd.grad(value, (self.prefix, *self.adapters))

    def forget(self) -> None:
        self.optimizer.zero_grad()
        self.prefix.grad = None

    def train(self, loss: Callable[[], Tensor]) -> None:
        loss().backward()
        self.optimizer.step()


def architecture(sizes: Sizes) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        vocab_size=sizes.vocab,
        tie_word_embeddings=True,
    )


def decoder_of(sizes: Sizes) -> PretrainedDecoder:
    """Our decoder; its `model` is transformers' own, with peft's adapters in it."""
    with tempfile.TemporaryDirectory() as folder:
        architecture(sizes).save_pretrained(folder)
        config = DecoderConfig(model=folder, use_lora=True, lora=LoraConfig(r=16, dropout=0.0))
        decoder = PretrainedDecoder(config, load_weights=False)
    for name, parameter in decoder.named_parameters():
        if "lora_B" in name:  # at their start, zero, they keep the gradient of the other half at zero too
            nn.init.normal_(parameter, std=0.02)
    return decoder.train()


def compare(sizes: Sizes, repeats: int) -> tuple[dict[str, Cost], dict[str, float]]:
    """Costs of the three, and how far loss and gradients are from those of full logits."""
    step = Step(sizes)
    losses = {FULL: step.full_logits, KEPT: step.kept_logits, OURS: step.ours}
    reference = step.gradients(step.full_logits)
    differences = {
        name: largest_difference(step.gradients(losses[name]), reference, TOLERANCE) for name in (KEPT, OURS)
    }
    works = {name: lambda loss=loss: step.train(loss) for name, loss in losses.items()}
    return measure(works, repeats=repeats, prepare=step.forget), differences


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    base, deep, repeats = (QUICK, 3, 1) if given.quick else (Sizes(), 24, 7)
    figures: dict[str, Any] = {}
    for layers, rounds in ((base.layers, repeats), (deep, min(repeats, 3))):
        sizes = replace(base, layers=layers)
        title = f"step of {layers} layers, batch {sizes.batch} of {sizes.prefix}+{sizes.question}+{sizes.answer} tokens"
        costs, differences = compare(sizes, rounds)
        report(title, costs, [FULL, KEPT])
        print(f"largest relative difference of loss and gradients: {max(differences.values()):.1e}")
        found = {name: asdict(cost) for name, cost in costs.items()}
        figures[f"{layers} layers"] = {"title": title, "repeats": rounds, "costs": found, "differences": differences}
    store(given.output, figures)


if __name__ == "__main__":
    main()
