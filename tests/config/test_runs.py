"""Towers of other runs: their settings are taken over, and what contradicts them is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from impresa.config import ExperimentConfig, load_experiment, prepare, to_yaml
from impresa.config.decoder import DecoderConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.runs import adopt_towers, read_run
from impresa.config.validate import validate
from impresa.errors import ConfigError
from tiny_run import tiny_experiment

SOUND = EncoderConfig(backbone="spectrogram", dim=32, depth=3, embed_dim=16, audio_max_seconds=2.0)


def written(folder: Path, config: ExperimentConfig, *, finished: bool = True) -> Path:
    """A run as far as configs go."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    if finished:
        (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return written(tmp_path / "run", replace(tiny_experiment(), audio_encoder=SOUND))


def asking(run_dir: Path | str, *overrides: str) -> ExperimentConfig:
    return load_experiment("shapes_vqa_trm", [f"vision_encoder.checkpoint={run_dir}", *overrides])


def refusal(config: ExperimentConfig) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        adopt_towers(config)
    lines = str(caught.value).splitlines()
    assert all("; " in line for line in lines)
    return tuple(lines)


def test_the_tower_and_the_image_size_are_those_of_the_run(run_dir: Path) -> None:
    config = adopt_towers(asking(run_dir, "dataset.batch_size=17"))
    theirs = tiny_experiment()
    assert config.vision_encoder == replace(theirs.vision_encoder, checkpoint=str(run_dir))
    assert config.dataset.image_size == 16
    assert config.dataset.batch_size == 17
    assert validate(config) == config


def test_what_a_tower_is_used_for_stays_our_own(run_dir: Path) -> None:
    own = ("vision_encoder.freeze=false", "vision_encoder.activation_checkpointing=true")
    tower = adopt_towers(asking(run_dir, *own)).vision_encoder
    assert (tower.freeze, tower.activation_checkpointing, tower.dim) == (False, True, 16)


def test_twice_is_once(run_dir: Path) -> None:
    once = adopt_towers(asking(run_dir))
    assert adopt_towers(once) == once


def test_preparing_validates_adopts_and_is_idempotent(run_dir: Path) -> None:
    config = asking(run_dir)
    once = prepare(config)
    assert once == validate(adopt_towers(config))
    assert once.vision_encoder.dim == 16
    assert prepare(once) == once


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["dataset.train_path=nowhere"], "dataset.train_path (training.data.train_path): nowhere does not exist; "),
        (["vision_encoder.checkpoint=nowhere"], "vision_encoder.checkpoint: nowhere does not exist; "),
    ],
)
def test_preparing_refuses_what_cannot_be_run(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(load_experiment("shapes", overrides))
    assert caught.value.lines[0].startswith(line)


def test_preparing_checks_a_config_that_was_built_in_python(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"^seed: got -1; "):
        prepare(replace(asking(run_dir), seed=-1))


def test_without_a_checkpoint_nothing_changes() -> None:
    assert adopt_towers(tiny_experiment()) == tiny_experiment()


def test_a_home_folder_is_a_path_too(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run_dir.parent))
    assert adopt_towers(asking("~/run")).vision_encoder.dim == 16


def test_all_towers_of_an_alignment_can_come_from_runs(run_dir: Path) -> None:
    config = tiny_experiment(
        *("vision_encoder.dim=512", "vision_encoder.depth=12", "text_encoder.dim=512", "text_encoder.depth=12"),
        *("vision_encoder.num_heads=8", "text_encoder.num_heads=8"),
        *(f"vision_encoder.checkpoint={run_dir}", f"text_encoder.checkpoint={run_dir}"),
    )
    with_audio = replace(config, audio_encoder=EncoderConfig(backbone="spectrogram", checkpoint=str(run_dir)))
    found = adopt_towers(with_audio)
    theirs = read_run("text_encoder.checkpoint", str(run_dir))
    assert found.text_encoder == replace(theirs.text_encoder, checkpoint=str(run_dir))
    assert found.vision_encoder.depth == 1
    assert found.audio_encoder == replace(SOUND, checkpoint=str(run_dir))


