"""Keys that do nothing where they stand: refused, or warned of before a training run."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from impresa.cli.main import main
from impresa.config import load_experiment, to_yaml
from impresa.config.experiment import EncoderConfig, ExperimentConfig
from impresa.config.paths import shipped_names
from impresa.config.relevance import REFUSED, WARNED, notices
from impresa.config.runs import adopt_towers
from impresa.config.tree import known_keys, merge, nested
from impresa.config.validate import experiment_from_tree
from impresa.errors import ConfigError

TRM, QWEN = ("decoder.type", "trm"), ("decoder.type", "qwen")
ALIGNMENT = ("name", "alignment")
Setting = tuple[str, Any]
FAULTS: list[tuple[Setting, Setting, str]] = [
    (TRM, ("losses.type", "siglip"), "with a decoder, which learns answers alone; leave it out"),
    (TRM, ("losses.mrl_weight", 2), "with a decoder, which"),
    (QWEN, ("optimization.lr_logits", 1), "with a decoder, which"),
    (TRM, ("dataset.caption_dropout", 0.1), "with a decoder, which"),
    (ALIGNMENT, ("dataset.questions_per_image", 2), "without a decoder, which alone is asked; add one or leave it out"),
    (ALIGNMENT, ("dataset.question_column", "q"), "without a decoder, which"),
    (ALIGNMENT, ("dataset.answer_column", "a"), "without a decoder, which"),
    (ALIGNMENT, ("dataset.kind_column", "k"), "without a decoder, which"),
    (QWEN, ("decoder.lora.r", 4), "without decoder.use_lora; set that to true or leave it out"),
]
NOTICES: list[tuple[list[Setting], str]] = [
    ([TRM, ("text_encoder.depth", 3)], "text_encoder.depth: does nothing with a decoder, which reads the text itself"),
    (
        [TRM, ("text_encoder.depth", 3), ("text_encoder.dim", 64)],
        "text_encoder.dim and text_encoder.depth: do nothing with a decoder, which reads the text itself",
    ),
    ([TRM, ("dataset.prompt_templates", ["a {}"])], "dataset.prompt_templates: does nothing with a decoder"),
    (
        [TRM, ("dataset.train_path", "x"), ("dataset.class_names", ["a"])],
        "dataset.class_names: does nothing with a decoder",
    ),
    (
        [("dataset.max_file_mib", 1), ("dataset.class_names", ["a"]), ("dataset.allow_outside", True)],
        "dataset.class_names, dataset.max_file_mib and dataset.allow_outside: do nothing for shapes, which are drawn",
    ),
    ([TRM, ("vision_encoder.embed_dim", 64)], "vision_encoder.embed_dim: does nothing with a decoder"),
    ([TRM, ("audio_encoder.embed_dim", 64)], "audio_encoder.embed_dim: does nothing with a decoder"),
    ([TRM, ("vision_encoder.use_mrl", True)], "vision_encoder.use_mrl: does nothing with a decoder"),
    ([TRM, ("vision_encoder.pooling", "mean")], "vision_encoder.pooling: does nothing with a decoder"),
    ([TRM, ("vision_encoder.use_attention_pooling", True)], "vision_encoder.use_attention_pooling: does nothing with"),
    (
        [TRM, ("vision_encoder.use_perceiver", True)],
        "vision_encoder.use_perceiver: does nothing here, the decoder reads no latents; set decoder.prefix to",
    ),
    ([QWEN, ("decoder.recursion.num_layers", 3)], "decoder.recursion.num_layers: does nothing for qwen without"),
    (
        [TRM, ("decoder.recursion.recursive", False), ("decoder.recursion.num_rounds", 3)],
        "decoder.recursion.num_rounds: does nothing without decoder.recursion.recursive, a plain stack",
    ),
]
FINE: list[list[Setting]] = [
    [("text_encoder.depth", 3), ("losses.type", "siglip"), ("optimization.lr_logits", 1)],
    [("dataset.test_path", "x"), ("dataset.max_file_mib", 1), ("dataset.allow_outside", True)],
    [TRM, ("dataset.questions_per_image", 2), ("decoder.recursion.num_layers", 3)],
    [QWEN, ("decoder.use_lora", True), ("decoder.lora.r", 4)],
    [QWEN, ("decoder.use_trm_recursion", True), ("decoder.recursion.num_layers", 3)],
    [TRM, ("vision_encoder.use_perceiver", True), ("decoder.prefix", "perceiver")],
    [TRM, ("vision_encoder.pooling", "mean"), ("vision_encoder.freeze", True)],
    [TRM, ("decoder.recursion.recursive", False), ("decoder.recursion.num_layers", 3)],
]


def experiment(*settings: Setting) -> ExperimentConfig:
    trees: list[dict[str, Any]] = [nested(key, value) for key, value in settings]
    return experiment_from_tree(reduce(merge, trees))


@pytest.mark.parametrize(("base", "setting", "why"), FAULTS, ids=[row[1][0] for row in FAULTS])
def test_what_does_nothing_is_refused(base: Setting, setting: Setting, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(base, setting)
    (line,) = caught.value.lines
    assert line.startswith(f"{setting[0]}: does nothing {why}")


@pytest.mark.parametrize(("settings", "line"), NOTICES)
def test_what_another_arm_of_an_ablation_needs_is_warned_of(settings: list[Setting], line: str) -> None:
    (warning,) = notices(experiment(*settings))
    assert warning.startswith(line)


@pytest.mark.parametrize("settings", FINE)
def test_what_does_something_is_not_warned_of(settings: list[Setting]) -> None:
    assert notices(experiment(*settings)) == []


def test_the_rules_name_keys_that_there_are() -> None:
    known = list(known_keys(ExperimentConfig))
    for key in (key for rule in (*REFUSED, *WARNED) for key in rule.keys):
        section = f"{key.removesuffix('.*')}."
        assert (key in known and not key.endswith(".*")) or any(other.startswith(section) for other in known)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configs_write_little_in_vain(name: str) -> None:
    # The profile of the document names the text tower of its alignment beside its decoder.
    expected = ["text_encoder.backbone: does nothing with a decoder, which reads the text itself"]
    assert notices(load_experiment(name)) == (expected if name == "trm_vlm_qa_3b_reg" else [])


def test_what_a_tower_has_from_its_run_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tower = EncoderConfig(embed_dim=64, pooling="mean", use_mrl=True, mrl_dimensions=(32,), use_perceiver=True)
    run = ExperimentConfig(vision_encoder=tower, text_encoder=EncoderConfig(backbone="transformer", embed_dim=64))
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(run))
    (tmp_path / "run" / "manifest.json").write_text("{}")
    adopted = adopt_towers(experiment(TRM, ("vision_encoder.checkpoint", str(tmp_path / "run"))))
    assert adopted.vision_encoder.use_mrl
    assert notices(adopted) == []


def test_a_training_run_warns_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("impresa.training.run.dry_run", lambda config: "done")
    on = ["decoder.type=trm", "vision_encoder.use_perceiver=true", "vision_encoder.memory.enabled=false"]
    assert main(["train", "shapes", "--dry-run", *on]) == 0
    told = capsys.readouterr()
    assert told.out == "done\n"
    assert "vision_encoder.use_perceiver: does nothing here, the decoder reads no latents" in told.err
    assert "text_encoder.embed_dim, text_encoder.dim" in told.err
