"""Runs that describe more than their files hold: refused in one line, before memory is taken."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import impresa
from forged_runs import forge, refusal
from impresa.config.runs import adopt_towers
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.tokenizers import train_tokenizer
from impresa.errors import CheckpointError
from impresa.layers.init import drawn
from impresa.layers.outline import TooLargeError, every_tensor, outline
from impresa.run_dir.save import save_run
from impresa.run_dir.weights import restored, write_weights
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.encoders import build_vision
from tiny_hub import clip
from tiny_qwen import save_qwen
from tiny_run import copy_of_run, finished_run, tiny_experiment
from tiny_vlm import SIZE, answering, finished_vlm, tiny_qwen_vlm, tiny_vlm_on

PLAIN = (
    *("vision_encoder.dim=512", "vision_encoder.depth=12", "vision_encoder.num_heads=8", "vision_encoder.drop_rate=0"),
    *("vision_encoder.patch_size=16", "vision_encoder.memory.enabled=false", "vision_encoder.memory.dim=512"),
    *("vision_encoder.memory.num_memory_tokens=64", "vision_encoder.memory.mem_reinit_steps=100"),
)
"""What a pretrained tower makes void, at its defaults."""
SLACK = 200_000
"""KiB that an opening may take above another one."""


def memory() -> int:
    """KiB, the most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def rewrite(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


DEEP, WIDE = ("  depth: 1\n", "  depth: 1000\n"), ("  dim: 16\n", "  dim: 16384\n")


@pytest.mark.parametrize(
    "changes",
    [
        (DEEP, WIDE),
        (WIDE,),
        (DEEP,),
        (("max_len: 48", "max_len: 131072"),),
        (("embed_dim: 16", "embed_dim: 16384"),),
        (("num_memory_tokens: 2", "num_memory_tokens: 16384"),),
    ],
    ids=lambda changes: "+".join(new.split(":")[0].strip() for _, new in changes),
)
def test_a_config_of_another_size_is_refused_before_memory_is_taken(
    changes: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    impresa.load(run_dir, "cpu")
    rewrite(run_dir / "config.yaml", *changes)
    before = memory()
    assert f"{run_dir}/model.safetensors: does not fit the config (" in refusal(run_dir)
    assert memory() < before + SLACK


def test_so_is_a_decoder(tmp_path: Path) -> None:
    for number, changes in enumerate(
        [
            (("  mlp_ratio: 2.0\n", "  mlp_ratio: 64.0\n"),),
            (("    num_layers: 1\n", "    num_layers: 1000\n"),),
            (("  dim: 16\n", "  dim: 16384\n"),),
        ]
    ):
        run_dir = tmp_path / str(number)
        shutil.copytree(finished_vlm(), run_dir)
        rewrite(run_dir / "config.yaml", *changes)
        before = memory()
        assert "does not fit the config" in refusal(run_dir)
        assert memory() < before + SLACK


def test_the_tower_of_another_run_is_held_against_its_file_too(tmp_path: Path) -> None:
    run_dir = copy_of_run(tmp_path / "run")
    rewrite(run_dir / "config.yaml", DEEP, WIDE)
    before = memory()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit the config"):
        build_vision(adopt_towers(tiny_vlm_on(run_dir)), load_weights=True)
    assert memory() < before + SLACK


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "projection_dim"])
def test_the_stored_config_of_a_pretrained_tower_is_no_way_round(key: str, tmp_path: Path) -> None:
    config = tiny_experiment(f"vision_encoder.backbone={clip(tmp_path / 'clip')}", *PLAIN)
    tokenizer = train_tokenizer(["a red circle", "a blue square"], 300, 16)
    model = build_alignment(config, tokenizer.vocab_size, tokenizer.end_id)
    save_run(tmp_path / "run", model, config, Preprocessing(tokenizer, ImageTransform(16)))
    impresa.load(tmp_path / "run", "cpu")
    name = "backbones/vision_encoder/config.json"
    stored = json.loads((tmp_path / "run" / name).read_text())
    large = {"num_hidden_layers": 10_000_000, "hidden_size": 1 << 20, "projection_dim": 1 << 30}[key]
    for part in (stored, stored["vision_config"], stored["text_config"]):
        part[key] = large
    (tmp_path / "run" / name).write_text(json.dumps(stored))
    forge(tmp_path / "run", name)
    before = memory()
    assert "does not fit the config (it describes more than" in refusal(tmp_path / "run")
    assert memory() < before + SLACK


Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, name: {**state, name: state[name].to(torch.int64)}, "of I64 and not"),
        (lambda state, name: {**state, name: state[name][None].contiguous()}, "has shape (1, "),
        (lambda state, name: {**state, "more": torch.ones(1)}, "(more)"),
        (lambda state, name: {key: tensor for key, tensor in state.items() if key != name}, "({name})"),
    ],
)
def test_other_tensors_are_named(change: Callable[[Tensors, str], Tensors], message: str, tmp_path: Path) -> None:
    run_dir, name = copy_of_run(tmp_path / "run"), "vision_encoder.backbone.positions"
    save_file(change(load_file(run_dir / "model.safetensors"), name), run_dir / "model.safetensors")
    forge(run_dir, "model.safetensors")
    assert message.format(name=name) in refusal(run_dir)