def test_only_the_text_tower_leaves_the_image_size_alone(run_dir: Path) -> None:
    config = tiny_experiment("dataset.image_size=32", f"text_encoder.checkpoint={run_dir}")
    assert adopt_towers(config).dataset.image_size == 32


def test_contradictions_are_told_together(run_dir: Path) -> None:
    lines = refusal(
        asking(run_dir, "vision_encoder.dim=32", "vision_encoder.memory.num_memory_tokens=5", "dataset.image_size=48")
    )
    assert f"vision_encoder.dim: is 16 in {run_dir}; leave it out" in lines
    assert any(line.startswith("vision_encoder.memory: ") for line in lines)
    assert f"dataset.image_size: 48, but {run_dir} was trained at 16; leave it out" in lines
    assert len(lines) == 3


def test_what_agrees_may_be_written(run_dir: Path) -> None:
    agreeing = asking(run_dir, "vision_encoder.dim=16", "dataset.image_size=16", "vision_encoder.patch_size=8")
    assert adopt_towers(agreeing) == adopt_towers(asking(run_dir))


def test_a_run_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    (missing,) = refusal(asking(tmp_path / "none"))
    assert missing.startswith(f"vision_encoder.checkpoint: {tmp_path}/none does not exist; ")
    (tmp_path / "empty").mkdir()
    (none,) = refusal(asking(tmp_path / "empty"))
    assert none.startswith(f"vision_encoder.checkpoint: {tmp_path}/empty is no run")


def test_a_run_that_would_be_refused_is_not_suggested(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    asked = written(place / "asked", load_experiment("shapes_vqa_trm"))
    (line,) = refusal(asking(place))
    assert line.startswith(f"vision_encoder.checkpoint: {place} is no run")
    with pytest.raises(ConfigError, match=f"holds runs and is none itself; name one, such as {asked}$"):
        read_run("RUN", str(place))
    aligned = written(place / "aligned", tiny_experiment())
    os.utime(aligned, (0, 0))
    (line,) = refusal(asking(place))
    assert line.endswith(f"holds runs and is none itself; name one, such as {aligned}")


def test_an_unfinished_run_is_refused_with_its_fix(tmp_path: Path) -> None:
    run_dir = written(tmp_path / "run", tiny_experiment(), finished=False)
    (line,) = refusal(asking(run_dir))
    fix = f"`impresa train --output-dir {run_dir} --resume` finishes it"
    assert line == f"vision_encoder.checkpoint: {run_dir} has not finished; {fix}"


def test_a_tower_that_the_run_has_not_is_refused(tmp_path: Path) -> None:
    run_dir = written(tmp_path / "run", tiny_experiment())
    audio = EncoderConfig(backbone="spectrogram", checkpoint=str(run_dir))
    (line,) = refusal(replace(tiny_experiment(), audio_encoder=audio))
    assert line == f"audio_encoder.checkpoint: {run_dir} has no such tower; name another run"


def test_a_run_with_a_decoder_has_no_towers_to_give(tmp_path: Path) -> None:
    answers = replace(tiny_experiment(), decoder=DecoderConfig(type="trm"))
    run_dir = written(tmp_path / "run", answers)
    (line,) = refusal(asking(run_dir))
    assert line.endswith(f"{run_dir} is a run with a decoder; name the alignment that it stands on")


def test_the_alignment_of_a_text_tower_keeps_its_tokenizer_and_weights() -> None:
    import torch

    import impresa
    from impresa.data.preprocessing import load_tokenizer
    from impresa.training.parts import build_parts
    from tiny_run import finished_run

    config = tiny_experiment(f"text_encoder.checkpoint={finished_run()}", "dataset.shapes.seed=5", "seed=3")
    parts = build_parts(validate(adopt_towers(config)), None)
    theirs = impresa.load(finished_run(), "cpu")
    assert parts.preprocessing.tokenizer.vocab_size == load_tokenizer(finished_run() / "tokenizer").vocab_size
    tower = parts.model.text_encoder
    assert all(torch.equal(value, theirs.model.text_encoder.state_dict()[k]) for k, value in tower.state_dict().items())
    assert not any(p.requires_grad for p in tower.parameters())
    assert all(p.requires_grad for p in parts.model.vision_encoder.parameters())
