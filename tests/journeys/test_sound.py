"""A user aligns image, text and sound, loads the run elsewhere, and embeds sounds of all kinds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import impresa
import tiny_hub
from impresa.cli.main import main
from impresa.config import ExperimentConfig, load_experiment
from impresa.data.audio import Clip, LogMelTransform, PretrainedAudioTransform, load_audio
from impresa.errors import CheckpointError, DataError
from impresa.evaluation.results import read_evaluation
from impresa.training.run import train
from shared_folder import shared_folder
from tiny_run import TINY, dry_run_of

TOWER = ("dim=16", "depth=1", "num_heads=2", "embed_dim=16")
HEARING = (
    *(override for override in TINY if "memory" not in override),
    *(f"audio_encoder.{setting}" for setting in (*TOWER, "patch_size=32", "audio_max_seconds=0.5")),
    *("trainer.epochs=1", "vision_encoder.memory.enabled=false"),
)


def hearing(*overrides: str) -> ExperimentConfig:
    return load_experiment("shapes_audio", [*HEARING, *overrides])


@cache
def run() -> Path:
    """A finished run with sound; not to be changed."""
    return train(hearing(), shared_folder() / "run", command=[])


def tone(pitch_hz: float, seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def test_a_run_with_sound_embeds_all_three(tmp_path: Path) -> None:
    model = impresa.load(shutil.copytree(run(), tmp_path / "run"), "cpu")
    assert model.preprocessing.audio == LogMelTransform(max_seconds=0.5)
    sounds = model.encode_audio([(tone(300, 0.2), 16_000), (tone(600, 0.4), 16_000)])
    assert sounds.shape == (2, 16)
    torch.testing.assert_close(sounds.norm(dim=1), torch.ones(2))
    assert model.similarity(sounds, model.encode_text("a red circle")).shape == (2, 1)
    assert not torch.allclose(sounds[0], sounds[1], atol=1e-3)


def test_every_way_to_hand_over_a_sound_gives_the_same(tmp_path: Path) -> None:
    model, samples = impresa.load(run(), "cpu"), tone(440, 0.3)
    path = tmp_path / "tone.flac"
    soundfile.write(path, samples, 16_000, subtype="PCM_24")
    one = model.encode_audio((samples, 16_000))
    assert one.shape == (16,)
    for sound in (
        path,
        str(path),
        load_audio(path),
        (torch.from_numpy(samples), 16_000),
        (samples.astype(float), 16_000),
    ):
        torch.testing.assert_close(model.encode_audio(sound), one, atol=1e-4, rtol=0)
        torch.testing.assert_close(model.encode_audio([sound])[0], one, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.encode_audio((tone(440, 0.3, 44_100), 44_100)), one, atol=2e-2, rtol=0)
    raw = model.encode_audio([(samples, 16_000)], normalize=False)
    torch.testing.assert_close(raw[0] / raw.norm(), one)
    cut = torch.nn.functional.normalize(raw[:, :4], dim=1)
    torch.testing.assert_close(model.encode_audio([(samples, 16_000)], dim=4), cut, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_audio((samples, 16_000), dim=4), cut[0], atol=1e-5, rtol=0)
    assert torch.equal(model.encode_audio([(samples, 16_000)], dim=4, normalize=False), raw[:, :4])
    assert model.encode_audio([]).shape == (0, 16)


def test_neither_the_batch_nor_what_is_cut_changes_an_embedding() -> None:
    model = impresa.load(run(), "cpu")
    sounds = [(tone(200 + 90 * i, 0.05 * (i + 1)), 16_000) for i in range(9)]
    together = model.encode_audio(sounds)
    torch.testing.assert_close(model.encode_audio(sounds, batch_size=2), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode_audio([(tone(300, 3.0), 16_000), (tone(300, 0.5), 16_000)])[0],
                               model.encode_audio((tone(300, 0.5), 16_000)), atol=1e-5, rtol=1e-4)  # fmt: skip


def test_what_is_no_sound_is_named_by_its_place() -> None:
    with pytest.raises(DataError, match=r"^sounds\[1\]: missing\.wav: there is no such file"):
        impresa.load(run(), "cpu").encode_audio([(tone(300, 0.2), 16_000), "missing.wav"])


def test_the_run_keeps_preprocessing_golden_sounds_and_figures(tmp_path: Path) -> None:
    kept = json.loads((run() / "preprocessing.json").read_text())
    assert kept["audio"] == {"max_seconds": 0.5}
    with safe_open(run() / "golden.safetensors", "pt") as file:
        assert json.loads(file.metadata()["audio_rates_hz"]) == [16_000] * 4
    golden = load_file(run() / "golden.safetensors")
    assert golden["audio_embeddings"].shape == (4, 16)
    model = impresa.load(run(), "cpu")
    sounds = [Clip(golden[f"audio_{i}"], 16_000) for i in range(4)]
    torch.testing.assert_close(model.encode_audio(sounds), golden["audio_embeddings"], atol=1e-5, rtol=1e-4)
    evaluation = read_evaluation(run())
    assert evaluation.num_sounds == evaluation.num_images == 8
    assert len(evaluation.sound) == 4
    card = (run() / "README.md").read_text()
    assert "model.encode_audio(" in card
    assert "| **audio → text** |" in card


def test_a_run_whose_hearing_has_changed_is_refused(tmp_path: Path) -> None:
    from impresa.run_dir.manifest import checksum

    folder = shutil.copytree(run(), tmp_path / "run")
    (folder / "preprocessing.json").write_text(
        json.dumps({**json.loads((folder / "preprocessing.json").read_text()), "audio": {"max_seconds": 0.05}})
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["preprocessing.json"] = checksum(folder / "preprocessing.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outputs differ from those of the training"):
        impresa.load(folder, "cpu")


def test_a_model_without_ears_says_so() -> None:
    from tiny_run import finished_run

    with pytest.raises(DataError, match="encode_audio: this model has no audio encoder; train one with"):
        impresa.load(finished_run(), "cpu").encode_audio((tone(300, 0.1), 16_000))


def test_files_with_gaps_train_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", tone(200 + 50 * i, 0.2, 8_000), 8_000)
        row = {"image": f"{i}.png", "caption": f"number {i}", "audio": f"{i}.wav"}
        rows.append({name: cell for name, cell in row.items() if i % 4 == 0 or name != list(row)[i % 3]})
    (tmp_path / "broken.wav").write_bytes(b"this is no sound")
    rows.append({"image": "0.png", "caption": "broken", "audio": "broken.wav"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = (f"dataset.train_path={tmp_path}", f"dataset.val_path={tmp_path}", "dataset.max_bad_fraction=0.5")
    overrides = [*HEARING, *paths, "losses.gather_distributed=false"]
    assert main(["train", "shapes_audio", *overrides, "--output-dir", str(tmp_path / "run")]) == 0
    bad = (tmp_path / "run/bad_samples.jsonl").read_text()
    assert "the sound cannot be decoded" in bad
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.rsplit("\n{\n", 1)[-1].join(["{\n", ""]))
    assert found["num_sounds"] == 9
    assert set(found["sound"]) == {"audio_to_text", "text_to_audio", "audio_to_image", "image_to_audio"}


@pytest.mark.parametrize("kind", [tiny_hub.whisper, tiny_hub.clap, tiny_hub.ast])
def test_a_pretrained_ear_brings_its_own_features(tmp_path: Path, kind: object) -> None:
    hub = kind(tmp_path / "hub")
    config = hearing()
    ear = replace(config.audio_encoder, backbone=str(hub), dim=512, depth=12, num_heads=8, patch_size=16)
    config = replace(config, audio_encoder=ear)
    run_dir = train(config, tmp_path / "run", command=[])
    before = impresa.load(run_dir, "cpu")
    assert isinstance(before.preprocessing.audio, PretrainedAudioTransform)
    shutil.rmtree(tmp_path / "hub")
    after = impresa.load(shutil.move(run_dir, tmp_path / "moved"), "cpu")
    sounds = [(tone(300, 0.3), 16_000), (tone(700, 0.1, 8_000), 8_000)]
    assert torch.equal(after.encode_audio(sounds), before.encode_audio(sounds))
    assert read_evaluation(tmp_path / "moved").num_sounds == 8


@pytest.mark.parametrize("strategy", ["concat", "cross_attention", "gated"])
def test_image_and_sound_are_fused_into_one_embedding(tmp_path: Path, strategy: str) -> None:
    pairs = "losses.pairs=[image-text,text-audio,image+audio-text]"
    matryoshka = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[4]")
    config = hearing(pairs, f"fusion.strategy={strategy}", *matryoshka)
    model = impresa.load(train(config, tmp_path / "run", command=[]), "cpu")
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "red")]
    sounds = [(tone(pitch, 0.1 * (i + 1)), 16_000) for i, pitch in enumerate((300, 300, 600))]
    fused = model.encode_image_audio(images, sounds)
    assert fused.shape == (3, 16)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model.encode_image_audio(images, sounds, batch_size=1), fused, atol=1e-5, rtol=1e-4)
    assert (fused[0] - fused[1]).abs().max() > 1e-4 < (fused[0] - fused[2]).abs().max()
    assert model.encode_image_audio(images, sounds, dim=4).shape == (3, 4)
    torch.testing.assert_close(model.encode_image_audio(images[1], sounds[1]), fused[1], atol=1e-5, rtol=1e-4)
    assert model.encode_image_audio([], []).shape == (0, 16)
    with pytest.raises(DataError, match="3 images and 1 sounds; give as many of each"):
        model.encode_image_audio(images, sounds[:1])
    found = read_evaluation(tmp_path / "run").sound
    assert list(found)[-2:] == ["image+audio_to_text", "text_to_image+audio"]
    assert list(found["image+audio_to_text"]) == ["model", "first 4 dimensions", "chance"]
    assert found["text_to_image+audio"]["model"].num_candidates == 8


def test_a_dry_run_counts_the_audio_encoder() -> None:
    assert "audio_encoder:" in dry_run_of(hearing())
