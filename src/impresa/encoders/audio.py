"""The audio encoder, and its backbone from scratch: a transformer over patches of log-mel features.

Letters of shapes: B batch, F frames, M mel bins, N patches, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.encoder import EncoderConfig, is_from_scratch
from impresa.encoders.output import Features
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_audio import load_audio_backbone
from impresa.encoders.tower import Tower
from impresa.encoders.transformer import Transformer
from impresa.errors import ConfigError, DataError
from impresa.layers.init import drawn, init_linear


class SpectrogramTransformer(nn.Module):
    """Log-mel features to patch features, after AST (Gong et al. 2021, arXiv:2104.01778): no overlap, no CLS, pre-norm.

    A patch is real when any of its frames is; no other patch is ever read. A position is the sum of one embedding for
    time and one for pitch.

    Args:
        config: the tower's settings; `patch_size` is the side of a patch in frames and in mel bins.
        num_mels: M, a multiple of `config.patch_size`.
        max_frames: frames of the longest clip.
    """

    def __init__(self, config: EncoderConfig, *, num_mels: int, max_frames: int) -> None:
        super().__init__()
        side = config.patch_size
        if num_mels % side:
            raise ConfigError(f"audio_encoder.patch_size: {side} does not divide the {num_mels} mel bins; 16 does")
        self.dim, self.summary = config.dim, None
        self.patch_size, self.num_mels, self.max_frames = side, num_mels, max_frames
        std = config.dim**-0.5
        self.patch_embedding = init_linear(nn.Linear(side**2, config.dim), std=1 / side)
        self.times = nn.Parameter(drawn(-(-max_frames // side), 1, config.dim, std=std))
        self.pitches = nn.Parameter(drawn(num_mels // side, config.dim, std=std))
        self.dropout = nn.Dropout(config.drop_rate)
        self.transformer = Transformer(config)

    def forward(self, audio: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        """Encode features (B, F, M); `mask` (B, F) bool is true on real frames, None for everywhere."""
        num_frames, num_mels = audio.shape[1:]
        if num_frames > self.max_frames or num_mels != self.num_mels:
            fault = f"{num_frames} frames of {num_mels} bins do not fit the tower"
            raise DataError(f"audio: {fault}; cut them to {self.max_frames} frames of {self.num_mels} bins")
        if mask is not None:
            audio = audio.masked_fill(~mask.unsqueeze(-1), 0.0)  # patches may hold real frames and padding
        grid = self._patches(audio)  # (B, times, pitches, D)
        x = self.dropout((grid + self.times[: grid.shape[1]] + self.pitches).flatten(1, 2))
        real = None if mask is None else self._real_patches(mask)
        return Features(tokens=self.transformer(x, mask=real), mask=real)

    def _patches(self, audio: Tensor) -> Tensor:
        side = self.patch_size
        padded = F.pad(audio, (0, 0, 0, -audio.shape[1] % side))
        grid = padded.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, times, side, pitches, side)
        return self.patch_embedding(grid.transpose(2, 3).flatten(3))

    def _real_patches(self, mask: Tensor) -> Tensor:
        times = F.pad(mask, (0, -mask.shape[1] % self.patch_size)).unflatten(1, (-1, self.patch_size)).any(dim=2)
        return times.repeat_interleave(self.num_mels // self.patch_size, dim=1)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks


class AudioEncoder(Tower):
    """Sounds to embeddings (B, E) by our transformer over log-mel patches or a pretrained tower: features (B, F, M) and
    their mask (B, F) bool, true on real frames.

    Args:
        config: the tower's settings; `embed_dim` is E, and D is `dim` or the pretrained tower's width.
        num_mels: M, mel bins of our features; a pretrained tower has its own.
        max_frames: frames of the longest clip in our features.
        load_weights: false builds a pretrained tower without its weights, for those that a run has stored.
    """

    part = "audio_encoder"
    backbone: SpectrogramTransformer | PretrainedBackbone

    def __init__(self, config: EncoderConfig, *, num_mels: int, max_frames: int, load_weights: bool = True) -> None:
        if is_from_scratch("audio", config):
            super().__init__(config, SpectrogramTransformer(config, num_mels=num_mels, max_frames=max_frames))
        else:
            super().__init__(config, load_audio_backbone(config.backbone, load_weights=load_weights))
