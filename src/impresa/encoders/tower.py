"""The path of all encoders: backbone, projection or Perceiver, pooling, embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from impresa.config.decoder import PrefixTokens
from impresa.config.encoder import EncoderConfig, has_trained_blocks, is_frozen
from impresa.encoders.lora import add_adapters, is_adapter
from impresa.encoders.output import EncoderOutput, Features
from impresa.encoders.pooling import MeanPooling, Pooling, SummaryPooling, build_pooling
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.errors import ConfigError
from impresa.layers.init import init_linear
from impresa.layers.mlp import MLP
from impresa.layers.perceiver import PerceiverResampler

Use = Literal["embedding", "embedding and tokens", "tokens"]
"""What a model reads of a tower: `forward`, the same with tokens, or `read`."""
Stage = tuple[tuple[nn.Module, ...], Callable[..., Any]]
"""A step of a tower's computation, which takes what the one before returned, and the modules in it."""


class Tower(nn.Module):
    """backbone -> tokens -> projection or Perceiver -> pooling -> head -> embedding.

    A subclass makes the backbone of its modality. A frozen backbone stays in eval mode and gets no gradient, but for
    blocks and adapters that are trained all the same (`config.unfreeze_last`, `config.lora`); the parts behind it are
    trained, unless the whole tower comes from another run of Impresa (`config.checkpoint`).

    Args:
        config: the tower's settings.
        backbone: a module that returns `Features`; its `dim` is their width D, its `summary` names theirs, if any.
    """

    part: ClassVar[str] = "encoder"
    """The section of the config that holds its settings, for messages."""

    def __init__(self, config: EncoderConfig, backbone: Any) -> None:
        super().__init__()
        dim: int = backbone.dim
        self.dim, self.summary = dim, backbone.summary
        self.backbone = backbone
        self.perceiver: PerceiverResampler | None = None
        if config.use_perceiver:
            self.perceiver = PerceiverResampler(
                dim=dim,
                num_latents=config.perceiver_num_latents,
                num_layers=config.perceiver_num_layers,
                num_heads=config.perceiver_num_heads,
            )
        own_head = backbone.take_head(config.embed_dim) if isinstance(backbone, PretrainedBackbone) else None
        projection = config.projection
        if projection == "auto":
            projection = "mlp" if own_head is None else "none"
        self.projection = build_projection("none" if config.use_perceiver else projection, dim)
        # Runs have stored the one pooling that has weights under this name.
        self.attention_pooling = build_pooling(config, dim, self.summary)
        self.head: nn.Module = init_linear(nn.Linear(dim, config.embed_dim, bias=False), std=dim**-0.5)
        # Kept where nothing new stands before it: the tower then starts as the pretrained model.
        self.has_own_head = own_head is not None and self.pooling.reads_summary and projection == "none"
        self.is_frozen = is_frozen(config)
        self.trains_blocks = has_trained_blocks(config)
        self.comes_from_a_run = config.checkpoint is not None
        self.is_frozen_whole = self.is_frozen and self.comes_from_a_run and not config.unfreeze_last
        self.kept: PrefixTokens = "tokens"
        if own_head is not None and self.has_own_head:
            self.head = own_head.requires_grad_(not self.is_frozen or config.unfreeze_last > 0)
        if isinstance(backbone, PretrainedBackbone):
            self._fit(backbone, config)
        if config.lora is not None:
            add_adapters(self._stack("lora"), config.lora, f"{self.part}.lora")
        if self.is_frozen:
            self._freeze(config)

    @property
    def pooling(self) -> Pooling:
        return self.attention_pooling

    def _freeze(self, config: EncoderConfig) -> None:
        """Leave nothing to train but what is new, the last `unfreeze_last` blocks, and adapters that are new."""
        self._frozen_part().requires_grad_(False).eval()
        if number := config.unfreeze_last:
            blocks = self._stack("unfreeze_last")
            if number > len(blocks):
                fault = f"{number} blocks, but the tower has {len(blocks)}"
                raise ConfigError(f"{self.part}.unfreeze_last: {fault}; choose at most that")
            blocks[-number:].requires_grad_(True)
        if config.lora is not None and not self.comes_from_a_run:
            for name, parameter in self.backbone.named_parameters():
                parameter.requires_grad_(is_adapter(name))

    def _frozen_part(self) -> nn.Module:
        """The backbone: the parts behind it are new. All of a tower that comes from another run, unless blocks of it
        are trained."""
        return self if self.is_frozen_whole else self.backbone

    def _stack(self, key: str) -> Any:
        """The backbone's equal blocks; a `ConfigError` for `key` where it has none."""
        blocks = getattr(self.backbone, "blocks", None)
        if not blocks:
            model = getattr(self.backbone, "model", self.backbone)
            fault = f"{type(model).__name__} has no stack of equal blocks"
            raise ConfigError(f"{self.part}.{key}: {fault}; leave it out")
        return blocks

    def _fit(self, backbone: PretrainedBackbone, config: EncoderConfig) -> None:
        """Keep only the parts of a pretrained backbone that are used."""
        if not self.pooling.reads_summary:
            backbone.pooler = None
        if config.activation_checkpointing and self.trains_blocks:
            backbone.recompute_activations(f"{self.part}.activation_checkpointing")

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that come from a pretrained model: those of its backbone but for adapters, and of its head if
        that is kept; all of a tower that comes from another run."""
        if self.comes_from_a_run:
            yield from self.parameters()
        elif isinstance(self.backbone, PretrainedBackbone):
            yield from (parameter for name, parameter in self.backbone.named_parameters() if not is_adapter(name))
            if self.has_own_head:
                yield from self.head.parameters()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            for module in self._frozen_part().modules():
                module.training = False
            for block in getattr(self.backbone, "blocks", None) or ():
                if any(parameter.requires_grad for parameter in block.parameters()):
                    block.train(mode)
        return self

    def forward(self, *inputs: Tensor | None, return_tokens: bool = False) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: of the backbone: images; token ids and their mask; features of sounds and their mask. A mask may be
                None or left out where all is real.
            return_tokens: return the tokens, their mask, and the memory tokens of a tower that has them, too.

        Raises:
            DataError: the inputs have another size than the tower was built for.
        """
        features = self.backbone(*inputs, summary_only=self.pooling.reads_summary and not return_tokens)
        return self.embed(features, return_tokens=return_tokens)

    def embed(self, features: Features, *, return_tokens: bool) -> EncoderOutput:
        """Pool the features of the backbone. Memory tokens take no part and are passed on unchanged."""
        projected = self._project(features)
        pooled = self.head(self.pooling(projected))
        tokens = (projected.tokens, projected.mask, features.memory) if return_tokens else ()
        return EncoderOutput(pooled, *tokens)

    def _project(self, features: Features) -> Features:
        """The features behind the projection, or the latents of the Perceiver, all of which are real."""
        summary = self.projection(features.summary) if self.pooling.reads_summary else None
        tokens = None if features.tokens is None else self.projection(features.tokens)  # nothing beside a Perceiver
        if tokens is not None and features.layout is not None:
            tokens = features.layout.padded(tokens)
        if self.perceiver is not None:
            return Features(tokens=self.perceiver(tokens, features.mask))
        return Features(summary, tokens, features.mask)

    @property
    def sums_up_in_cls(self) -> bool:
        """True if the embedding is made of CLS alone, so that the last block's other outputs are untrained."""
        return isinstance(self.pooling, SummaryPooling) and self.summary == "cls"

    @property
    def has_block_to_spare(self) -> bool:
        """True if the backbone has a stack of more than one block."""
        return len(getattr(self.backbone, "blocks", None) or ()) > 1

    def keep(self, which: PrefixTokens, *, drop_last_block: bool) -> None:
        """Make this a tower for `read` only: the parts that make its embedding are dropped.

        Args:
            which: the tokens that will be read.
            drop_last_block: read the tokens as they are before the backbone's last block.

        Raises:
            ConfigError: the tower has no such tokens, or a single block.
        """
        if which == "perceiver" and self.perceiver is None:
            raise ConfigError("decoder.prefix: perceiver, but the image tower has none; use tokens")
        if which == "cls_patches":
            self._check_cls()
        if which == "memory" and getattr(self.backbone, "memory", None) is None:
            raise ConfigError("decoder.prefix: memory, but the image tower has no memory tokens; use tokens")
        if drop_last_block:
            if not self.has_block_to_spare:
                fault = "the tower has a single block"
                if isinstance(self.backbone, PretrainedBackbone):
                    fault = f"{type(self.backbone.model).__name__} has no block to spare"
                raise ConfigError(f"decoder.prefix_layer: {fault}; use last")
            del self.backbone.blocks[-1]
        self.kept = which
        if which != "perceiver":
            self.perceiver = None
        if which in ("perceiver", "memory"):
            self.projection = nn.Identity()
        self.attention_pooling = MeanPooling()  # without weights, and reads no summary
        self.head = nn.Identity()
        if isinstance(self.backbone, PretrainedBackbone):
            self.backbone.pooler = None

    def _check_cls(self) -> None:
        """Refuse the class token where there is none, or none that stands for the image."""
        is_pretrained = isinstance(self.backbone, PretrainedBackbone)
        if self.summary != "cls":
            name = type(self.backbone.model if is_pretrained else self.backbone).__name__
            raise ConfigError(f"decoder.prefix: cls_patches, but {name} has no class token; use tokens")
        if self.is_frozen_whole and not (is_pretrained or self.sums_up_in_cls):
            fault = (
                "cls_patches, but the embedding of the image tower is not made of its class token, which is untrained"
            )
            raise ConfigError(f"decoder.prefix: {fault}; use tokens, or set vision_encoder.freeze=false")

    def read(self, *inputs: Tensor | None) -> EncoderOutput:
        """The tokens that `keep` has chosen, with their mask, for a language model; `pooled` is empty. Inputs are those
        of `forward`."""
        return self._chosen(self.backbone(*inputs))

    def stages(self, use: Use) -> list[Stage]:
        """The computation of `forward` or `read`, step by step; the result is an `EncoderOutput`."""
        summary_only = self.pooling.reads_summary and use == "embedding"
        projecting = tuple(module for module in (self.perceiver, self.projection) if module is not None)
        stages: list[Stage] = [
            ((self.backbone,), partial(self.backbone, summary_only=summary_only)),
            ((), partial(self._needed, use=use)),
        ]
        match use:
            case "embedding":
                pooled: list[Stage] = [((self.pooling,), self.pooling), ((self.head,), self.head)]
                return [*stages, (projecting, self._project), *pooled, ((), EncoderOutput)]
            case "embedding and tokens":
                behind = (*projecting, self.pooling, self.head)
                return [*stages, (behind, partial(self.embed, return_tokens=True))]
            case "tokens":
                return [*stages, (projecting, self._chosen)]

    def _needed(self, features: Features, use: Use) -> Features:
        """The features without those that no later stage reads."""
        if use == "tokens" and self.kept == "memory":
            return Features(memory=features.memory)
        reads_summary = self.kept == "cls_patches" if use == "tokens" else self.pooling.reads_summary
        summary = features.summary if reads_summary else None
        tokens = None if use == "embedding" and self.pooling.reads_summary else features.tokens
        memory = features.memory if use == "embedding and tokens" else None
        return Features(summary, tokens, features.mask, memory, features.layout)

    def _chosen(self, features: Features) -> EncoderOutput:
        if self.kept == "cls_patches":
            assert features.summary is not None
            assert features.tokens is not None
            features.tokens = torch.cat([features.summary.unsqueeze(1), features.tokens], dim=1)
        kept = Features(tokens=features.memory) if self.kept == "memory" else self._project(features)
        assert kept.tokens is not None
        return EncoderOutput(kept.tokens.new_zeros(len(kept.tokens), 0), kept.tokens, kept.mask)


def build_projection(kind: Literal["mlp", "linear", "none"], dim: int) -> nn.Module:
    """A map of each token by itself, (..., D) -> (..., D): `mlp` has one hidden layer of width D."""
    match kind:
        case "mlp":
            return MLP(dim, dim)
        case "linear":
            return init_linear(nn.Linear(dim, dim), std=dim**-0.5)
        case "none":
            return nn.Identity()
