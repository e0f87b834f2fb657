"""A real optimizer step in each way to train a language model: what is frozen has neither gradient nor state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from impresa.data.chat import TemplateChat
from impresa.tasks.answering.build import build_vlm
from impresa.training.optimizer import build_optimizer
from tiny_qwen import chat_tokenizer, save_qwen
from tiny_vlm import collated, rough, samples, tiny_qwen_vlm

LORA = ("decoder.use_lora=true", "decoder.lora.r=4", "decoder.lora.dropout=0")
BITS = ("decoder.load_in_4bit=true",)
RECURSION = ("decoder.use_trm_recursion=true", "decoder.recursion.num_layers=1")
WAYS = {
    "frozen": (("decoder.freeze=true",), ()),
    "adapters": (LORA, ("lora_",)),
    "four bits": (BITS, ()),
    "four bits and adapters": ((*BITS, *LORA), ("lora_",)),
    "frozen, with recursion": (("decoder.freeze=true", *RECURSION), ("decoder.recursion.",)),
    "four bits and recursion": ((*BITS, *RECURSION), ("decoder.recursion.",)),
    "all": ((*BITS, *LORA, *RECURSION), ("lora_", "decoder.recursion.")),
}
"""Overrides, and what the names of the decoder's trained parameters hold."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_frozen_gets_no_gradient_no_state_and_no_change(way: str, qwen: Path) -> None:
    overrides, signs = WAYS[way]
    config = tiny_qwen_vlm(qwen, *overrides, "vision_encoder.freeze=true")
    chat = TemplateChat(chat_tokenizer())
    model = rough(build_vlm(config, chat.vocab_size)).train()
    optimizer = build_optimizer(model, config.optimization)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(collated(samples(), chat)).loss.backward()
    optimizer.step()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("decoder.")} == {
        name for name in before if name.startswith("decoder.") and any(sign in name for sign in signs)
    }
    assert not any(name.startswith("vision_encoder.backbone.") for name in trained)
    assert any(name.startswith("fusion.") for name in trained)
    with_state = {id(parameter) for parameter in optimizer.state}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        assert (id(parameter) in with_state) == (name in trained), name
        assert torch.equal(parameter, before[name]) == (name not in trained), name
