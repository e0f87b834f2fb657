"""An answer looked into: its table of cycles is what fewer cycles would say, and its shares add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from impresa.data.chat import prepare_chat
from impresa.decoders.base import Decoder
from impresa.decoders.context import CausalContext
from impresa.decoders.recursion import LatentRecursion, RecursionHead, recording_cycles
from impresa.inside.explanation import Explanation, Maps, Section, Strips, Table
from tiny_qwen import save_qwen
from tiny_vlm import answering, picture, tiny_qwen_vlm, tiny_vlm

QUESTION = "how many shapes are there?"


def section(explanation: Explanation, title: str) -> Section:
    return next(found for found in explanation.sections if found.title == title)


def recursion_of(decoder: Decoder) -> LatentRecursion:
    return next(module for module in decoder.modules() if isinstance(module, LatentRecursion))


@pytest.mark.parametrize(("num_steps", "num_rounds"), [(1, 1), (2, 1), (1, 2)])
def test_the_states_of_a_cycle_are_those_of_so_many_cycles_alone(num_steps: int, num_rounds: int) -> None:
    steps = (f"decoder.recursion.num_steps={num_steps}", f"decoder.recursion.num_rounds={num_rounds}")
    decoder = answering(tiny_vlm("decoder.recursion.num_cycles=3", *steps)).model.decoder
    embeds, context = torch.randn(1, 5, 16), CausalContext.of(torch.ones(1, 5, dtype=torch.bool))
    with torch.no_grad(), recording_cycles(decoder) as states:
        last = decoder.run(embeds, context)[-1]
    assert len(states) == 3 * num_rounds
    assert torch.equal(states[-1], last)
    recursion = recursion_of(decoder)
    recursion.config = replace(recursion.config, num_cycles=2, num_rounds=1)
    with torch.no_grad():
        assert torch.equal(decoder.run(embeds, context)[-1], states[1])


def test_the_table_ends_with_the_answer_and_the_shares_add_up() -> None:
    model = answering(tiny_vlm())
    found = model.explain(picture(1), QUESTION)
    assert found.headline == f"{QUESTION} — {model.ask(picture(1), QUESTION)}"
    cycles, looks, strips = (
        section(found, title)
        for title in ("The answer from cycle to cycle", "Where each answer token looks", "Prefix tokens")
    )
    assert isinstance(cycles, Table)
    assert isinstance(looks, Table)
    assert isinstance(strips, Strips)
    assert [name for name, _ in cycles.rows] == ["after cycle 1", "after cycle 2"]
    assert [text.rsplit(" ", 1)[0] for text, _ in cycles.rows[-1][1]] == list(cycles.columns)
    assert cycles.rows[0][1] != cycles.rows[1][1]
    for _, cells in looks.rows:
        assert sum(share for _, share in cells) == pytest.approx(1, abs=1e-5)
    assert [cells[0][1] for _, cells in looks.rows] == pytest.approx(strips.values.sum(dim=1).tolist())
    maps = section(found, "Answer tokens on the picture")
    assert isinstance(maps, Maps)
    torch.testing.assert_close(maps.tiles[0].values.flatten(), strips.values[0])  # each prefix token is a patch


def test_the_picture_decides_where_the_answer_looks() -> None:
    model = answering(tiny_vlm())
    one, other = (section(model.explain(picture(seed), QUESTION), "Prefix tokens") for seed in (1, 2))
    assert isinstance(one, Strips)
    assert isinstance(other, Strips)
    assert not torch.allclose(one.values[0], other.values[0])


def test_a_plain_decoder_has_no_cycles() -> None:
    found = answering(tiny_vlm("decoder.recursion.recursive=false")).explain(picture(1), QUESTION)
    sure = section(found, "How sure it is")
    assert isinstance(sure, Table)
    assert [name for name, _ in sure.rows] == ["answer"]


def test_without_a_question_the_image_is_described() -> None:
    model = answering(tiny_vlm())
    assert model.explain(picture(1)).headline.endswith(f"— {model.caption(picture(1))}")


def test_a_stop_ends_the_answer_as_it_does_when_asked() -> None:
    model = answering(tiny_vlm())
    written = str(model.ask(picture(1), QUESTION))
    model.generation = replace(model.generation, stop=written[-1])
    asked = model.ask(picture(1), QUESTION)
    assert len(asked) < len(written)
    assert model.explain(picture(1), QUESTION).headline == f"{QUESTION} — {asked or '(no answer)'}"


@pytest.mark.parametrize("recursion", [False, True], ids=("plain", "recursion"))
def test_qwen_shows_its_own_answer_before_the_recursion(recursion: bool, tmp_path: Path) -> None:
    overrides = (
        "decoder.use_lora=false",
        f"decoder.use_trm_recursion={str(recursion).lower()}",
        "decoder.load_in_4bit=false",
    )
    config = tiny_qwen_vlm(save_qwen(tmp_path / "qwen"), *overrides)
    assert config.decoder is not None
    model = answering(config, prepare_chat(config.decoder, ()))
    found = model.explain(picture(1), QUESTION)
    table = found.sections[0]
    assert isinstance(table, Table)
    expected = ["before the recursion", "after cycle 1", "after cycle 2"] if recursion else ["answer"]
    assert [name for name, _ in table.rows] == expected
    looks = section(found, "Where each answer token looks")
    assert isinstance(looks, Table)
    assert all(sum(share for _, share in cells) == pytest.approx(1, abs=1e-4) for _, cells in looks.rows)
    head = next((module for module in model.model.modules() if isinstance(module, RecursionHead)), None)
    if head is not None:  # a gate of zero lets the recursion say what Qwen says
        head.gate.data.zero_()
        table = model.explain(picture(1), QUESTION).sections[0]
        assert isinstance(table, Table)
        assert len({cells for _, cells in table.rows}) == 1
