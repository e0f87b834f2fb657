"""What all decoders share: prefix before text, mask, positions, one shift, and a head that runs where it is needed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impresa.config.decoder import DecoderConfig, GenerationConfig
from impresa.decoders.base import IGNORED, Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.kinds import why_not_exportable
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.errors import ConfigError, DataError

H, V = 6, 11
SETTINGS: dict[str, Any] = {"settings": GenerationConfig(), "end_ids": [1], "pad_id": 0}


class Sums(Decoder):
    """Two rounds over the running sum of what is real: the smallest causal network that sees mask and positions."""

    hidden_size = H

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(V, H)
        self.places = nn.Embedding(32, H)
        self.lm_head = nn.Linear(H, V)
        self.calls: list[tuple[torch.Tensor, ...]] = []
        self.head_rows: list[int] = []

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)

    def run(self, embeds: torch.Tensor, context: CausalContext) -> tuple[torch.Tensor, ...]:
        self.calls.append((embeds, context.mask, context.position_ids))
        sums = ((embeds + self.places(context.position_ids)) * context.mask[..., None]).cumsum(dim=1)
        return sums.tanh(), sums.sin()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        self.head_rows.append(hidden.numel() // H)
        return self.lm_head(hidden)


@pytest.fixture
def decoder() -> Sums:
    return Sums()


IDS = torch.tensor([[2, 3, 4, 5, 1], [6, 7, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LABELS = torch.tensor([[IGNORED, IGNORED, IGNORED, 5, 1], [IGNORED, 7, 1, IGNORED, IGNORED]])
PREFIX = torch.randn(2, 3, H, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Decoder, PretrainedDecoder])
def test_the_arguments_have_the_names_of_the_interface(kind: type[Decoder]) -> None:
    arguments = list(inspect.signature(kind.forward).parameters)
    assert arguments == [
        "self", "input_ids", "attention_mask", "prefix_embeds", "labels", "prefix_mask", "return_logits",
        "prefix_of_row",
    ]  # fmt: skip


def test_the_prefix_stands_before_the_text_and_the_mask_grows_by_ones(decoder: Sums) -> None:
    decoder(IDS, MASK, PREFIX)
    ((embeds, mask, positions),) = decoder.calls
    assert torch.equal(embeds, torch.cat((PREFIX, decoder.table(IDS)), dim=1))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[1] * 8, [1] * 6 + [0, 0]]
    assert positions.tolist() == [list(range(8)), [0, 1, 2, 3, 4, 5, 5, 5]]


def test_positions_count_what_is_real(decoder: Sums) -> None:
    decoder(IDS, MASK.flip(1), PREFIX, prefix_mask=torch.tensor([[False, True, True], [True, True, False]]))
    _, mask, positions = decoder.calls[0]
    assert mask.int().tolist() == [[0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1, 1, 1]]
    assert positions.tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 2, 3, 4]]


def test_position_i_predicts_the_next_token_and_the_prefix_the_first(decoder: Sums) -> None:
    labels = torch.tensor([[2, IGNORED, 4, IGNORED, IGNORED], [IGNORED, 7, 1, IGNORED, IGNORED]])
    logits = decoder(IDS, MASK, PREFIX).logits
    rounds = [decoder.head(states) for states in decoder.run(decoder.calls[0][0], CausalContext(*decoder.calls[0][1:]))]
    assert torch.equal(logits, rounds[-1])

    def by_hand(logits: torch.Tensor) -> torch.Tensor:
        # With P = 3 the token at t of the text is predicted at 3 + t - 1.
        picked = torch.stack((logits[0, 2], logits[0, 4], logits[1, 3], logits[1, 4]))
        return F.cross_entropy(picked, torch.tensor([2, 4, 7, 1]))

    loss = decoder(IDS, MASK, PREFIX, labels).loss
    torch.testing.assert_close(loss, torch.stack([by_hand(states) for states in rounds]).mean())


def test_with_labels_the_head_runs_where_a_label_is_supervised_and_gradients_are_those_of_all_logits(
    decoder: Sums,
) -> None:
    out = decoder(IDS, MASK, PREFIX, LABELS)
    assert out.logits is None
    assert decoder.head_rows == [4, 4]  # four supervised tokens, two rounds
    out.loss.backward(retain_graph=True)
    sparse = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    joined = F.pad(LABELS, (PREFIX.shape[1], 0), value=IGNORED)[:, 1:]
    rounds = [
        decoder.head(states)[:, :-1]
        for states in decoder.run(decoder.calls[0][0], CausalContext(*decoder.calls[0][1:]))
    ]
    loss = sum(F.cross_entropy(logits.flatten(0, 1), joined.flatten(), ignore_index=IGNORED) for logits in rounds) / 2
    torch.testing.assert_close(out.loss, loss)
    loss.backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(sparse[name], parameter.grad, msg=name)


def test_logits_come_with_labels_only_when_asked_for(decoder: Sums) -> None:
    plain, asked = decoder(IDS, MASK, PREFIX), decoder(IDS, MASK, PREFIX, LABELS, return_logits=True)
    assert plain.loss is None
    assert plain.logits.shape == (2, 8, V)
    assert plain.hidden.shape == (2, 8, H)
    assert torch.equal(plain.logits, asked.logits)
    assert asked.loss is not None


def test_masked_prefix_tokens_and_padding_on_the_left_change_nothing(decoder: Sums) -> None:
    plain = decoder(IDS[:1], MASK[:1], PREFIX[:1, :2], LABELS[:1]).loss
    noise = torch.full((1, 2, H), 7.0)
    wider = torch.cat((noise[:, :1], PREFIX[:1, :2], noise[:, :1]), dim=1)
    prefix_mask = torch.tensor([[False, True, True, False]])
    padded = [F.pad(x[:1], (2, 0), value=value) for x, value in ((IDS, 0), (MASK, 0), (LABELS, IGNORED))]
    torch.testing.assert_close(decoder(padded[0], padded[1], wider, padded[2], prefix_mask).loss, plain)
    # The first token too: the last real prefix token predicts it.
    labels = torch.full_like(IDS[:1], IGNORED)
    labels[0, 0] = 2
    plain = decoder(IDS[:1], MASK[:1], PREFIX[:1, :2], labels).loss
    torch.testing.assert_close(decoder(IDS[:1], MASK[:1], wider, labels, prefix_mask).loss, plain)


def test_a_prefix_may_be_empty(decoder: Sums) -> None:
    assert decoder(IDS, MASK, PREFIX[:, :0], LABELS).loss > 0
    with pytest.raises(DataError, match=r"row 0 .* no supervised token"):  # nothing stands before it
        decoder(IDS, MASK, PREFIX[:, :0], torch.where(torch.arange(5) == 0, IDS, IGNORED))


def test_a_row_without_a_supervised_token_is_refused_by_its_number(decoder: Sums) -> None:
    labels = LABELS.clone()
    labels[1] = IGNORED
    with pytest.raises(DataError, match="labels: row 1 of the batch has no supervised token; give each text an answer"):
        decoder(IDS, MASK, PREFIX, labels)


@pytest.mark.parametrize("prefix", [PREFIX[:1], PREFIX[..., :4]])
def test_a_prefix_of_another_shape_is_refused(decoder: Sums, prefix: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"prefix_embeds: shape .* give \(2, 3, 6\)"):
        decoder(IDS, MASK, prefix)


def test_generation_refuses_what_would_give_other_text(decoder: Sums) -> None:
    with pytest.raises(ConfigError, match=r"decoder: it is in training mode.*eval\(\)"):
        decoder.generate(IDS, MASK, PREFIX, **SETTINGS)
    decoder.eval()
    with pytest.raises(DataError, match=r"input_ids: a text ends with padding; .* the padding on the left"):
        decoder.generate(IDS, MASK, PREFIX, **SETTINGS)
    beams = SETTINGS | {"settings": GenerationConfig(num_beams=2)}
    with pytest.raises(ConfigError, match=r"generation\.num_beams: .* cannot be streamed; set 1"):
        decoder.write(IDS, MASK.flip(1), PREFIX, **beams)


def test_what_a_decoder_says_of_itself_unless_it_knows_better(decoder: Sums) -> None:
    decoder.table.requires_grad_(False)
    decoder.register_buffer("steps", torch.tensor(3))
    assert set(decoder.state_to_save()) == {"places.weight", "lm_head.weight", "lm_head.bias", "steps"}
    assert list(decoder.full_precision_parameters()) == []
    config = DecoderConfig(type="trm")
    assert not decoder.is_stored_by_name(config)
    assert decoder.architecture is None
    assert why_not_exportable(config) == "no other library knows its decoder, a trm; use it by impresa.load"
