"""Attention of an image tower, as maps over the patches.

Letters of shapes: H heads, L length of the sequence, N patches, M memory tokens or latents, P prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from impresa.encoders.convolution import ConvNet
from impresa.encoders.output import Layout
from impresa.encoders.pooling import AttentionPooling
from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionTransformer
from impresa.errors import ConfigError
from impresa.fusion import Fusion
from impresa.inside.explanation import Bars, Maps, Method, Section, tiles_of
from impresa.layers.perceiver import PerceiverStack
from impresa.layers.recording import Recorded, weights_within


def rollout(layers: list[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928): how much of each input token is in every output
    token, where each layer passes on half of a token itself and half of what it reads.

    Args:
        layers: weights (L, L) of each layer from first to last, rows adding up to one.

    Returns:
        (L, L), rows adding up to one.
    """
    own = torch.eye(len(layers[0]), device=layers[0].device)
    total = own
    for weights in layers:
        total = (weights + own) / 2 @ total
    return total


class SeenByTower:
    """Maps of where the tokens of a tower looked in the first image of a recorded forward pass.

    Args:
        tower: the image tower, whose tokens were asked for in that pass.
        recorded: the weights of the pass.
        method: how they are read.

    Raises:
        ConfigError: the tower's library gives no weights away.
    """

    def __init__(self, tower: Tower, recorded: Recorded, method: Method) -> None:
        self.tower, self.recorded, self.method = tower, recorded, method
        layout: Layout | None = tower.backbone.layout
        blocks = [weights_within(recorded, block) for block in tower.backbone.blocks or ()]
        layers = [_mean(weights[0]) for weights in blocks if weights]
        if layout is None or not layers:
            name = type(getattr(tower.backbone, "model", tower.backbone)).__name__
            fault = f"the attention of {name} cannot be shown, its library does not give the weights away"
            if isinstance(tower.backbone, ConvNet):
                fault = "a convnet has no attention to show"
            raise ConfigError(f"vision_encoder.backbone: {fault}; a vit, CLIP, SigLIP or DINOv2 tower does")
        self.layout = layout
        self.sequence = rollout(layers) if method == "rollout" else layers[-1]
        """(L, L)."""

    @property
    def patches(self) -> Tensor:
        """(N, N), what the patches' tokens stand for: themselves, or their inputs by rollout."""
        found = self.sequence[self.layout.patches, self.layout.patches]
        return found if self.method == "rollout" else torch.eye(len(found), device=found.device)

    @property
    def cls(self) -> Tensor:
        """(1, N), of a tower with CLS."""
        assert self.layout.cls is not None
        return self.sequence[self.layout.cls, self.layout.patches][None]

    @property
    def memory(self) -> Tensor:
        """(M, N), of a tower with memory tokens."""
        assert self.layout.memory is not None
        return self.sequence[self.layout.memory, self.layout.patches]

    @property
    def latents(self) -> Tensor:
        """(M, N), of a tower with a Perceiver."""
        assert self.tower.perceiver is not None
        return self.read_by(self.tower.perceiver, self.patches)

    def read_by(self, stack: PerceiverStack, tokens: Tensor) -> Tensor:
        """Where the latents (M) of a stack looked, (M, N), when its tokens stand for (T, N)."""
        layers = [_mean(weights_within(self.recorded, layer)[0]) for layer in stack.layers]  # (M, T + M) each
        num = len(tokens)
        if self.method == "last":
            return layers[-1][:, :num] @ tokens
        latents = torch.zeros(len(layers[0]), tokens.shape[1], device=tokens.device)
        for weights in layers:
            latents = (weights[:, :num] @ tokens + weights[:, num:] @ latents + latents) / 2
        return latents / latents.sum(dim=1, keepdim=True)

    def prefix(self, fusion: Fusion) -> Tensor:
        """(P, N), what the tokens of a prefix made of this image alone stand for."""
        if self.tower.kept == "memory":
            tokens = self.memory
        elif self.tower.kept == "cls_patches":
            tokens = torch.cat([self.cls, self.patches])
        else:
            tokens = self.patches if self.tower.perceiver is None else self.latents
        reader = getattr(fusion, "reader", None)
        return tokens if reader is None else self.read_by(reader, tokens)

    def pooled(self) -> Maps | None:
        """The map of the query that makes the embedding, if there is one."""
        pooling, pooler = self.tower.pooling, getattr(self.tower.backbone, "pooler", None)
        query: nn.Module | None = pooling if isinstance(pooling, AttentionPooling) else pooler
        if query is None:
            return None
        row = _mean(weights_within(self.recorded, query)[0]) @ self.patches
        return Maps("Pooling query", "The embedding is what it reads.", tiles_of("query", row))

    def sections(self) -> list[Section]:
        """All that a tower has to show, first what its embedding is made of."""
        found: list[Section] = []
        if pooled := self.pooled():
            found.append(pooled)
        if self.tower.perceiver is not None:
            note = "Each latent of the Perceiver reads the patches; the embedding is the mean of all latents."
            found.append(Maps("Perceiver latents", note, tiles_of("latent", self.latents)))
        if self.layout.cls is not None:
            use = "is" if self.tower.sums_up_in_cls else "is not"
            found.append(Maps("CLS", f"The embedding {use} made of it.", tiles_of("CLS", self.cls)))
        return found + self._memory_sections()

    def _memory_sections(self) -> list[Section]:
        backbone = self.tower.backbone
        memory = backbone.memory if isinstance(backbone, VisionTransformer) else None
        if memory is None:
            return []
        found: list[Section] = []
        if first := weights_within(self.recorded, memory):
            note = "Memory tokens read the patches once before the first layer, and move by it."
            found.append(Maps("Memory, as it reads", note, tiles_of("memory", _mean(first[0]))))
        by = "followed through all layers" if self.method == "rollout" else "in the last layer"
        found.append(Maps("Memory, as it looks", f"Memory tokens on patches {by}.", tiles_of("memory", self.memory)))
        onto = self.sequence[self.layout.patches, self.layout.memory].mean(dim=0)
        note = f"Share of a patch's attention that each memory token gets {by}, mean of all patches; "
        note += f"even would be {1 / len(self.sequence):.1%}."
        shares = {f"memory {i + 1}": float(share) for i, share in enumerate(onto)}
        return [*found, Bars("Patches on memory", note, shares)]


def _mean(weights: Tensor) -> Tensor:
    """(B, H, Q, N) to (Q, N): the first row of the batch, the mean of its heads."""
    return weights[0].mean(dim=0)
