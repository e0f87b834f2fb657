"""The image encoder, and its first backbone from scratch: the Vision Transformer (Dosovitskiy et al. 2021,
arXiv:2010.11929), pre-norm, with CLS and optional memory tokens.

Letters of shapes: B batch, S image side in pixels, N patches, M memory tokens, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.encoder import EncoderConfig, is_from_scratch
from impresa.encoders.convolution import ConvNet, ConvStem, check_size, num_cells
from impresa.encoders.memory import MemoryTokens
from impresa.encoders.output import Features, Layout
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_vision import load_vision_backbone
from impresa.encoders.tower import Tower
from impresa.encoders.transformer import Transformer
from impresa.layers.init import drawn


class PatchEmbedding(nn.Linear):
    """A linear map of each patch: (B, 3, S, S) -> (B, N, D), patches in reading order.

    It is the convolution with kernel and stride `patch_size`, written as one matrix product (faster on a CPU); its
    weight is the convolution's, flattened to (D, 3 * patch_size ** 2).
    """

    def __init__(self, patch_size: int, dim: int, *, bias: bool) -> None:
        super().__init__(3 * patch_size**2, dim, bias=bias)
        self.patch_size = patch_size

    def forward(self, image: Tensor) -> Tensor:
        side = image.shape[-1] // self.patch_size
        grid = image.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # (B, 3, rows, p, columns, p)
        return super().forward(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class PatchDropout(nn.Module):
    """In training a random part of each image's patches, in evaluation all (FLIP, Li et al. 2023, arXiv:2212.00794).

    The others leave the sequence, so that the blocks have less to compute. The draws come from torch's generator.

    Args:
        rate: the share that is left out, rounded up; one patch stays at least.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def num_kept(self, num_patches: int) -> int:
        return max(int(round(num_patches * (1 - self.rate), 6)), 1)  # rounded, for 100 * (1 - 0.9) is below 10

    def forward(self, x: Tensor) -> Tensor:
        """CLS and patches (B, 1 + N, D) to CLS and the kept patches, in reading order."""
        if not self.training or self.rate == 0:
            return x
        num_patches = x.shape[1] - 1
        shuffled = torch.rand(len(x), num_patches, device=x.device).argsort(dim=1)
        kept = shuffled[:, : self.num_kept(num_patches)].sort(dim=1).values
        return x.take_along_dim(F.pad(kept + 1, (1, 0)).unsqueeze(-1), dim=1)


class VisionTransformer(nn.Module):
    """Images to patch features.

    The sequence is CLS, patches; memory tokens come between the two (`prepend`) or at the end (`append`) and have no
    position embedding. They read the patches before the first block. `patch_dropout` acts before both.

    Args:
        config: the tower's settings.
        image_size: S, a multiple of `config.patch_size`.
    """

    def __init__(self, config: EncoderConfig, image_size: int) -> None:
        super().__init__()
        self.dim, self.summary = config.dim, "cls"
        self.image_size, self.num_patches = image_size, num_cells(image_size, config.patch_size)
        std = config.dim**-0.5
        self.patch_embedding: nn.Module
        if config.stem == "conv":
            self.patch_embedding = ConvStem(config)
        else:
            self.patch_embedding = PatchEmbedding(config.patch_size, config.dim, bias=config.patch_bias)
        self.cls = nn.Parameter(drawn(config.dim, std=std))
        self.positions = nn.Parameter(drawn(1 + self.num_patches, config.dim, std=std))
        self.dropout = nn.Dropout(config.drop_rate)
        self.patch_dropout = PatchDropout(config.patch_dropout)
        self.pre_norm = nn.LayerNorm(config.dim) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(config)
        self.prepends = config.memory.memory_position == "prepend"
        self.memory = MemoryTokens(config.memory, config.dim, config.num_heads) if config.memory.enabled else None

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        """Encode normalised images (B, 3, S, S). With `summary_only` the last block computes CLS alone."""
        x = self._read(image)
        if self.memory is not None:
            memory = self.memory(x[:, 1:])
            x = torch.cat([x[:, :1], memory, x[:, 1:]] if self.prepends else [x, memory], dim=1)
        if summary_only:
            first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            return Features(summary=self.transformer(x, only=first).squeeze(1))
        return self._split(self.transformer(x))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks

    @property
    def layout(self) -> Layout:
        """CLS, then memory tokens and patches in the order of `memory_position`."""
        num_memory = 0 if self.memory is None else len(self.memory.tokens)
        return self._layout(1 + num_memory + self.num_patches)

    def _layout(self, length: int) -> Layout:
        if self.memory is None:
            return Layout(slice(1, length), 0)
        num_memory = len(self.memory.tokens)
        border = 1 + num_memory if self.prepends else length - num_memory
        first, second = slice(1, border), slice(border, length)
        return Layout(second, 0, first) if self.prepends else Layout(first, 0, second)

    @torch.no_grad()
    def start_memory(self, image: Tensor) -> None:
        """Let the memory start from these images, where it still has to start from those of the first batch."""
        if self.memory is not None and self.memory.awaits_start:
            self.memory.start_from(self._read(image)[:, 1:])

    def _read(self, image: Tensor) -> Tensor:
        """CLS and those patches that are not left out."""
        check_size(image, self.image_size)
        return self.patch_dropout(self._embed(image))

    def _embed(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image)
        cls = self.cls.expand(patches.shape[0], 1, -1)
        return self.pre_norm(self.dropout(torch.cat([cls, patches], dim=1) + self.positions))

    def _split(self, x: Tensor) -> Features:
        layout = self._layout(x.shape[1])
        memory = None if layout.memory is None else x[:, layout.memory]
        return Features(summary=x[:, 0], tokens=x[:, layout.patches], memory=memory)


class VisionEncoder(Tower):
    """Images (B, 3, S, S) to embeddings (B, E) by our ViT, our convolutional net or a pretrained tower; the tokens are
    the patches, or cells, not CLS.

    Args:
        config: the tower's settings; `embed_dim` is E, and D is `dim` or the pretrained tower's width.
        image_size: S, side of the square images in pixels.
        load_weights: false builds a pretrained tower without its weights, for those that a run has stored.
    """

    part = "vision_encoder"
    backbone: VisionTransformer | ConvNet | PretrainedBackbone

    def __init__(self, config: EncoderConfig, image_size: int, *, load_weights: bool = True) -> None:
        if is_from_scratch("image", config):
            super().__init__(
                config, (ConvNet if config.backbone == "convnet" else VisionTransformer)(config, image_size)
            )
        else:
            super().__init__(config, load_vision_backbone(config.backbone, image_size, load_weights=load_weights))

    def start_memory(self, image: Tensor) -> None:
        """See `VisionTransformer.start_memory`; for a batch (B, 3, S, S) that is encoded in parts afterwards."""
        if isinstance(self.backbone, VisionTransformer):
            self.backbone.start_memory(image)

    def commit(self, step: int) -> None:
        """Update the memory's state after optimizer step number `step` (from 1); see `MemoryTokens.commit`."""
        memory = self.backbone.memory if isinstance(self.backbone, VisionTransformer) else None
        if memory is not None and not self.is_frozen:
            memory.commit(step)
