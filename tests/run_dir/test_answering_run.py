"""Runs of vision-language models on disk: the same answers after loading, what is stored, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import impresa
from forged_runs import forge, refusal
from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import adopt_towers
from impresa.data.chat import ChatFormat, TemplateChat
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.errors import CheckpointError, ConfigError
from impresa.export import export_run
from impresa.run_dir.load import load_answerer, load_embedder, read_run_config
from impresa.run_dir.save import save_run
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.build import build_vlm, start_from
from impresa.tasks.answering.language_model import IDENTITY, LANGUAGE_MODEL
from impresa.tasks.answering.model import VisionLanguageModel
from tiny_causal import save_causal
from tiny_hub import clip
from tiny_qwen import chat_tokenizer, save_qwen
from tiny_run import copy_of_run, finished_run
from tiny_vlm import (
    SIZE,
    chat,
    collated,
    finished_vlm,
    picture,
    rough,
    samples,
    tiny_qwen_vlm,
    tiny_vlm,
    tiny_vlm_on,
)

LORA = ("decoder.use_lora=true", "decoder.lora.r=4", "decoder.lora.dropout=0")
ALL = (*LORA, "decoder.load_in_4bit=true", "decoder.use_trm_recursion=true", "decoder.recursion.num_layers=1")
ALL += ("decoder.generation.max_new_tokens=8",)
QWEN = {"whole": (), "adapters": LORA, "frozen": ("decoder.freeze=true",), "everything": ALL}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def format_of(config: ExperimentConfig) -> ChatFormat:
    assert config.decoder is not None
    return chat() if config.decoder.type == "trm" else TemplateChat(chat_tokenizer())


def saved(folder: Path, config: ExperimentConfig) -> AnsweringModel:
    """A run with rough weights; the model that was saved, in use."""
    chat_format = format_of(config)
    model = rough(build_vlm(config, chat_format.vocab_size))
    save_run(folder, model, config, Preprocessing(chat_format, ImageTransform(SIZE)), examples=samples())
    return AnsweringModel(model, config, Preprocessing(chat_format, ImageTransform(SIZE)), "cpu")


def answers(model: AnsweringModel) -> list[str]:
    found = model.ask([picture(seed) for seed in range(4)], "what colour is it?")
    return [*found, *model.caption([picture(5), picture(6)])]


def same_states(ours: VisionLanguageModel, theirs: VisionLanguageModel) -> bool:
    one, other = ours.state_dict(), theirs.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def vlm_copy(target: Path) -> Path:
    shutil.copytree(finished_vlm(), target)
    return target


def test_a_trm_answers_the_same_after_loading(tmp_path: Path) -> None:
    before = saved(tmp_path, tiny_vlm("decoder.generation.max_new_tokens=12"))
    loaded = impresa.load(tmp_path, "cpu")
    assert same_states(before.model, loaded.model)
    assert answers(loaded) == answers(before)
    assert len(set(answers(before))) > 1
    assert loaded.generation.max_new_tokens == 12


@pytest.mark.parametrize("kind", QWEN)
def test_qwen_answers_the_same_after_loading(kind: str, qwen: Path, tmp_path: Path) -> None:
    before = saved(tmp_path, tiny_qwen_vlm(qwen, *QWEN[kind]))
    loaded = impresa.load(tmp_path, "cpu")
    assert same_states(before.model, loaded.model)
    assert answers(loaded) == answers(before)
    assert len(set(answers(before))) > 1


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", ()),
        ("gpt2", ("decoder.freeze=true",)),
        ("gemma3", ("decoder.load_in_8bit=true", "decoder.use_lora=true")),
    ],
)
def test_any_causal_model_is_trained_with_a_system_prompt_and_answers_the_same_after_loading(
    family: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    from impresa.training.parts import build_parts
    from impresa.training.run import train

    base = save_causal(tmp_path / "base", family)
    more = ("decoder.type=causal_lm", "decoder.max_len=100", "decoder.system_prompt=be brief.", "trainer.max_steps=2")
    run = train(tiny_qwen_vlm(base, *more, *settings), tmp_path / "run", command=[])
    loaded, again = load_answerer(run, "cpu"), load_answerer(run, "cpu")
    assert answers(loaded) == answers(again)
    assert loaded.chat.system == "be brief."
    prompt = loaded.chat.prompt((), "is it red?", 100)
    assert prompt[:9] == loaded.chat.tokens("be brief.")
    # A second stage has the system prompt of its own config.
    parts = build_parts(tiny_qwen_vlm(base, *more[:2], *settings, f"decoder.init_from={run}"), None)
    assert parts.preprocessing.chat.prompt((), "is it red?", 100) == prompt[11:]


def test_a_loaded_model_can_be_saved_again(qwen: Path, tmp_path: Path) -> None:
    before = saved(tmp_path / "run", tiny_qwen_vlm(qwen, *LORA))
    loaded = load_answerer(tmp_path / "run", "cpu")
    save_run(tmp_path / "again", loaded.model, loaded.config, loaded.preprocessing, examples=samples())
    assert same_states(before.model, load_answerer(tmp_path / "again", "cpu").model)


def test_a_whole_language_model_needs_nothing_from_where_it_came(tmp_path: Path) -> None:
    base = save_qwen(tmp_path / "base")
    expected = answers(saved(tmp_path / "run", tiny_qwen_vlm(base)))
    shutil.rmtree(base)
    assert answers(load_answerer(tmp_path / "run", "cpu")) == expected


def test_neither_the_alignment_nor_a_pretrained_tower_is_needed_any_more(tmp_path: Path) -> None:
    from impresa.training.run import train
    from tiny_run import tiny_experiment

    tower = clip(tmp_path / "clip")
    plain = (f"vision_encoder.backbone={tower}", "vision_encoder.dim=512", "vision_encoder.depth=12")
    plain += ("vision_encoder.num_heads=8", "vision_encoder.drop_rate=0", "vision_encoder.patch_size=16")
    plain += ("vision_encoder.memory.enabled=false", "vision_encoder.memory.dim=512", "trainer.epochs=1")
    plain += ("vision_encoder.memory.num_memory_tokens=64", "vision_encoder.memory.mem_reinit_steps=100")
    aligned = train(tiny_experiment(*plain), tmp_path / "aligned", command=[])
    config = adopt_towers(tiny_vlm_on(aligned))
    expected = answers(saved(tmp_path / "run", config))
    shutil.rmtree(aligned)
    shutil.rmtree(tower)
    assert answers(load_answerer(tmp_path / "run", "cpu")) == expected


def test_of_a_frozen_language_model_nothing_is_stored(qwen: Path, tmp_path: Path) -> None:
    saved(tmp_path / "frozen", tiny_qwen_vlm(qwen, "decoder.freeze=true"))
    saved(tmp_path / "adapted", tiny_qwen_vlm(qwen, *ALL))
    saved(tmp_path / "whole", tiny_qwen_vlm(qwen))
    frozen, adapted, whole = (
        load_file(tmp_path / name / "model.safetensors") for name in ("frozen", "adapted", "whole")
    )
    assert {name.split(".")[0] for name in frozen} == {"vision_encoder", "fusion"}
    decoder = [name for name in adapted if name.startswith("decoder.")]
    assert decoder
    assert all("lora_" in name or name.startswith("decoder.recursion.") for name in decoder)
    assert frozen.keys() < whole.keys()
    assert not list((tmp_path / "frozen").rglob("backbones/decoder/config.json"))


def test_the_runs_own_frozen_tower_is_stored_whole(tmp_path: Path) -> None:
    stored = load_file(finished_vlm() / "model.safetensors")
    aligned = load_file(finished_run() / "model.safetensors")
    tower = {name for name in stored if name.startswith("vision_encoder.")}
    assert tower
    assert all(torch.equal(stored[name], aligned[name]) for name in tower)
    assert "vision_encoder.head.weight" not in tower  # a decoder reads no embedding


def test_another_language_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    base = save_qwen(tmp_path / "base")
    saved(tmp_path / "run", tiny_qwen_vlm(base, *LORA))
    save_qwen(base, scale=0.21)
    message = refusal(tmp_path / "run")
    assert f"{base} is not the language model that the run was trained with" in message
    assert "decoder.model" in message


def test_a_language_model_that_is_gone_is_named_and_may_move(tmp_path: Path) -> None:
    base, run_dir = save_qwen(tmp_path / "base"), tmp_path / "run"
    expected = answers(saved(run_dir, tiny_qwen_vlm(base, *LORA)))
    base.rename(tmp_path / "moved")
    assert "there is no such folder" in refusal(run_dir, ConfigError)
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace(str(base), str(tmp_path / "moved")))
    assert answers(load_answerer(run_dir, "cpu")) == expected


@pytest.mark.parametrize("part", ["decoder.embedding", "fusion.projections.image", "vision_encoder.backbone.positions"])
def test_golden_answers_catch_weights_with_a_forged_checksum(part: str, tmp_path: Path) -> None:
    run_dir = vlm_copy(tmp_path / "run")
    weights = load_file(run_dir / "model.safetensors")
    for name in [name for name in weights if name.startswith(part)]:
        weights[name] = 3 * torch.randn_like(weights[name])
    save_file(weights, run_dir / "model.safetensors")
    assert "is not what the training wrote" in refusal(run_dir)
    forge(run_dir, "model.safetensors")
    assert "outputs differ from those of the training" in refusal(run_dir)


def test_a_missing_weight_is_refused_though_the_checksum_fits(tmp_path: Path) -> None:
    run_dir = vlm_copy(tmp_path / "run")
    weights = load_file(run_dir / "model.safetensors")
    del weights["decoder.gain"]
    save_file(weights, run_dir / "model.safetensors")
    forge(run_dir, "model.safetensors")
    assert "does not fit the config (decoder.gain)" in refusal(run_dir)


def test_golden_questions_are_raw_and_few() -> None:
    golden = load_file(finished_vlm() / "golden.safetensors")
    assert golden["image_0"].dtype == torch.uint8
    assert golden["states"].shape == (4, 16)


def test_golden_states_are_made_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr("impresa.run_dir.save.save_golden", lambda _, user, __: devices.append(str(user.device)))
    monkeypatch.setattr("impresa.run_dir.save.write_manifest", lambda _: None)
    config, chat_format = tiny_vlm(), chat()
    model = build_vlm(config, chat_format.vocab_size)
    save_run(tmp_path, model, config, Preprocessing(chat_format, ImageTransform(SIZE)), device="cpu:0")
    assert devices == ["cpu:0"]


def test_each_kind_of_model_is_refused_where_the_other_is_needed() -> None:
    with pytest.raises(CheckpointError, match=r"^.*: is an alignment and answers nothing; "):
        load_answerer(finished_run(), "cpu")
    with pytest.raises(CheckpointError, match=r"^.*: answers questions and embeds nothing; "):
        load_embedder(finished_vlm(), "cpu")
    assert isinstance(load_answerer(finished_vlm(), "cpu"), AnsweringModel)


class FakeHub:
    """The hub's cache on a machine that is offline, with one model whose owner publishes new commits."""

    ID = "someone/qwen"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repo = folder / f"models--{self.ID.replace('/', '--')}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def publish(self, commit: str, scale: float) -> Path:
        """A new `main`; returns the folder of its files."""
        (self.repo / "refs").mkdir(parents=True, exist_ok=True)
        (self.repo / "refs" / "main").write_text(commit)
        return save_qwen(self.repo / "snapshots" / commit, scale=scale)


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path / "hub", monkeypatch)


