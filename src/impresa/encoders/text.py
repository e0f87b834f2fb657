"""The text encoder, and its backbones from scratch: CLIP's causal transformer (Radford et al. 2021, arXiv:2103.00020),
and a bag of words.

Letters of shapes: B batch, T tokens, S tokens of all texts laid end to end, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from impresa.config.encoder import EncoderConfig, is_from_scratch
from impresa.encoders.output import Features
from impresa.encoders.packing import KEY, PackableText, tokens_up_to
from impresa.encoders.pooling import mean_pool
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_text import load_text_backbone
from impresa.encoders.tower import Tower
from impresa.encoders.transformer import Transformer
from impresa.errors import ConfigError, DataError
from impresa.layers.end_to_end import EndToEnd
from impresa.layers.init import drawn


class TextTransformer(nn.Module):
    """Token ids to token features; causal, so that padding on the right changes nothing and needs no mask.

    Args:
        config: the tower's settings.
        vocab_size: rows of the token table.
        end_id: id of the end token, whose first occurrence is the summary of a text.
    """

    def __init__(self, config: EncoderConfig, vocab_size: int, end_id: int) -> None:
        super().__init__()
        self.dim, self.summary = config.dim, "eot"
        self.end_id, self.packing = end_id, False
        self.token_embedding = nn.Embedding(vocab_size, config.dim)
        self.positions = nn.Parameter(drawn(config.max_len, config.dim, std=0.01))
        self.dropout = nn.Dropout(config.drop_rate)
        self.transformer = Transformer(config, causal=True)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        """Encode texts (B, T) int64, padded on the right, T at most `max_len`; `mask` (B, T) bool is only passed on.

        With `summary_only` the last block computes the end tokens alone.
        """
        length, longest = input_ids.shape[1], len(self.positions)
        if length > longest:
            fault = f"{length} tokens, but the text tower reads {longest}"
            raise DataError(f"input_ids: {fault}; truncate or raise max_len")
        end = (input_ids == self.end_id).int().argmax(dim=1)
        if self.packing and torch.is_grad_enabled():
            return self._packed(input_ids, mask, end, summary_only)
        x = self.dropout(self.token_embedding(input_ids) + self.positions[:length])
        if summary_only:
            return Features(summary=self.transformer(x, only=end).squeeze(1))
        x = self.transformer(x)
        return Features(summary=x[torch.arange(x.shape[0], device=x.device), end], tokens=x, mask=mask)

    def _packed(self, input_ids: Tensor, mask: Tensor | None, end: Tensor, summary_only: bool) -> Features:
        """`forward` without the tokens behind each text's last, or with `summary_only` behind its end token, which
        nobody reads."""
        layout = EndToEnd.of(tokens_up_to(end, mask, input_ids.shape[1], summary_only=summary_only))
        x = self.dropout(self.token_embedding(layout.laid(input_ids)) + self.positions[layout.column])
        if summary_only:
            return Features(summary=self.transformer(x, only=end, layout=layout).squeeze(1))
        x = self.transformer(x, layout=layout)
        return Features(summary=x[layout.start + end], tokens=x, mask=mask, layout=layout)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks


class BagOfWords(nn.Module):
    """Token ids to token features that know nothing of each other; the summary of a text is their mean, so that the
    order of its words is not seen. `projection: mlp` after the summary is what relates words to each other.

    Args:
        config: the tower's settings.
        vocab_size: rows of the token table.
    """

    def __init__(self, config: EncoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.dim, self.summary, self.packing = config.dim, "own", False
        self.token_embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.drop_rate)
        self.norm = nn.LayerNorm(config.dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        """Encode texts (B, T) int64 of any length; `mask` (B, T) bool is true where a token is real."""
        if self.packing and mask is not None and torch.is_grad_enabled():
            layout = EndToEnd.of(mask.bool())
            x = self.dropout(self.token_embedding(layout.laid(input_ids)))
            summary = self.norm(layout.sums(x) / mask.sum(dim=1, keepdim=True).clamp(min=1))
            return Features(summary) if summary_only else Features(summary, self.norm(x), mask, layout=layout)
        x = self.dropout(self.token_embedding(input_ids))
        summary = self.norm(mean_pool(x, mask))
        return Features(summary) if summary_only else Features(summary, self.norm(x), mask)


class TextEncoder(Tower):
    """Texts to embeddings (B, E) by a backbone of ours or a pretrained tower: token ids (B, T) int64, padded on the
    right and computed as long as they are given, and their mask (B, T) bool.

    Args:
        config: the tower's settings; `embed_dim` is E, and D is `dim` or the pretrained tower's width.
        vocab_size: rows of our token table, the tokenizer's own size; a pretrained tower has its own.
        end_id: id of the end token, for our transformer; every text has one.
        load_weights: false builds a pretrained tower without its weights, for those that a run has stored.
    """

    part = "text_encoder"
    backbone: TextTransformer | BagOfWords | PretrainedBackbone

    def __init__(self, config: EncoderConfig, vocab_size: int, end_id: int, *, load_weights: bool = True) -> None:
        if config.backbone == "bag":
            super().__init__(config, BagOfWords(config, vocab_size))
        elif is_from_scratch("text", config):
            super().__init__(config, TextTransformer(config, vocab_size, end_id))
        else:
            backbone = load_text_backbone(config.backbone, load_weights=load_weights)
            if config.pooling == "cls" and backbone.has_cls:
                backbone.summary = "cls"
            super().__init__(config, backbone)

    def pack(self, packing: bool) -> None:
        """In training, compute no padding of texts (`optimization.packing`), or do.

        Raises:
            ConfigError: the tower is a pretrained one that would compute them otherwise.
        """
        if isinstance(self.backbone, PackableText):
            self.backbone.pack(packing)
        elif not isinstance(self.backbone, PretrainedBackbone):
            self.backbone.packing = packing
        elif packing:
            fault = "the text tower was trained on padded texts, whose padding every token sees"
            raise ConfigError(f"{KEY}: {fault}; leave it out")
