"""What a run costs: work against formulas, time and samples over all parts of a run, and its file."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impresa.data.chat import TemplateChat
from impresa.errors import CheckpointError
from impresa.run_dir.cost import read_cost, write_cost
from impresa.tasks.answering.build import build_vlm
from impresa.training import costs
from impresa.training.costs import CostMeter, cost_of
from tiny_qwen import VOCAB, chat_tokenizer, save_qwen
from tiny_run import finished_run
from tiny_vlm import collated, samples, tiny_qwen_vlm


def work_of(step: object, num_samples: int = 1, world_size: int = 1) -> float | None:
    meter = CostMeter({})
    with meter.step(num_samples, world_size):
        step()  # type: ignore[operator]
    return meter.spent().flops_per_sample


def test_the_work_of_a_step_is_that_of_its_matrix_products() -> None:
    layer, inputs = nn.Linear(7, 5, bias=False), torch.randn(4, 7)
    # Forward, and the gradient of the weights: two products of 2 x 4 x 7 x 5; the inputs need none.
    assert work_of(lambda: layer(inputs).sum().backward(), num_samples=4) == 2 * 2 * 7 * 5
    # Of two processes this one has half of the samples.
    assert work_of(lambda: layer(inputs).sum().backward(), num_samples=8, world_size=2) == 2 * 2 * 7 * 5


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_counted(masked: bool) -> None:
    query = torch.randn(2, 4, 16, 8, requires_grad=True)
    mask = torch.ones(16, 16, dtype=torch.bool) if masked else None

    def attend() -> None:
        F.scaled_dot_product_attention(query, query, query, attn_mask=mask).sum().backward()

    product = 2 * 2 * 4 * 16 * 16 * 8
    # Two products forward; backward the scores once more, and four gradients.
    assert work_of(attend) == 7 * product


@pytest.mark.parametrize("bits", ["4", "8"])
def test_work_in_few_bits_is_counted(bits: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    qwen, batch = save_qwen(tmp_path), collated(samples(), TemplateChat(chat_tokenizer()))
    lora = ("decoder.use_lora=true", "decoder.lora.dropout=0")
    work = []
    for overrides in (lora, (*lora, f"decoder.load_in_{bits}bit=true")):
        model = build_vlm(tiny_qwen_vlm(qwen, *overrides), VOCAB).train()
        work.append(work_of(lambda model=model: model(batch).loss.backward()))
    assert work[1] == work[0]


def test_only_the_first_step_is_counted_and_its_result_is_the_same() -> None:
    layer, inputs = nn.Linear(7, 5), torch.randn(4, 7)
    meter, gradients = CostMeter({}), []
    for _ in range(2):
        layer.zero_grad()
        with meter.step(4, 1):
            layer(inputs).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)
    assert meter.spent().samples == 8
    assert meter.spent().flops_per_sample == 2 * 2 * 7 * 5


def test_validations_are_no_time_of_steps_and_parts_of_a_run_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    first = CostMeter({})
    with first.step(4, 1):
        clock[0] += 1
    with first.paused():
        clock[0] += 2
    before = first.spent()
    assert (before.seconds, before.step_seconds) == (3, 1)
    second = CostMeter(before.model_dump())
    assert second.spent() == before.model_copy(update={"peak_memory_bytes": second.spent().peak_memory_bytes})
    with second.step(6, 1):
        clock[0] += 4
    after = second.spent()
    assert after.samples == 10
    assert (after.seconds, after.step_seconds) == (7, 5)
    assert after.flops_per_sample == before.flops_per_sample  # nothing was multiplied in either


def test_a_finished_run_has_its_costs() -> None:
    cost = read_cost(finished_run())
    assert cost is not None
    assert cost.parameters == cost.trainable_parameters > 0
    assert cost.flops_per_sample is not None
    # Each weight is multiplied at least once forward and twice backward, but for embeddings and norms.
    assert cost.flops_per_sample > 3 * 2 * cost.parameters / 4
    assert cost.samples_per_second > 0
    assert cost.peak_memory_bytes > 50 * 2**20
    assert 0 < cost.training_seconds < 600


def test_frozen_weights_are_counted_apart() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[0].weight.requires_grad = False
    cost = cost_of(CostMeter({}).spent(), model)
    assert (cost.parameters, cost.trainable_parameters) == (20, 8)
    assert cost.samples_per_second == 0


def test_costs_are_read_back_and_others_are_refused(tmp_path: Path) -> None:
    assert read_cost(tmp_path) is None
    cost = read_cost(finished_run())
    assert cost is not None
    write_cost(tmp_path, cost)
    assert asdict(read_cost(tmp_path) or cost) == asdict(cost)
    whole = (tmp_path / "cost.json").read_text()
    for text in ("[]", '{"parameters": -1}', re.sub(r'(?<="training_seconds": )[\d.]+', "NaN", whole)):
        (tmp_path / "cost.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"cost\.json: .*; remove it"):
            read_cost(tmp_path)
