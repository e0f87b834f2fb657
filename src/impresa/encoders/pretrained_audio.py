"""Pretrained audio towers: Whisper's encoder, CLAP and AST.

All take features (B, F, M) of their own preprocessing, of a fixed number of frames, and a mask (B, F) bool, true on
frames that are not padding. They were trained to see the padding; the mask only says which tokens are pooled.

Letters of shapes: B batch, F frames, M mel bins, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from impresa.encoders.output import Features
from impresa.encoders.pretrained import Family, PretrainedBackbone, load_backbone

KEY = "audio_encoder.backbone"


class WhisperAudio(PretrainedBackbone):
    """Whisper's encoder (Radford et al. 2022), one token for two frames; it has no summary."""

    blocks_name = "layers"

    def __init__(self, model: Any) -> None:
        super().__init__(model.encoder, dim=model.config.d_model, summary=None)

    def forward(self, audio: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        tokens = self.model(audio.transpose(1, 2)).last_hidden_state
        return Features(tokens=tokens, mask=None if mask is None else mask.unflatten(1, (-1, 2)).any(dim=2))


class ClapAudio(PretrainedBackbone):
    """CLAP's HTS-AT (Wu et al. 2023); its summary is the mean of its tokens.

    Clips are cut to its length beforehand, so that its fusion of several crops of a longer clip is unused and left out.
    Short clips are repeated by its preprocessing: nothing is masked.
    """

    def __init__(self, model: Any) -> None:
        tower = getattr(model, "audio_model", model).audio_encoder
        super().__init__(tower, dim=tower.num_features, summary="own")
        self.head = getattr(model, "audio_projection", None)
        if tower.enable_fusion:
            tower.enable_fusion = tower.patch_embed.enable_fusion = False
            del tower.patch_embed.fusion_model, tower.patch_embed.mel_conv2d

    def forward(self, audio: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        out = self.model(audio.unsqueeze(1))
        return Features(out.pooler_output, None if summary_only else out.last_hidden_state.flatten(2).transpose(1, 2))


class ASTAudio(PretrainedBackbone):
    """The Audio Spectrogram Transformer (Gong et al. 2021); its summary is the mean of its two special tokens."""

    blocks_name = "layers"

    def __init__(self, model: Any) -> None:
        super().__init__(model, dim=model.config.hidden_size, summary="own")

    def forward(self, audio: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        out = self.model(audio)
        real = None if mask is None else self._real_patches(mask)
        return Features(out.pooler_output, None if summary_only else out.last_hidden_state[:, 2:], real)

    def _real_patches(self, mask: Tensor) -> Tensor:
        """Patches overlap and stand in rows of equal pitch; one is real when any of its frames is."""
        config = self.model.config
        times = mask.unfold(1, config.patch_size, config.time_stride).any(dim=2)
        num_pitches = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return times.repeat(1, num_pitches)


FAMILIES: dict[str, Family] = {
    "whisper": WhisperAudio,
    "clap": ClapAudio,
    "clap_audio_model": ClapAudio,
    "audio-spectrogram-transformer": ASTAudio,
}


def load_audio_backbone(name: str, *, load_weights: bool = True) -> PretrainedBackbone:
    """The audio tower of a pretrained model by Hugging Face id or path; arguments and errors: see `load_backbone`."""
    known = "Whisper, CLAP or AST"
    return load_backbone(name, FAMILIES.get, key=KEY, modality="sound", known=known, load_weights=load_weights)
