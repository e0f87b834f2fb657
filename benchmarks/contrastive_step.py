"""The training step of contrastive towers: texts as long as the batch needs, and no token computed that nobody reads.

    python benchmarks/contrastive_step.py [--output contrastive_step.json] [--quick]

Two towers of width 256 with 6 blocks, images of 96 pixels, context 77, batch 64, float32, one thread. A step is
forward, backward and optimizer step. The peer is transformers' CLIPModel of the same architecture and weights, on the
same images and captions, with torch's AdamW as it comes:

* every caption padded to the context, as CLIP is trained, fine-tuned and documented;
* captions padded to the longest of the batch (`padding="longest"`).

Ours is timed with `optimization.packing`, too. Captions have 8 to 14 words, of which every fourth is two tokens, or 4
to 60 tokens, or they fill the context. Losses, gradients, and our texts trimmed and padded are compared before it is
timed. Takes about eight minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timing import command, largest_difference, measure, report, store
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.optimization import OptimizationConfig
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel
from impresa.training.optimizer import build_optimizer

PADDED, LONGEST = "transformers, padded to the context", 'transformers, padding="longest"'
OURS, PACKED = "impresa", "impresa, packing"
LOSS_TOLERANCE, GRADIENT_TOLERANCE, TRIMMING_TOLERANCE = 1e-6, 1e-5, 1e-6
PAD, LR = 0, 1e-5


@dataclass(frozen=True)
class Sizes:
    """Widths of the towers and what a batch holds."""

    dim: int = 256
    text_dim: int = 256
    embed_dim: int = 256
    depth: int = 6
    heads: int = 4
    text_heads: int = 4
    image: int = 96
    patch: int = 16
    batch: int = 64
    context: int = 77
    vocab: int = 8192

    @property
    def start(self) -> int:
        return self.vocab - 2

    @property
    def end(self) -> int:
        return self.vocab - 1


QUICK = Sizes(
    dim=32, text_dim=32, embed_dim=32, depth=2, heads=2, text_heads=2, image=32, batch=8, context=24, vocab=100
)


def clip(sizes: Sizes) -> CLIPModel:
    def tower(dim: int, heads: int, **more: int) -> dict[str, Any]:
        widths = {"hidden_size": dim, "intermediate_size": 4 * dim, "num_attention_heads": heads}
        return {**widths, "num_hidden_layers": sizes.depth, "hidden_act": "gelu", **more}

    tokens = {"vocab_size": sizes.vocab, "bos_token_id": sizes.start, "eos_token_id": sizes.end, "pad_token_id": PAD}
    text = tower(sizes.text_dim, sizes.text_heads, max_position_embeddings=sizes.context, **tokens)
    image = tower(sizes.dim, sizes.heads, image_size=sizes.image, patch_size=sizes.patch)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=sizes.embed_dim))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # they start at zero or one, where a mistaken place would not show
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.02)
    return model.train()


def ours(sizes: Sizes, theirs: CLIPModel) -> AlignmentModel:
    """Our towers with their weights."""
    common: dict[str, Any] = {"depth": sizes.depth, "embed_dim": sizes.embed_dim, "projection": "none"}
    vision = {"dim": sizes.dim, "num_heads": sizes.heads, "patch_size": sizes.patch}
    text = {"dim": sizes.text_dim, "num_heads": sizes.text_heads, "max_len": sizes.context}
    config = ExperimentConfig(
        dataset=DatasetConfig(image_size=sizes.image),
        vision_encoder=EncoderConfig(pre_norm=True, patch_bias=False, **vision, **common),
        text_encoder=EncoderConfig(backbone="transformer", **text, **common),
    )
    model = build_alignment(config, sizes.vocab, sizes.end)
    model.load_state_dict(translate(theirs.state_dict(), sizes.depth))
    return model.train()


def translate(theirs: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Weights, or gradients, of a `CLIPModel` under our names."""
    vision, text = "vision_encoder.backbone", "text_encoder.backbone"
    found = {
        f"{vision}.cls": theirs["vision_model.embeddings.class_embedding"],
        f"{vision}.patch_embedding.weight": theirs["vision_model.embeddings.patch_embedding.weight"].flatten(1),
        f"{vision}.positions": theirs["vision_model.embeddings.position_embedding.weight"],
        f"{text}.token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        f"{text}.positions": theirs["text_model.embeddings.position_embedding.weight"],
        "vision_encoder.head.weight": theirs["visual_projection.weight"],
        "text_encoder.head.weight": theirs["text_projection.weight"],
        "loss.logit_scale": theirs["logit_scale"],
    }
    for kind in ("weight", "bias"):
        found[f"{vision}.pre_norm.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        found[f"{vision}.transformer.norm.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        found[f"{text}.transformer.norm.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
        for tower, their_tower in ((vision, "vision_model"), (text, "text_model")):
            for i in range(depth):
                block, layer = f"{tower}.transformer.blocks.{i}", f"{their_tower}.encoder.layers.{i}"
                keys, values = (theirs[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "kv")
                found[f"{block}.attention.key_value.{kind}"] = torch.cat((keys, values))
                for name, their_name in BLOCK.items():
                    found[f"{block}.{name}.{kind}"] = theirs[f"{layer}.{their_name}.{kind}"]
    return found


BLOCK = {
    "attention_norm": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
"""Parts of a block that both models have: our name and theirs."""


class Step:
    """Both models, and one batch of images and captions.

    Args:
        sizes: of models and batch.
        words: fewest and most words of a caption; None: captions that fill the context.
        device: where both are.
        tokens: fewest and most tokens of a caption, in place of `words`.
    """

    def __init__(
        self,
        sizes: Sizes,
        words: tuple[int, int] | None,
        device: torch.device | str = "cpu",
        *,
        tokens: tuple[int, int] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        theirs = clip(sizes)
        self.ours = ours(sizes, theirs).to(device)
        self.theirs = theirs.to(device)
        self.images = torch.randn(sizes.batch, 3, sizes.image, sizes.image).to(device)
        lengths = torch.full((sizes.batch,), sizes.context) if words is None else num_tokens(sizes.batch, *words)
        if tokens is not None:
            lengths = torch.randint(tokens[0], min(tokens[1], sizes.context) + 1, (sizes.batch,))
        self.longest = int(lengths.max())
        self.mask = torch.arange(sizes.context) < lengths[:, None]
        self.ids = torch.randint(1, sizes.start, self.mask.shape).masked_fill(~self.mask, PAD)
        self.ids[:, 0] = sizes.start
        self.ids[torch.arange(sizes.batch), lengths - 1] = sizes.end
        self.ids, self.mask = self.ids.to(device), self.mask.to(device)
        self.losses: dict[str, Callable[[], Tensor]] = {
            PADDED: lambda: self._their_loss(sizes.context),
            LONGEST: lambda: self._their_loss(self.longest),
            OURS: lambda: self._our_loss(packing=False),
            PACKED: lambda: self._our_loss(packing=True),
        }

    def _their_loss(self, length: int) -> Tensor:
        ids, mask = self.ids[:, :length], self.mask[:, :length].long()
        return self.theirs(input_ids=ids, attention_mask=mask, pixel_values=self.images, return_loss=True).loss

    def _our_loss(self, *, packing: bool) -> Tensor:
        self.ours.text_encoder.pack(packing)
        return self.ours(self.batch()).loss

    def batch(self) -> Batch:
        """The batch as ours reads it, its texts as long as the longest."""
        ids, mask = self.ids[:, : self.longest], self.mask[:, : self.longest]
        return Batch(ids=[""] * len(ids), image=self.images, input_ids=ids, attention_mask=mask)

    def check(self, leniency: float = 1.0) -> dict[str, float]:
        """Largest relative differences between the models, and between our texts trimmed and padded.

        Args:
            leniency: factor of the tolerances, for devices that sum in other orders.
        """
        found: dict[str, float] = {}
        their_loss = self.losses[PADDED]()
        their_loss.backward()
        theirs = translate({name: gradient_of(p) for name, p in self.theirs.named_parameters()}, self.sizes.depth)
        for way, kind in ((OURS, ""), (PACKED, "packed ")):
            our_loss = self.losses[way]()
            our_loss.backward()
            ours = {name: gradient_of(p) for name, p in self.ours.named_parameters()}
            found[f"{kind}loss"] = largest_difference([our_loss], [their_loss], LOSS_TOLERANCE * leniency)
            found[f"{kind}gradients"] = largest_difference(
                [matters(name, ours[name]) for name in ours],
                [matters(name, theirs[name]) for name in ours],
                GRADIENT_TOLERANCE * leniency,
            )
            self.ours.zero_grad()
        self.forget()
        with torch.no_grad():
            padded = self.ours.embed_text(self.ids, self.mask)
            trimmed = self.ours.embed_text(self.ids[:, : self.longest], self.mask[:, : self.longest])
        return found | {"trimmed text": largest_difference([trimmed], [padded], TRIMMING_TOLERANCE * leniency)}

    def forget(self) -> None:
        self.theirs.zero_grad()
        self.ours.zero_grad()


def num_tokens(batch: int, fewest: int, most: int) -> Tensor:
    """Lengths (B,) of captions: words, a fourth of which are two tokens, start and end."""
    words = torch.randint(fewest, most + 1, (batch,))
    return words + words // 4 + 2


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def matters(name: str, gradient: Tensor) -> Tensor:
    """The gradient without that of the keys' bias: no loss depends on it, so that it is rounding noise."""
    return gradient[len(gradient) // 2 :] if name.endswith("key_value.bias") else gradient


def main(arguments: Sequence[str] | None = None) -> None:
    given = command(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    sizes, repeats = (QUICK, 1) if given.quick else (Sizes(), 7)
    figures: dict[str, Any] = {}
    cases = {
        "8 to 14 words": Step(sizes, (8, 14)),
        "4 to 60 tokens": Step(sizes, None, tokens=(4, 60)),
        "the whole context": Step(sizes, None),
    }
    for captions, step in cases.items():
        differences = step.check()
        their_optimizer = torch.optim.AdamW(step.theirs.parameters(), lr=LR)
        our_optimizer = build_optimizer(step.ours, OptimizationConfig(lr=LR))
        optimizers = {
            **dict.fromkeys((PADDED, LONGEST), their_optimizer),
            **dict.fromkeys((OURS, PACKED), our_optimizer),
        }

        def train(name: str, step: Step = step, optimizers: dict[str, Any] = optimizers) -> None:
            step.losses[name]().backward()
            optimizers[name].step()

        works = {name: lambda name=name, train=train: train(name) for name in optimizers}
        costs = measure(works, repeats=repeats, prepare=step.forget)
        title = f"contrastive step, batch {sizes.batch}, captions of {captions} (longest {step.longest} tokens)"
        report(title, costs, [PADDED, LONGEST])
        print("largest relative differences: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()))
        found = {name: asdict(cost) for name, cost in costs.items()}
        figures[captions] = {"title": title, "costs": found, "differences": differences}
    store(given.output, figures)


if __name__ == "__main__":
    main()
