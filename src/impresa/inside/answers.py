"""An answer looked into: what each of its tokens looked at, and how it came about from cycle to cycle.

Letters of shapes: P prefix, Q prompt, A answer, N patches, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from impresa.data.chat import ChatFormat
from impresa.decoders.base import Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.recursion import recording_cycles
from impresa.fusion import Prefix
from impresa.inside.explanation import MAX_TILES, Maps, Section, Strips, Table, Tile, peak
from impresa.layers.recording import Recorded, weights_within

MAX_TOKENS = 2 * MAX_TILES
"""Answer tokens that are shown; longer answers are cut."""
END = "(end)"


def answer_sections(
    decoder: Decoder,
    chat: ChatFormat,
    prefix: Prefix,
    *,
    prompt: Sequence[int],
    answer: Sequence[int],
    recorded: Recorded,
    on_patches: Tensor | None,
) -> list[Section]:
    """All that there is to show of an answer, which the decoder reads once more.

    Args:
        decoder: in evaluation mode.
        chat: its tokenizer.
        prefix: of one image.
        prompt: Q token ids.
        answer: A token ids behind it, at least one.
        recorded: takes up the weights of the decoder's attention while this runs.
        on_patches: (P, N), what each prefix token stands for; None where that is not known.
    """
    answer = list(answer[:MAX_TOKENS])
    ids = torch.tensor([[*prompt, *answer]], device=prefix.tokens.device)
    text = decoder.embed(ids)
    embeds = torch.cat((prefix.tokens.to(text.dtype), text), dim=1)
    mask = torch.cat((prefix.mask, torch.ones_like(ids, dtype=torch.bool)), dim=1)
    with recording_cycles(decoder) as cycles:
        hidden = decoder.run(embeds, CausalContext.of(mask))[-1]
    before = slice(-1 - len(answer), -1)  # the positions that predict the answer
    names = tuple(_shown(chat, token) for token in answer)
    last = weights_within(recorded, decoder)[-1][0].mean(dim=0)  # of the network that is recursed, its last pass
    sections = _looks(last[before], prefix.tokens.shape[1], len(prompt), names, on_patches)
    states = cycles or [hidden]
    chances = [decoder.head(state[0, before]).float().softmax(dim=-1) for state in states]
    return [_development(chances, chat, names, starts_before=_has_start(decoder)), *sections]


def _looks(
    weights: Tensor, num_prefix: int, num_prompt: int, names: tuple[str, ...], on_patches: Tensor | None
) -> list[Section]:
    """Sections on the weights (A, P + Q + A) of the answer's positions in the last layer."""
    prefix, prompt, own = weights.split([num_prefix, num_prompt, weights.shape[1] - num_prefix - num_prompt], dim=1)
    shares = torch.stack([part.sum(dim=1) for part in (prefix, prompt, own)], dim=1).tolist()
    rows = tuple((name, tuple((f"{s:.1%}", s) for s in share)) for name, share in zip(names, shares, strict=True))
    note = "Attention of the last layer, mean of its heads, from the position that each token is predicted at."
    found: list[Section] = [
        Table("Where each answer token looks", note, ("at the prefix", "at the question", "at the answer"), rows),
        Strips("Prefix tokens", "The same within the prefix: a row for each answer token.", names, prefix),
    ]
    if on_patches is not None:
        maps = prefix @ on_patches
        tiles = [Tile.of(f"{name}, {peak(row)}", row) for name, row in zip(names, maps, strict=True)][:MAX_TILES]
        note = "The same, traced back through the fusion to the patches that the prefix was made of."
        found.append(Maps("Answer tokens on the picture", note, tuple(tiles)))
    return found


def _development(chances: Sequence[Tensor], chat: ChatFormat, names: tuple[str, ...], *, starts_before: bool) -> Table:
    """The likeliest tokens after each cycle, from probabilities (A, V)."""
    rows = []
    for number, chance in enumerate(chances):
        best = chance.max(dim=-1)
        cells = tuple(
            (f"{_shown(chat, token)} {share:.0%}", share)
            for token, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        if len(chances) == 1:
            name = "answer"
        elif starts_before:
            name = f"after cycle {number}" if number else "before the recursion"
        else:
            name = f"after cycle {number + 1}"
        rows.append((name, cells))
    title = "The answer from cycle to cycle" if len(chances) > 1 else "How sure it is"
    note = "The likeliest token at each place and its probability, when the answer before it stands as it was given."
    return Table(title, note, names, tuple(rows))


def _has_start(decoder: Decoder) -> bool:
    return decoder.architecture is not None  # a pretrained language model, which has an answer of its own


def _shown(chat: ChatFormat, token: int) -> str:
    return END if token in chat.end_ids else chat.decode([token]).strip() or "␣"