def test_a_run_keeps_the_commit_of_its_language_model(hub: FakeHub, tmp_path: Path) -> None:
    files = hub.publish(OLD, 0.2)
    expected = answers(saved(tmp_path / "run", tiny_qwen_vlm(Path(hub.ID), *LORA)))
    known = json.loads((tmp_path / "run" / LANGUAGE_MODEL / IDENTITY).read_text())
    assert (known["model"], known["identity"]) == (hub.ID, f"commit {OLD}")
    hub.publish(NEW, 0.3)
    loaded = load_answerer(tmp_path / "run", "cpu")
    assert answers(loaded) == expected
    # What is loaded and saved again still knows.
    save_run(tmp_path / "again", loaded.model, loaded.config, loaded.preprocessing, examples=samples())
    assert answers(load_answerer(tmp_path / "again", "cpu")) == expected
    # The adapter says what it belongs to.
    export_run(tmp_path / "run", tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == OLD
    assert f"from_pretrained('{hub.ID}', revision='{OLD}')" in (tmp_path / "adapter" / "README.md").read_text()
    merged = load_file(export_run(tmp_path / "run", tmp_path / "merged", merge=True) / "model.safetensors")
    table = "model.embed_tokens.weight"
    assert torch.equal(merged[table], load_file(files / "model.safetensors")[table])


def test_a_folder_may_take_the_place_of_a_model_from_the_hub_if_it_holds_the_same(hub: FakeHub, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    files = hub.publish(OLD, 0.2)
    expected = answers(saved(run_dir, tiny_qwen_vlm(Path(hub.ID), *LORA)))
    shutil.copytree(files, tmp_path / "copy")
    other = save_qwen(tmp_path / "other", scale=0.3)
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace(hub.ID, str(tmp_path / "copy")))
    assert answers(load_answerer(run_dir, "cpu")) == expected
    (run_dir / "config.yaml").write_text(config.replace(hub.ID, str(other)))
    assert f"{other} is not the language model that the run was trained with" in refusal(run_dir)
    (other / "config.json").unlink()
    assert "the folder has no config.json" in refusal(run_dir, ConfigError)


def second_stage(run_dir: Path, config: ExperimentConfig) -> tuple[VisionLanguageModel, dict[str, Any], int]:
    """A new model continued from a run, its state before, and how many tensors it took."""
    model = build_vlm(config, format_of(config).vocab_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return model, before, start_from(model, run_dir)


def test_projector_first_then_adapters(qwen: Path, tmp_path: Path) -> None:
    first = saved(tmp_path, tiny_qwen_vlm(qwen, "decoder.freeze=true"))
    model, before, num = second_stage(tmp_path, tiny_qwen_vlm(qwen, *LORA))
    stored = load_file(tmp_path / "model.safetensors")
    assert num == len(stored) > 0
    state = model.state_dict()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert all(torch.equal(state[name], before[name]) for name in state if name not in stored)
    second = AnsweringModel(model, first.config, first.preprocessing, "cpu")
    assert answers(second) == answers(first)  # adapters start as nothing


def test_adapters_go_on_as_adapters(qwen: Path, tmp_path: Path) -> None:
    first = saved(tmp_path, tiny_qwen_vlm(qwen, *LORA))
    model, _, _ = second_stage(tmp_path, tiny_qwen_vlm(qwen, *LORA))
    assert same_states(first.model, model)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (LORA, (), r"which this model has not; make them alike$"),
        (LORA, ("decoder.use_lora=true", "decoder.lora.r=2"), r"which this model has not; make them alike$"),
        ((), ("decoder.freeze=true",), r"which is frozen here and would not be kept; "),
        (("fusion.strategy=gated",), (), r"which this model has not; make them alike$"),
        (
            ("decoder.prefix_layer=penultimate",),
            ("decoder.prefix_layer=last",),
            r"model has vision_encoder.backbone.transformer.blocks.1\S*, which .* would stay at random; ",
        ),
    ],
)
def test_a_second_stage_that_would_lose_weights_or_draw_some_is_refused(
    first: tuple[str, ...], second: tuple[str, ...], message: str, qwen: Path, tmp_path: Path
) -> None:
    saved(tmp_path, tiny_qwen_vlm(qwen, *first))
    with pytest.raises(CheckpointError, match=rf"^decoder.init_from: [^\n]*{message}"):
        second_stage(tmp_path, tiny_qwen_vlm(qwen, *second))


