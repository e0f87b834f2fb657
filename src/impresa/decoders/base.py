"""The interface of all decoders: a prefix of embeddings before a text, a loss on the answer, and generated text.

Joining prefix and text, the mask, the positions, the one shift of the labels and generation are the same for all.

Letters of shapes: B batch, P prefix, T text, S = P + T, H hidden width, V vocabulary, R supervised tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.config.decoder import DecoderConfig, GenerationConfig
from impresa.decoders.context import CausalContext, SharedPast
from impresa.errors import ConfigError, DataError
from impresa.layers.rows import Rows
from impresa.layers.state import trained_state

IGNORED = -100
"""Label of a token that is not supervised."""


@dataclass
class DecoderOutput:
    """Loss, logits and hidden states of a batch."""

    loss: Tensor | None
    """Scalar, float32: the mean over the supervised tokens of this batch; None without labels."""
    logits: Tensor | None
    """(B, P + T, V); None with labels, unless asked for."""
    hidden: Tensor
    """(B, P + T, H), which the LM head reads; anything at padding. With labels, and without logits
    asked for, they are right only where the next token is supervised: see `Decoder.run_at`."""
    hits: Tensor | None = None
    """(B,) bool, true where each supervised token of the row is the likeliest one; None without labels, and in
    training."""
    row_losses: Tensor | None = None
    """(B,) float32, the loss of each row summed over its supervised tokens; None as `hits` is."""


class Decoder(nn.Module, ABC):
    """A causal language model behind a prefix.

    A subclass sets `hidden_size` (H), implements `embed`, `run` and `head`, and is listed in `impresa.decoders.kinds`.
    """

    hidden_size: int
    can_share_prefixes: bool = False
    """`run` takes a `SharedPast`, so that a prefix is read once for all texts behind it."""
    packing: bool = False
    """In training, compute several short samples as one row (`optimization.packing`)."""
    longest_row: int | None = None
    """Tokens of the longest row that the network can compute; None for any."""

    @classmethod
    def is_stored_by_name(cls, config: DecoderConfig) -> bool:
        """True if a run stores the language model by name alone: it is pretrained, and nothing in it is trained."""
        return False

    @property
    def architecture(self) -> Any:
        """The transformers configuration of a pretrained language model, else None."""
        return None

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The stack of blocks that positions pass one after the other, each once; empty where there is none."""
        return ()

    def state_to_save(self) -> dict[str, Tensor]:
        """The part of the state dict that a run stores: all that is trained, and its buffers."""
        return trained_state(self)

    def full_precision_parameters(self) -> Iterator[Tensor]:
        """Parameters and buffers that stay float32 in a model of 16 bits, which would round small steps away."""
        return iter(())

    def check_prefix(self, num_tokens: int, *, has_gaps: bool = False) -> None:
        """Refuse prefixes of so many tokens (`ConfigError`), if the model has no positions for them and a text, or is
        to pack samples that it would compute otherwise. `has_gaps`: masked tokens may stand behind real ones."""
        return

    def check_packing(self) -> None:
        """Refuse packing, if several texts in a row would not be computed as each alone (`ConfigError`)."""
        return

    @abstractmethod
    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, T) -> embeddings (B, T, H)."""

    @abstractmethod
    def run(self, embeds: Tensor, context: CausalContext) -> tuple[Tensor, ...]:
        """The network without its LM head, which adds keys and values to the cache of `context`.

        Embeddings (B, S, H) become hidden states (B, S, H), one tensor after each round of deep supervision, of which
        the last is the answer; a decoder without deep supervision returns one.
        """

    def run_at(self, embeds: Tensor, context: CausalContext, read: Tensor) -> tuple[Tensor, ...]:
        """`run` when only the hidden states where `read` (B, S) bool is true are used: the others may be anything.

        A decoder that can save work by it overrides this, with the same values and gradients where `read` is true.
        """
        return self.run(embeds, context)

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) -> logits (..., V)."""

    @property
    def causal_lm(self) -> Any:
        """This decoder as a transformers model that can generate, a new shell around the same weights."""
        from impresa.decoders.generation import CausalLM

        return CausalLM(self)

    def forward(  # noqa: PLR0917 - names and order are those of the spec's interface
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prefix_embeds: Tensor,
        labels: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        return_logits: bool = False,
        prefix_of_row: Tensor | None = None,
    ) -> DecoderOutput:
        """Read prefix and text; with labels, the loss of the answer.

        Position i predicts the token at i + 1, so that the last prefix position predicts the first token of the text.
        Masked positions predict nothing: the real one before them does. With labels the LM head runs only where the
        next token is supervised.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) bool or int, true where a token is real.
            prefix_embeds: (B, P, H), before the whole text; P may be 0.
            labels: (B, T) int64, the token ids with `IGNORED` where a token is not supervised.
            prefix_mask: (B, P) bool, true where a prefix token is real. None: everywhere.
            return_logits: with labels, compute the logits of all positions too.
            prefix_of_row: (B,) int64, the index of each text's prefix among I of them; `prefix_embeds` is (I, P, H)
                then, and `prefix_mask` (I, P). A decoder may read a prefix once for all its texts. None: each its own.

        Raises:
            DataError: shapes do not fit, or a row has no supervised token.
        """
        prefix, prefix_mask, text = self._read(input_ids, prefix_embeds, prefix_mask, prefix_of_row)
        mask_of_row = prefix_mask if prefix_of_row is None else prefix_mask[prefix_of_row]
        mask = torch.cat((mask_of_row, attention_mask.bool()), dim=1)
        if labels is not None:
            rows, before, targets = _supervised(labels, mask)
        packing = self.packing and torch.is_grad_enabled()
        shares = self.can_share_prefixes and not (packing and len(text) == len(prefix))
        if prefix_of_row is not None and shares:
            rounds = self._run_behind_shared(prefix, prefix_mask, text, mask, prefix_of_row)
        else:
            embeds = torch.cat((prefix if prefix_of_row is None else prefix[prefix_of_row], text), dim=1)
            read = None
            if labels is not None and not return_logits:
                read = torch.zeros_like(mask)
                read[rows, before] = True
            run = self._run_packed if packing else self._run_padded
            rounds = run(embeds, mask, read)
        if labels is None:
            return DecoderOutput(None, self.head(rounds[-1]), rounds[-1])
        answers = [self.head(states[rows, before]).float() for states in rounds]
        loss = torch.stack([F.cross_entropy(logits, targets) for logits in answers]).mean()
        hits = row_losses = None
        if not self.training:
            misses = rows[answers[-1].argmax(dim=-1) != targets]
            hits = torch.ones(len(labels), dtype=torch.bool, device=labels.device).index_fill(0, misses, False)
            of_token = torch.stack([F.cross_entropy(logits, targets, reduction="none") for logits in answers]).mean(0)
            row_losses = of_token.new_zeros(len(labels)).index_add(0, rows, of_token)
        return DecoderOutput(loss, self.head(rounds[-1]) if return_logits else None, rounds[-1], hits, row_losses)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prefix_embeds: Tensor,
        prefix_mask: Tensor | None = None,
        *,
        settings: GenerationConfig,
        end_ids: Sequence[int],
        pad_id: int,
        rows: Sequence[int] | None = None,
        is_stop: Callable[[Sequence[int]], bool] | None = None,
    ) -> Tensor:
        """Continue texts, until each has ended or has `settings.max_new_tokens`.

        Only `settings` decides: what a checkpoint's `generation_config.json` says (repetition penalty, temperature,
        top-k, ...) is not read.

        Args:
            input_ids: (B, T) int64, padded on the LEFT, so that each row ends with its last token.
            attention_mask: (B, T) bool or int.
            prefix_embeds: (B, P, H).
            prefix_mask: (B, P) bool. None: all real.
            settings: greedy at temperature 0, else sampling; beams above one. `stop` is the matter of `is_stop`.
            end_ids: tokens that end a text.
            pad_id: what follows the end token of a text that ended before others.
            rows: with `settings.seed`, the number of each text, which chooses the stream that it draws from: it draws
                the same in any batch. None: they are counted from 0.
            is_stop: true for new tokens that make a text which ends the answer; what is written behind them, while
                others are not at their end, is of no use.

        Returns:
            (B, at most max_new_tokens) int64: the new tokens only, the end token included.

        Raises:
            DataError: shapes do not fit, or a text is padded on the right.
            ConfigError: the decoder is in training mode.
        """
        given = input_ids, attention_mask, prefix_embeds, prefix_mask
        if settings.num_beams > 1:
            from impresa.decoders.generation import search_beams

            return search_beams(
                self,
                *self._prompt(*given),
                settings,
                end_ids=end_ids,
                pad_id=pad_id,
                first_row=rows[0] if rows else 0,
                is_stop=is_stop,
            )
        columns: list[Tensor] = []
        open_rows = set(range(len(input_ids)))
        for column in self.write(*given, settings=settings, end_ids=end_ids, pad_id=pad_id, rows=rows):
            columns.append(column)
            if is_stop is not None:
                texts = torch.stack(columns, dim=1).tolist()
                open_rows -= {row for row in open_rows if texts[row][-1] in end_ids or is_stop(texts[row])}
                if not open_rows:
                    break
        return torch.stack(columns, dim=1)

    @torch.inference_mode()
    def write(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prefix_embeds: Tensor,
        prefix_mask: Tensor | None = None,
        *,
        settings: GenerationConfig,
        end_ids: Sequence[int],
        pad_id: int,
        rows: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """The columns (B,) that `generate` returns, each computed when it is asked for.

        Arguments and errors as in `generate`; beams are a `ConfigError`, for they are chosen at the end.
        """
        from impresa.decoders.generation import write_tokens

        refuse_streamed_beams(settings)
        embeds, mask = self._prompt(input_ids, attention_mask, prefix_embeds, prefix_mask)
        numbers = range(len(mask)) if rows is None else rows
        return write_tokens(self, embeds, mask, settings, end_ids=end_ids, pad_id=pad_id, rows=numbers)

    def _prompt(
        self, input_ids: Tensor, attention_mask: Tensor, prefix_embeds: Tensor, prefix_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, P + T, H) of prefix and text, and their mask (B, P + T) bool."""
        if self.training:
            raise ConfigError("decoder: it is in training mode, where dropout would act on the text; call eval() first")
        prefix, prefix_mask, text = self._read(input_ids, prefix_embeds, prefix_mask, None)
        mask = torch.cat((prefix_mask, attention_mask.bool()), dim=1)
        if not mask[:, -1].all():
            raise DataError("input_ids: a text ends with padding; generation needs the padding on the left")
        return torch.cat((prefix, text), dim=1), mask

    def _run_padded(self, embeds: Tensor, mask: Tensor, read: Tensor | None) -> tuple[Tensor, ...]:
        context = CausalContext.of(mask)
        return self.run(embeds, context) if read is None else self.run_at(embeds, context, read)

    def _run_packed(self, embeds: Tensor, mask: Tensor, read: Tensor | None) -> tuple[Tensor, ...]:
        rows = Rows.of(mask, dim=self.hidden_size, most=self.longest_row)
        if rows.source.numel() == mask.numel():  # no padding
            return self._run_padded(embeds, mask, read)
        joined, context = rows.joined(embeds), CausalContext.of_rows(rows)
        if read is None:
            rounds = self.run(joined, context)
        else:
            rounds = self.run_at(joined, context, rows.joined(read) & rows.real)
        return tuple(rows.spread(states) for states in rounds)

    def _run_behind_shared(
        self, prefix: Tensor, prefix_mask: Tensor, text: Tensor, mask: Tensor, prefix_of_row: Tensor
    ) -> tuple[Tensor, ...]:
        # Causality lets all texts of a prefix read the same states of it.
        past = SharedPast()
        before = self.run(prefix, CausalContext.of(prefix_mask, cache=past))
        past.share(prefix_of_row)
        behind = self.run(text, CausalContext.of(mask, text.shape[1], past))
        return tuple(torch.cat((a[prefix_of_row], b), dim=1) for a, b in zip(before, behind, strict=True))

    def _read(
        self, input_ids: Tensor, prefix_embeds: Tensor, prefix_mask: Tensor | None, prefix_of_row: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prefixes (I, P, H) in the texts' type, their mask (I, P) bool, and the texts (B, T, H), embedded."""
        num_prefixes, P = prefix_embeds.shape[:2]
        wanted = (len(input_ids) if prefix_of_row is None else num_prefixes, P, self.hidden_size)
        if prefix_embeds.shape != wanted:
            given = tuple(prefix_embeds.shape)
            raise DataError(f"prefix_embeds: shape {given} does not fit the texts and the decoder; give {wanted}")
        text = self.embed(input_ids)
        if prefix_mask is None:
            prefix_mask = torch.ones(num_prefixes, P, device=text.device)
        return prefix_embeds.to(text.dtype), prefix_mask.bool(), text


def refuse_streamed_beams(settings: GenerationConfig) -> None:
    """Raise ConfigError if the text is to be found by beam search, which knows it at the end only."""
    if settings.num_beams > 1:
        raise ConfigError("generation.num_beams: beams are chosen at the end and cannot be streamed; set 1")


def _supervised(labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The one shift: for each supervised token its row, the real position before it, and the token, each (R,)."""
    P = mask.shape[1] - labels.shape[1]
    index = torch.arange(mask.shape[1], device=mask.device)
    last_real = torch.where(mask, index, -1).cummax(dim=1).values
    # One to the right, for nothing precedes position 0.
    before = F.pad(last_real, (1, 0), value=-1)[:, P:-1]  # (B, T)
    supervised = (labels != IGNORED) & (before >= 0)
    empty = (~supervised.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"labels: row {empty[0]} of the batch has no supervised token; give each text an answer")
    rows, columns = supervised.nonzero(as_tuple=True)
    return rows, before[rows, columns], labels[rows, columns]
