"""Two processes that gather are one process with the whole batch: losses and gradients, every switch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from impresa.config.losses import LossConfig
from impresa.losses.contrastive import ContrastiveLoss, LossOutput
from impresa.losses.gather import RowLayout
from impresa.losses.matryoshka import matryoshka_clip_loss
from impresa.losses.objectives import InfoNCE, Tile
from impresa.losses.pairs import Negatives
from two_processes import in_two_processes

WIDTH, E = 10, 16
MODALITIES = ("image", "text", "audio")
EPSILON = 1e-9


@dataclass(frozen=True)
class Case:
    """A loss, and how many rows of the batch each process holds."""

    losses: LossConfig
    rows: tuple[int, int] = (6, 6)
    dims: tuple[int, ...] = ()
    step: int = 0
    modalities: int = 2
    with_gaps: bool = False
    negatives: tuple[int, int] | None = None
    """How many hard negatives each process holds."""


def gathering(**losses: object) -> LossConfig:
    return LossConfig(**{"gather_distributed": True, "duplicates": "ignore", **losses})


CASES = {
    "clip": Case(gathering()),
    "siglip": Case(gathering(type="siglip")),
    "siglip, fixed start": Case(gathering(type="siglip", siglip_bias=-3.0)),
    "uneven": Case(gathering(), rows=(7, 2)),
    "uneven siglip": Case(gathering(type="siglip"), rows=(3, 8)),
    "an empty rank": Case(gathering(), rows=(5, 0)),
    "matryoshka": Case(gathering(), dims=(16, 8, 3)),
    "matryoshka siglip, uneven": Case(gathering(type="siglip"), rows=(2, 6), dims=(8, 3)),
    "one drawn dimension": Case(gathering(sample_single_mrl_dim=True), dims=(8, 5, 3, 2), step=7),
    "tiled": Case(gathering(row_chunk=4), rows=(7, 5), dims=(8, 3)),
    "duplicates": Case(gathering(duplicates="positive"), rows=(7, 5), dims=(8,)),
    "duplicates siglip": Case(gathering(duplicates="positive", type="siglip"), rows=(7, 5)),
    "duplicates, tiled": Case(gathering(duplicates="positive", row_chunk=4), rows=(5, 8), dims=(8, 3)),
    "duplicates and an empty rank": Case(gathering(duplicates="positive"), rows=(0, 9)),
    "three modalities with gaps": Case(gathering(), rows=(6, 4), modalities=3, with_gaps=True),
    "duplicates with gaps": Case(gathering(duplicates="positive"), rows=(7, 6), modalities=3, with_gaps=True),
    "negatives": Case(gathering(), rows=(4, 3), dims=(8, 3), negatives=(2, 5)),
    "negatives siglip": Case(gathering(type="siglip"), rows=(4, 3), negatives=(3, 0)),
    "negatives that are captions": Case(
        gathering(duplicates="positive", row_chunk=2), rows=(4, 5), dims=(8,), negatives=(3, 4)
    ),
    "fixed temperature": Case(gathering(learn_temperature=False)),
}
APART = Case(LossConfig(type="siglip", duplicates="ignore"), rows=(6, 6))


class Towers(nn.Module):
    """A linear encoder for each modality and the loss between them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case = case
        self.encoders = nn.ModuleDict({name: nn.Linear(WIDTH, E) for name in MODALITIES[: case.modalities]})
        self.loss = ContrastiveLoss(case.losses, mrl_dimensions=case.dims, seed=3)
        self.loss.commit(case.step)
        self.double()

    def forward(self, rows: slice) -> LossOutput:
        """The loss of some rows of the case's batch."""
        generator = torch.Generator().manual_seed(1)
        total = sum(self.case.rows)
        base = torch.randn(total, WIDTH, generator=generator).double()
        inputs = {name: base + torch.randn(total, WIDTH, generator=generator) for name in self.encoders}
        embeddings = {name: encoder(inputs[name][rows]) for name, encoder in self.encoders.items()}
        present = {"audio": (torch.arange(total) % 3 == 0)[rows]} if self.case.with_gaps else {}
        numbers = torch.arange(total)
        keys = {"image": numbers // 3, "text": numbers % 4, "audio": numbers % 5}
        own_keys = {name: key[rows] for name, key in keys.items()}
        return self.loss(embeddings, present=present, keys=own_keys, negatives=self.negatives(rows, generator))

    def negatives(self, rows: slice, generator: torch.Generator) -> Negatives | None:
        """The hard negatives of the process that holds these rows; keys 0 to 3 are those of captions."""
        if self.case.negatives is None:
            return None
        of_first = self.case.negatives[0]
        own = slice(None)
        if rows.stop is not None:
            own = slice(of_first) if rows.start == 0 else slice(of_first, None)
        texts = torch.randn(sum(self.case.negatives), WIDTH, generator=generator).double()
        return Negatives(self.encoders["text"](texts[own]), torch.arange(len(texts))[own] + 2)


def result(model: nn.Module, rows: slice, towers: Towers) -> dict[str, Tensor]:
    output = model(rows)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in towers.named_parameters()}
    buffers = dict(towers.named_buffers())
    return {"loss": output.loss.detach(), **output.logs, **gradients, **{f"after {n}": b for n, b in buffers.items()}}