def test_a_deeper_recursion_of_a_trm_is_not_drawn_beside_the_first_runs(tmp_path: Path) -> None:
    saved(tmp_path, tiny_vlm())
    with pytest.raises(CheckpointError, match=r"model has decoder.recursion.network.blocks.1\S*, which .* at random; "):
        second_stage(tmp_path, tiny_vlm("decoder.recursion.num_layers=2"))


@pytest.mark.parametrize("more", [ALL[3:], (*LORA, *ALL[3:])], ids=["recursion", "adapters and recursion"])
def test_what_changes_nothing_at_first_may_be_new(more: tuple[str, ...], qwen: Path, tmp_path: Path) -> None:
    saved(tmp_path, tiny_qwen_vlm(qwen, "decoder.freeze=true"))
    frozen = () if more[: len(LORA)] == LORA else ("decoder.freeze=true",)
    _, _, num = second_stage(tmp_path, tiny_qwen_vlm(qwen, *frozen, *more))
    assert num == len(load_file(tmp_path / "model.safetensors"))


def test_a_language_model_that_was_frozen_may_be_trained_whole_if_it_is_the_same(qwen: Path, tmp_path: Path) -> None:
    from impresa.training.parts import build_parts

    saved(tmp_path / "run", tiny_qwen_vlm(qwen, "decoder.freeze=true"))
    goes_on = f"decoder.init_from={tmp_path / 'run'}"
    parts = build_parts(tiny_qwen_vlm(qwen, goes_on), None)
    base = load_file(qwen / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(parts.model.decoder.model.get_input_embeddings().weight, base)
    other = save_qwen(tmp_path / "other", scale=0.3)
    for settings in ((), LORA, ("decoder.freeze=true",)):
        with pytest.raises(CheckpointError, match=r"/other is not the language model that the run was trained with; "):
            build_parts(tiny_qwen_vlm(other, goes_on, *settings), None)


def test_a_second_stage_stands_on_the_commit_of_the_first(hub: FakeHub, tmp_path: Path) -> None:
    from impresa.training.parts import build_parts

    files = hub.publish(OLD, 0.2)
    saved(tmp_path / "run", tiny_qwen_vlm(Path(hub.ID), "decoder.freeze=true"))
    hub.publish(NEW, 0.3)
    parts = build_parts(tiny_qwen_vlm(Path(hub.ID), f"decoder.init_from={tmp_path / 'run'}", *LORA), None)
    base = load_file(files / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(parts.model.decoder.model.get_input_embeddings().weight, base)


def test_a_second_stage_on_other_data_reads_with_the_tokenizer_of_the_first(tmp_path: Path) -> None:
    from impresa.training.parts import build_parts

    other = "dataset.shapes.seed=5", "dataset.shapes.num_train=200"
    own = build_parts(adopt_towers(tiny_vlm_on(finished_run(), *other)), None).preprocessing.tokenizer
    config = tiny_vlm_on(finished_run(), f"decoder.init_from={finished_vlm()}", *other)
    chat_format = build_parts(adopt_towers(config), None).preprocessing.tokenizer
    first = load_answerer(finished_vlm(), "cpu").chat
    question = "is there a large purple star above the small cyan ring?"
    assert chat_format.prompt((), question, 48) == first.prompt((), question, 48)
    assert own.prompt((), question, 48) != first.prompt((), question, 48)


def test_a_second_stage_is_trained_from_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from impresa.training.parts import build_parts
    from impresa.training.run import train

    config = tiny_vlm_on(finished_run(), f"decoder.init_from={finished_vlm()}", "seed=9")
    parts = build_parts(adopt_towers(config), None)
    assert same_states(parts.model, impresa.load(finished_vlm(), "cpu").model)
    with pytest.raises(ConfigError, match=r"^decoder.init_from: .* is an alignment; name it in vision_encoder"):
        build_parts(adopt_towers(tiny_vlm_on(finished_run(), f"decoder.init_from={finished_run()}")), None)
    monkeypatch.setattr("impresa.training.finish.write_report", lambda run_dir: run_dir / "report.html")
    run_dir = train(replace(config, trainer=replace(config.trainer, epochs=1)), tmp_path / "run", command=[])
    assert read_run_config(run_dir).decoder.init_from == str(finished_vlm())


def test_the_alignment_may_be_deleted_before_the_run_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from impresa.training.run import train

    monkeypatch.setattr("impresa.training.finish.write_report", lambda run_dir: run_dir / "report.html")
    aligned = copy_of_run(tmp_path / "aligned")
    run_dir = train(tiny_vlm_on(aligned), tmp_path / "run", command=[])
    expected = answers(load_answerer(run_dir, "cpu"))
    shutil.rmtree(aligned)
    assert answers(load_answerer(run_dir, "cpu")) == expected


def test_the_loss_of_a_loaded_model_is_that_of_the_saved_one(qwen: Path, tmp_path: Path) -> None:
    config = tiny_qwen_vlm(qwen, *ALL)
    before = saved(tmp_path, config)
    batch = collated(samples(), format_of(config))
    with torch.no_grad():
        assert torch.equal(before.model(batch).loss, load_answerer(tmp_path, "cpu").model(batch).loss)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.jinja", "{{ messages.nothing.more }}"),
        ("tokenizer.json", "3.5"),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_a_damaged_tokenizer_of_a_language_model_is_one_line(
    name: str, content: str, qwen: Path, tmp_path: Path
) -> None:
    saved(tmp_path / "run", tiny_qwen_vlm(qwen))
    (tmp_path / "run/tokenizer" / name).write_text(content)
    forge(tmp_path / "run", f"tokenizer/{name}")
    assert "/tokenizer" in refusal(tmp_path / "run")


def test_a_run_of_before_projectors_and_rates_of_parts_loads_unchanged(tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_vlm(), tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    new = ("projector", "lr_fusion", "lr_lora", "batch_by_length", "layer_decay")
    kept = [line for line in text.splitlines() if line.strip().split(":")[0] not in new]
    assert len(kept) == len(text.splitlines()) - len(new)
    (run / "config.yaml").write_text("\n".join(kept) + "\n")
    before, after = load_answerer(finished_vlm(), "cpu"), load_answerer(run, "cpu")
    assert before.config == after.config
    assert before.ask(picture(1), "how many?") == after.ask(picture(1), "how many?")


def test_a_second_stage_with_another_projector_is_refused() -> None:
    vocab_size = load_answerer(finished_vlm(), "cpu").chat.vocab_size
    model = build_vlm(adopt_towers(tiny_vlm_on(finished_run(), "fusion.projector=mlp")), vocab_size)
    with pytest.raises(CheckpointError, match=r"has fusion.projections.image.\w+, which this model has not; make them"):
        start_from(model, finished_vlm())
