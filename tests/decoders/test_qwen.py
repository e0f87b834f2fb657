"""The Qwen decoder: what is trained, what is refused, what is saved, merged, recomputed and recursed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from impresa.config.decoder import DecoderConfig, GenerationConfig, LoraConfig, RecursionConfig
from impresa.decoders.kinds import build_decoder, why_not_exportable
from impresa.decoders.pretrained import PretrainedDecoder, merge_adapter
from impresa.errors import CheckpointError, ConfigError
from tiny_qwen import HIDDEN, VOCAB, save_qwen

LORA = LoraConfig(r=4, alpha=8.0, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"), "qwen2", tied=True)


def build(folder: Path, *, load_weights: bool = True, **settings: Any) -> PretrainedDecoder:
    return PretrainedDecoder(
        DecoderConfig(**{"model": str(folder), "lora": LORA, **settings}), load_weights=load_weights
    )


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (2, 6))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "prefix_embeds": torch.randn(2, 3, HIDDEN)}


def trained(decoder: PretrainedDecoder) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}


def stir(decoder: PretrainedDecoder) -> dict[str, torch.Tensor]:
    """Move what is trained away from its start, as training would."""
    with torch.no_grad():
        for parameter in trained(decoder).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return {name: parameter.detach().clone() for name, parameter in trained(decoder).items()}


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"use_lora": True}, "lora_"),
        ({"freeze": True}, "nothing"),
        ({}, ""),
        ({"freeze": True, "use_trm_recursion": True}, "recursion."),
    ],
    ids=str,
)
def test_what_is_trained_in_each_combination(
    folder: Path, load_in_4bit: bool, settings: dict[str, bool], part: str
) -> None:
    decoder = build(folder, load_in_4bit=load_in_4bit, **settings)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    if load_in_4bit and not settings:
        part = "nothing"
    expected = {name for name, _ in decoder.named_parameters() if part in name}
    assert set(trained(decoder)) == expected
    given = inputs()
    given["prefix_embeds"].requires_grad_()
    decoder(**given, labels=given["input_ids"]).loss.backward()
    assert given["prefix_embeds"].grad.abs().max() > 0  # what stands before the model learns in every case
    assert {name for name, parameter in decoder.named_parameters() if parameter.grad is not None} == expected
    if expected:
        torch.optim.SGD(trained(decoder).values(), lr=0.1).step()
    after = decoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= expected | {"model.lm_head.weight"}  # tied to the embeddings
    assert bool(changed) == bool(expected)


def test_a_frozen_model_answers_the_same_in_training(tmp_path: Path) -> None:
    folder = save_qwen(tmp_path, attention_dropout=0.5)
    decoder, given = build(folder, freeze=True), inputs()
    torch.testing.assert_close(decoder.train()(**given).logits, decoder.eval()(**given).logits)
    whole = build(folder)
    assert not torch.allclose(whole.train()(**given).logits, whole.eval()(**given).logits)


def test_dropout_of_the_adapters_acts_in_training_only(folder: Path) -> None:
    decoder, given = build(folder, use_lora=True, lora=LoraConfig(r=4, dropout=0.5)), inputs()
    stir(decoder)
    assert not torch.allclose(decoder.train()(**given).logits, decoder.eval()(**given).logits)
    assert torch.equal(decoder(**given).logits, decoder(**given).logits)


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_adapters_and_recursion_are_saved_and_stay_in_full_precision(folder: Path, load_in_4bit: bool) -> None:
    decoder = build(folder, use_lora=True, use_trm_recursion=True, load_in_4bit=load_in_4bit)
    own = {name for name in decoder.state_dict() if "lora_" in name or name.startswith("recursion.")}
    assert {"recursion.recursion.answer", "recursion.gate"} < own
    assert set(decoder.state_to_save()) == own
    precise = {id(tensor) for tensor in decoder.full_precision_parameters()}
    tensors = dict((*decoder.named_parameters(), *decoder.named_buffers()))
    assert {name for name, tensor in tensors.items() if id(tensor) in precise} == own
    whole = build(folder)
    assert set(whole.state_to_save()) == set(whole.state_dict())
    assert list(whole.full_precision_parameters()) == []


@pytest.mark.parametrize(
    ("settings", "by_name", "reason"),
    [
        ({"use_lora": True}, True, None),
        ({"use_lora": True, "use_trm_recursion": True}, True, "no plain language model holds its latent recursion"),
        ({"freeze": True}, True, "its language model was frozen, so that there is nothing to export; it is /"),
        ({"load_in_4bit": True}, True, "its language model was frozen"),
        ({}, False, None),
        ({"use_trm_recursion": True}, False, "no plain language model holds its latent recursion"),
    ],
    ids=str,
)
def test_how_a_run_stores_it_and_whether_it_can_be_exported(
    folder: Path, settings: dict[str, bool], by_name: bool, reason: str | None
) -> None:
    config = DecoderConfig(model=str(folder), lora=LORA, **settings)
    assert PretrainedDecoder.is_stored_by_name(config) == by_name
    found = why_not_exportable(config)
    assert found is None if reason is None else str(found).startswith(reason)


def test_weights_that_the_run_does_not_store_are_read_all_the_same(folder: Path) -> None:
    for settings, is_read in (({"use_lora": True}, True), ({}, False)):
        config = DecoderConfig(model=str(folder), lora=LORA, **settings)
        decoder = build_decoder(config, 5, precision="32-true", load_weights=False)
        assert isinstance(decoder, PretrainedDecoder)
        stored, own = (
            model.get_input_embeddings().weight for model in (PretrainedDecoder(config).model, decoder.model)
        )
        assert torch.equal(stored, own) == is_read


@pytest.mark.parametrize("settings", [{}, {"load_in_4bit": True}, {"use_trm_recursion": True}], ids=str)
def test_what_was_trained_is_loaded_into_a_new_decoder_and_answers_the_same(
    folder: Path, settings: dict[str, bool]
) -> None:
    decoder, given = build(folder, use_lora=True, **settings).eval(), inputs()
    start = decoder(**given).logits
    saved = stir(decoder)
    saved |= {name: buffer for name, buffer in decoder.named_buffers() if name.startswith("recursion.")}
    assert sum(value.numel() for value in saved.values()) < 20_000 + 150_000 * ("use_trm_recursion" in settings)
    torch.manual_seed(99)
    again = build(folder, use_lora=True, **settings).eval()
    missing, unexpected = again.load_state_dict(saved, strict=False)
    assert not unexpected
    assert not set(missing) & set(saved)
    assert torch.equal(again(**given).logits, decoder(**given).logits)
    assert not torch.allclose(again(**given).logits, start)
    text = {"settings": GenerationConfig(max_new_tokens=6), "end_ids": [], "pad_id": 0}
    assert torch.equal(again.generate(**given, **text), decoder.generate(**given, **text))


def test_a_model_trained_whole_is_built_without_reading_its_first_weights(folder: Path, tmp_path: Path) -> None:
    decoder, given = build(folder), inputs()
    stir(decoder)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    again = build(tmp_path, load_weights=False)
    again.load_state_dict(decoder.state_dict())
    assert torch.equal(again.eval()(**given).logits, decoder.eval()(**given).logits)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_merging_into_the_unquantised_model_gives_the_answers_of_the_adapter(tmp_path: Path, kind: Any) -> None:
    folder = save_qwen(tmp_path / "model", kind)
    config = DecoderConfig(model=str(folder), use_lora=True, lora=LORA)
    decoder, given = PretrainedDecoder(config).eval(), inputs()
    stir(decoder)
    model = merge_adapter(config, decoder.state_dict())
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    embeds = torch.cat((given["prefix_embeds"], decoder.embed(given["input_ids"])), dim=1)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, decoder(**given).logits, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "merged")  # a plain model, which loads without peft
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(plain(inputs_embeds=embeds).logits, model(inputs_embeds=embeds).logits)
    assert plain.generation_config.top_k == 20  # what the model's makers set stays with it


def test_adapters_trained_on_four_bits_are_merged_into_the_exact_weights(folder: Path) -> None:
    config = DecoderConfig(model=str(folder), use_lora=True, lora=LORA, load_in_4bit=True)
    saved = stir(PretrainedDecoder(config))
    model = merge_adapter(config, saved)
    name = "layers.1.mlp.up_proj"
    down, up = (saved[f"model.model.{name}.lora_{letter}.default.weight"] for letter in "AB")
    exact = transformers.AutoModelForCausalLM.from_pretrained(folder).get_parameter(f"model.{name}.weight")
    torch.testing.assert_close(model.get_parameter(f"model.{name}.weight"), exact + up @ down * (8 / 4))


def test_only_fitting_adapters_of_a_plain_model_are_merged(folder: Path) -> None:
    config = DecoderConfig(model=str(folder), use_lora=True, lora=LORA)
    state = PretrainedDecoder(config).state_dict()
    with pytest.raises(ConfigError, match=r"decoder\.use_lora: it is off"):
        merge_adapter(DecoderConfig(model=str(folder)), state)
    with pytest.raises(ConfigError, match=r"decoder\.use_trm_recursion: no plain language model holds the recursion"):
        merge_adapter(DecoderConfig(model=str(folder), use_lora=True, use_trm_recursion=True), state)
    with pytest.raises(CheckpointError, match=r"adapters: they do not fit"):
        merge_adapter(DecoderConfig(model=str(folder), use_lora=True, lora=LoraConfig(r=8)), state)


@pytest.mark.parametrize("settings", [{"use_lora": True}, {"load_in_4bit": True}, {"use_trm_recursion": True}], ids=str)
def test_recomputed_activations_give_the_same_gradients(folder: Path, settings: dict[str, bool]) -> None:
    given = inputs()
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(5)
        decoder = build(
            folder, activation_checkpointing=recompute, lora=LoraConfig(r=4, dropout=0.5), **settings
        ).train()
        stir(decoder)
        runs: list[int] = []
        decoder.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        prefix = given["prefix_embeds"].clone().requires_grad_()
        torch.manual_seed(6)
        # With all logits, for the last block then draws its dropout for all positions in both cases.
        given_labels = {"labels": given["input_ids"], "return_logits": True}
        decoder(**given | {"prefix_embeds": prefix}, **given_labels).loss.backward()
        assert len(runs) == 1 + recompute
        gradients.append([prefix.grad, *(parameter.grad for parameter in trained(decoder).values())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("settings", [{}, {"use_lora": True}, {"load_in_4bit": True}], ids=str)
@pytest.mark.parametrize("padded", ["left", "right"])
def test_the_last_mlp_works_where_an_answer_is_read_and_gradients_are_those_of_all_positions(
    folder: Path, settings: dict[str, bool], padded: str
) -> None:
    decoder, given = build(folder, **settings), inputs()
    stir(decoder)
    given["attention_mask"][1, :2] = 0
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[0, 1:4] = -100
    if padded == "right":
        given["attention_mask"], labels = given["attention_mask"].flip(1), labels.flip(1)
    last = decoder.model.model.layers[-1].mlp
    rows: list[torch.Size] = []
    last.up_proj.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:-1]))
    given["prefix_embeds"].requires_grad_()
    wanted = {"prefix": given["prefix_embeds"], **trained(decoder)}

    def loss_and_gradients(**more: bool) -> tuple[torch.Tensor, ...]:
        loss = decoder(**given, labels=labels, **more).loss
        return loss, *torch.autograd.grad(loss, list(wanted.values()))

    found, expected = loss_and_gradients(), loss_and_gradients(return_logits=True)
    assert rows == [(7,), (2, 9)]
    for name, actual, right in zip(("loss", *wanted), found, expected, strict=True):
        torch.testing.assert_close(actual, right, msg=lambda text, name=name: f"{name}: {text}")


def test_the_last_mlp_is_whole_again_after_a_fault(folder: Path) -> None:
    decoder, given = build(folder), inputs()
    before = decoder(**given).logits
    fault = decoder.model.model.norm.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        decoder(**given, labels=given["input_ids"])
    fault.remove()
    assert torch.equal(decoder(**given).logits, before)


def test_a_wholly_masked_prefix_is_as_none_and_leaves_no_nan(folder: Path) -> None:
    decoder, given = build(folder), inputs()
    labels = given["input_ids"].clone()
    masked = given | {"prefix_mask": torch.tensor([[False] * 3, [True] * 3])}
    masked["prefix_embeds"].requires_grad_()
    loss = decoder(**masked, labels=labels.index_fill(1, torch.tensor([0]), -100)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in decoder.parameters())
    assert torch.equal(masked["prefix_embeds"].grad[0], torch.zeros(3, HIDDEN))
    alone = decoder(given["input_ids"][:1], given["attention_mask"][:1], torch.zeros(1, 0, HIDDEN)).logits
    torch.testing.assert_close(decoder(**masked).logits[:1, 3:], alone, atol=1e-5, rtol=1e-5)


def test_other_models_are_refused(tmp_path: Path, folder: Path) -> None:
    transformers.LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path / "llama")
    with pytest.raises(ConfigError, match=r"decoder\.model: .*llama is a llama model; use a causal Qwen2"):
        build(tmp_path / "llama")
    with pytest.raises(ConfigError, match=r"decoder\.model: .*nowhere cannot be loaded; there is no such folder"):
        build(tmp_path / "nowhere")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"decoder\.model: .* is quantised; give the unquantised model"):
        build(tmp_path)


def test_files_that_lack_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_qwen(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not in its files; save"):
        build(folder)


@pytest.mark.parametrize(
    "targets", [("q_proj", "q_pro"), ("lm_head",), (), "q_pro", "*_proj", ("all-linear", "q_proj")]
)
def test_a_target_that_is_no_layer_of_the_blocks_is_refused(folder: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"decoder\.lora\.target_modules: .*choose among down_proj, gate_.* or all-linear$"
    ):
        build(folder, use_lora=True, lora=LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("up_proj", {"up_proj"}),
        (("q_proj", "up_proj"), {"q_proj", "up_proj"}),
    ],
)
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_targets_may_be_one_name_or_all_layers_but_the_head(
    tmp_path: Path, targets: Any, adapted: set[str], load_in_4bit: bool
) -> None:
    folder = save_qwen(tmp_path, tied=False)  # an LM head of its own
    decoder = build(folder, use_lora=True, load_in_4bit=load_in_4bit, lora=LoraConfig(r=2, target_modules=targets))
    names = [name for name, parameter in decoder.named_parameters() if parameter.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == adapted
    assert len(names) == 2 * 2 * len(adapted)  # two matrices in each of two blocks


def test_peft_is_asked_for_when_it_is_needed_and_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    build(folder, freeze=True)
    with pytest.raises(ConfigError, match=r"decoder\.use_lora: it needs peft.*; pip install 'impresa\[qwen\]'"):
        build(folder, use_lora=True)


def test_recursion_starts_as_qwen_to_the_bit_and_learns(folder: Path) -> None:
    given = inputs()
    plain = build(folder, freeze=True).eval()
    config = RecursionConfig(num_cycles=2, num_steps=2, num_rounds=2, num_layers=1, dropout=0.0)
    decoder = build(folder, freeze=True, use_trm_recursion=True, recursion=config).eval()
    assert torch.equal(decoder(**given).logits, plain(**given).logits)
    optimizer = torch.optim.SGD(trained(decoder).values(), lr=0.5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = decoder(**given, labels=given["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    for name, parameter in trained(decoder).items():
        assert parameter.grad.abs().max() > 0, name
    assert not torch.allclose(decoder(**given).logits, plain(**given).logits)


def test_recursion_is_causal(folder: Path) -> None:
    decoder, given = build(folder, freeze=True, use_trm_recursion=True).eval(), inputs()
    nn.init.constant_(decoder.recursion.gate, 1.0)
    before = decoder(**given).logits
    given["input_ids"][:, 3] = (given["input_ids"][:, 3] + 1) % VOCAB
    after = decoder(**given).logits
    assert torch.equal(before[:, : 3 + 3], after[:, : 3 + 3])
    assert not torch.equal(before[:, 3 + 3 :], after[:, 3 + 3 :])