def rows_of(case: Case, rank: int) -> slice:
    return slice(0, case.rows[0]) if rank == 0 else slice(case.rows[0], sum(case.rows))


def results_of(rank: int) -> dict[str, dict[str, Tensor]]:
    results = {}
    for name, case in {**CASES, "apart": APART}.items():
        towers = Towers(case)
        results[name] = result(DistributedDataParallel(towers), rows_of(case, rank), towers)
    if rank == 0:  # alone: a collective call would wait for the other for ever
        towers = Towers(CASES["siglip"]).eval()
        results["validation"] = {"loss": towers(slice(0, 5)).loss.detach()}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What both processes found for each case."""
    return in_two_processes(results_of, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_the_whole_batch(ranks: list[dict], name: str) -> None:
    towers = Towers(CASES[name])
    whole = result(towers, slice(None), towers)
    first, second = ranks[0][name], ranks[1][name]
    assert first.keys() == whole.keys()
    for key, expected in whole.items():
        if key in ("loss", "contrastive") or key.startswith("mrl_"):
            found = (first[key] + second[key]) / 2
        else:
            found = first[key]
            torch.testing.assert_close(second[key], found, rtol=0, atol=0, msg=key)
        torch.testing.assert_close(found, expected, rtol=EPSILON, atol=EPSILON, msg=key)
    assert any(gradient.abs().max() > 0.01 for key, gradient in whole.items() if key.startswith("encoders"))


def test_without_gathering_each_process_has_its_own_negatives(ranks: list[dict]) -> None:
    """And yet one bias: the floor for the rows of the first process, as one process finds it there."""
    first, towers = Towers(APART), Towers(APART)
    first(rows_of(APART, 0))
    floor = first.loss.logit_bias.value.detach()
    towers.loss.logit_bias.value.data.copy_(floor)
    towers.loss.logit_bias.started.fill_(True)
    for rank in (0, 1):
        found = ranks[rank]["apart"]
        torch.testing.assert_close(found["logit_bias"], floor)
        torch.testing.assert_close(found["loss"], towers(rows_of(APART, rank)).loss.detach())


def test_validation_never_waits_for_other_processes(ranks: list[dict]) -> None:
    alone = Towers(CASES["siglip"]).eval()
    torch.testing.assert_close(ranks[0]["validation"]["loss"], alone(slice(0, 5)).loss.detach())


def test_a_process_computes_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What open_clip does with --local-loss: (n, m) similarities, not (m, m)."""
    x, shapes = torch.randn(8, E), []
    observe = InfoNCE.observe

    def spy(self: InfoNCE, k: int, tile: Tile, x: Tensor, scratch: Tensor) -> None:
        shapes.append(x.shape)
        observe(self, k, tile, x, scratch)

    monkeypatch.setattr(InfoNCE, "observe", spy)
    monkeypatch.setattr("impresa.losses.matryoshka.row_layout", lambda *_, gather: RowLayout((3, 5), rank=1))
    monkeypatch.setattr("impresa.losses.matryoshka.gather_rows", lambda *_: x)
    monkeypatch.setattr("impresa.losses.objectives.from_all", lambda sums, layout: [sums])
    matryoshka_clip_loss(x[3:], x[3:], torch.tensor(1.0), [E], gather=True)
    assert shapes == [(5, 8)]
