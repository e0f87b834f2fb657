"""Exported language models: read by peft and by transformers alone, they compute what the run computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import impresa
from impresa.cli.main import main
from impresa.data.chat import TemplateChat
from impresa.errors import CheckpointError
from impresa.export import export_run
from impresa.export.language_model import ENCODERS, write_language_model
from impresa.files import replacing_folder
from impresa.run_dir.save import save_run
from impresa.tasks.answering.subjects import Subject
from impresa.tasks.arguments import Named
from tiny_qwen import save_qwen
from tiny_vlm import answering, picture, tiny_qwen_vlm
from tiny_vqa import base_model, lora_run

QUESTION = "how many shapes are there?"


@torch.inference_mode()
def logits_of(model: Any, run_dir: Path | None = None) -> torch.Tensor:
    """Logits of a transformers model on the run's own prefix and prompt."""
    run = impresa.load(run_dir or lora_run(), "cpu")
    ids = torch.tensor([run.chat.prompt((), QUESTION, run.max_len)])
    prefix = run._prefix([Subject((Named("image", picture(1)),))]).tokens
    text = model.get_input_embeddings()(ids)
    return model(inputs_embeds=torch.cat((prefix, text), dim=1)).logits


@torch.inference_mode()
def own_logits(run_dir: Path | None = None) -> torch.Tensor:
    run = impresa.load(run_dir or lora_run(), "cpu")
    ids = torch.tensor([run.chat.prompt((), QUESTION, run.max_len)])
    return run.model.decoder(
        ids, torch.ones_like(ids), run._prefix([Subject((Named("image", picture(1)),))]).tokens
    ).logits


def base() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base_model(), dtype=torch.float32).eval()


def test_peft_reads_the_adapter(tmp_path: Path) -> None:
    folder = export_run(lora_run(), tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(base(), folder).eval()
    torch.testing.assert_close(logits_of(adapted), own_logits(), atol=1e-5, rtol=1e-5)
    assert (logits_of(base()) - own_logits()).abs().max() > 1e-3
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (4, str(base_model()))
    # peft writes the same names.
    adapted.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "again"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_language_model_is_checked_in_a_new_process(to: Any, tmp_path: Path) -> None:
    export_run(lora_run(), tmp_path / "checked", to=to, check=True)


def test_a_language_model_of_other_weights_fails_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.export.language_model.write_language_model", _written_with_other_weights)
    with pytest.raises(CheckpointError, match=r"fails its check, and nothing was written .logits: differ by"):
        export_run(lora_run(), tmp_path / "other", to="peft", check=True)
    assert not (tmp_path / "other").exists()


def _written_with_other_weights(*given: Any, **options: Any) -> None:
    write_language_model(*given, **options)
    for file in given[2].glob("*model.safetensors"):
        save_file({name: weight + 0.05 for name, weight in load_file(file).items()}, file, {"format": "pt"})


def test_the_adapter_has_the_rest_of_the_run_beside_it(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()  # an empty folder is free
    folder = export_run(lora_run(), tmp_path / "adapter")
    weights = load_file(lora_run() / "model.safetensors")
    rest = load_file(folder / ENCODERS)
    kept = [name for name in weights if not name.startswith("decoder.")]
    assert sorted(rest) == sorted(kept)
    assert all(torch.equal(rest[name], weights[name]) for name in kept)
    for name in ("config.yaml", "preprocessing.json"):
        assert (folder / name).read_bytes() == (lora_run() / name).read_bytes()
    readme = (folder / "README.md").read_text()
    assert str(base_model()) in readme
    files = {path.name for path in folder.iterdir()} - {"README.md"}
    assert all(name in readme for name in files if not name.startswith(("tokenizer_", "chat_")))
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_merged_model_is_a_plain_one(tmp_path: Path) -> None:
    folder = export_run(lora_run(), tmp_path / "new" / "merged", merge=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(merged) is transformers.Qwen2ForCausalLM
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert merged.state_dict().keys() == base().state_dict().keys()
    torch.testing.assert_close(logits_of(merged), own_logits(), atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    run = impresa.load(lora_run(), "cpu")
    framed = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    assert framed["input_ids"] == run.chat.prompt((), QUESTION, run.max_len)
    assert "AutoModelForCausalLM" in (folder / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("merge", [True, False])
def test_a_model_that_was_trained_whole_is_a_plain_one(tmp_path: Path, tied: bool, merge: bool) -> None:
    first = save_qwen(tmp_path / "first", tied=tied)
    config = tiny_qwen_vlm(first)
    whole = answering(config, TemplateChat.from_model(str(first)))
    save_run(tmp_path / "run", whole.model, config, whole.preprocessing)
    shutil.rmtree(first)  # the run holds all of it
    folder = export_run(tmp_path / "run", tmp_path / "whole", merge=merge)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.tie_word_embeddings == tied
    torch.testing.assert_close(logits_of(model.eval(), tmp_path / "run"), own_logits(tmp_path / "run"))
    assert model.generation_config.eos_token_id == transformers.AutoTokenizer.from_pretrained(folder).eos_token_id
    assert "all of which Impresa has trained on" in (folder / "README.md").read_text()


def test_adapters_of_all_linear_layers_are_read_by_peft(tmp_path: Path) -> None:
    overrides = ("decoder.use_lora=true", "decoder.lora.target_modules=all-linear", "decoder.lora.dropout=0")
    config = tiny_qwen_vlm(base_model(), *overrides)
    adapted = answering(config, TemplateChat.from_model(str(base_model())))
    save_run(tmp_path / "run", adapted.model, config, adapted.preprocessing)
    folder = export_run(tmp_path / "run", tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base(), folder).eval()
    expected = own_logits(tmp_path / "run")
    torch.testing.assert_close(logits_of(theirs, tmp_path / "run"), expected, atol=1e-4, rtol=1e-4)
    assert (logits_of(base(), tmp_path / "run") - expected).abs().max() > 1e-3


def test_the_command_prints_the_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora_run()
    capfd.readouterr()
    assert main(["export", str(lora_run()), str(tmp_path / "out"), "--merge"]) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'out'}\n", "")


def test_another_base_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    run = shutil.copytree(lora_run(), tmp_path / "run")
    other = shutil.copytree(base_model(), tmp_path / "other")
    weights = {name: value + 1 for name, value in load_file(other / "model.safetensors").items()}
    transformers.AutoModelForCausalLM.from_pretrained(other).save_pretrained(other, state_dict=weights)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(base_model()), str(other)))
    with pytest.raises(CheckpointError, match="is not the language model that the run was trained with"):
        export_run(run, tmp_path / "out", merge=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), replacing_folder(tmp_path / "new") as temporary:  # noqa: PT012
        (temporary / "half").write_text("x")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []
    with replacing_folder(tmp_path / "new") as temporary:
        (temporary / "whole").write_text("x")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "whole"]
