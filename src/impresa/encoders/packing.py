"""Texts of a contrastive batch without their padding: which tokens are read, and pretrained towers that compute several
texts in a row.

Letters of shapes: B texts, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from impresa.encoders.pretrained import PretrainedBackbone
from impresa.errors import ConfigError
from impresa.layers.rows import Rows, same_sequence

KEY = "optimization.packing"
_TRIAL = 1e-4
"""Largest relative difference of packed texts that is rounding, in float32."""


def tokens_up_to(end: Tensor, mask: Tensor | None, size: int, *, summary_only: bool) -> Tensor:
    """(B, T) bool, the tokens of causal texts that are read: those up to the end token, at `end` (B,), and unless
    `summary_only` those up to the last that is real. `size` is T; without a mask every token is real."""
    columns = torch.arange(size, device=end.device)
    last = end
    if not summary_only:
        last = columns[-1:] if mask is None else torch.where(mask.bool(), columns, 0).amax(dim=1).maximum(end)
    return (columns <= last[:, None]).expand(len(end), size)


class PackableText(PretrainedBackbone):
    """A text tower of transformers that can compute several texts in a row, each of which sees itself alone."""

    is_causal = False
    packing = False
    first_position = 0
    """The position of a text's first token: RoBERTa counts from behind that of its padding."""

    @property
    def packs(self) -> bool:
        return self.packing and torch.is_grad_enabled()

    def pack(self, packing: bool) -> None:
        """In training, pack the texts of a batch into rows, or not.

        Raises:
            ConfigError: the model computes them otherwise than each alone.
        """
        if packing and not self.packing:
            self.first_position = self._first_position()
        self.packing = packing

    def packed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T, D) of texts (B, T), computed where `mask` (B, T) bool is true and zero elsewhere."""
        most = self.model.config.max_position_embeddings - self.first_position
        rows = Rows.of(mask, dim=self.dim, most=most)
        visible = same_sequence(rows.position_ids)
        if self.is_causal:
            visible = visible.tril()
        dtype = self.model.dtype
        bias = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(~visible, torch.finfo(dtype).min)
        positions = rows.position_ids + self.first_position
        found: Any = self.model(rows.joined(input_ids), attention_mask=bias, position_ids=positions)
        return rows.spread(found.last_hidden_state)

    def _first_position(self) -> int:
        """Found by computing two short texts in one row."""
        config, fault = self.model.config, "computes several texts in one row otherwise than each alone"
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - {"full_attention"}:
            raise ConfigError(f"{KEY}: a {config.model_type} text tower attends to windows; leave it out")
        ids = torch.arange(10, 20).view(2, 5) % config.vocab_size
        mask = torch.arange(5) < torch.tensor([[5], [3]])
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                alone = self.model(ids, attention_mask=mask.long()).last_hidden_state[mask]
                for first in (0, (config.pad_token_id or 0) + 1):
                    self.first_position = first
                    if (alone - self.packed(ids, mask)[mask]).norm() <= _TRIAL * alone.norm():
                        return first
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            fault = f"cannot compute several texts in one row ({str(error).splitlines()[0][:100]})"
        finally:
            for module, mode in modes.items():
                module.training = mode
        raise ConfigError(f"{KEY}: a {config.model_type} text tower {fault}; leave it out")