def test_one_tensor_cannot_stand_for_all_of_a_large_model(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(64, 64)}, tmp_path / "weights", {f"{i}.weight": "0.weight" for i in range(1, 9)})

    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(9)))

    with pytest.raises(CheckpointError, match=r"it describes 36,864 numbers, and the file has 4,096"):
        restored(build, tmp_path / "weights")


def test_weights_in_16_bits_are_read_as_the_model_has_them(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    write_weights(tmp_path / "weights", {name: t.bfloat16() for name, t in layer.state_dict().items()})
    found = restored(lambda: nn.Linear(4, 4), tmp_path / "weights")
    assert found.weight.dtype == torch.float32
    assert torch.equal(found.weight, layer.weight.bfloat16().float())


def test_a_loaded_model_is_whole_and_stands_by_itself() -> None:
    model = impresa.load(finished_run(), "cpu").model
    with safe_open(finished_run() / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in every_tensor(model).items())
    assert not any(tensor.is_meta for tensor in every_tensor(model).values())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in every_tensor(model).values())


def test_a_frozen_language_model_counts_beside_the_file(tmp_path: Path) -> None:
    config = tiny_qwen_vlm(save_qwen(tmp_path / "qwen"), "decoder.freeze=true")
    with torch.random.fork_rng(devices=[]):
        from impresa.data.chat import prepare_chat

        assert config.decoder is not None
        chat = prepare_chat(config.decoder, [])
        model = answering(config, chat)
    save_run(tmp_path / "run", model.model, config, Preprocessing(chat, ImageTransform(SIZE)))
    impresa.load(tmp_path / "run", "cpu")
    name = "backbones/decoder/identity.json"
    stored = json.loads((tmp_path / "run" / name).read_text())
    for wrong in ("commit main", "commit ../../etc", f"sha256 {'0' * 64}\n", 3):
        (tmp_path / "run" / name).write_text(json.dumps({**stored, "identity": wrong}))
        forge(tmp_path / "run", name)
        assert "identity.json: `identity`: " in refusal(tmp_path / "run")


def test_an_outline_counts_draws_nothing_and_leaves_no_trace() -> None:
    state = torch.random.get_rng_state()
    with outline(2, 20):
        layer = nn.Linear(4, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert layer.weight.is_meta
    with pytest.raises(TooLargeError, match="more than 2 tensors or 19 numbers"), outline(2, 19):
        nn.Linear(4, 4)
    with pytest.raises(TooLargeError, match="more than 1 tensors"), outline(1, 100):
        nn.Linear(4, 4)
    assert not nn.Linear(400, 400).weight.is_meta


@pytest.mark.parametrize("shape", [(3,), (16,), (17,), (5, 7), (64, 64)])
def test_drawn_numbers_are_those_that_seeds_have_always_given(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    expected = 0.02 * torch.randn(shape)
    torch.manual_seed(0)
    assert torch.equal(drawn(*shape, std=0.02), expected)
