"""Every precision that a CPU has trains, validates, saves, and gives a model that loads and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import impresa
from impresa.config import ExperimentConfig
from impresa.encoders.lora import is_adapter
from impresa.errors import ConfigError
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.answering.build import build_vlm
from impresa.training.distributed import join_group
from impresa.training.loop import steps_of, train_step
from impresa.training.parts import build_parts
from impresa.training.run import set_up, train
from impresa.training.state import Precision, cast_weights
from tiny_qwen import VOCAB, save_qwen
from tiny_run import dry_run_of, tiny_experiment, without_charts
from tiny_vlm import collated, picture, samples, tiny_qwen_vlm, tiny_vlm

ADAPTED = ("decoder.use_lora=true", "decoder.use_trm_recursion=true", "decoder.recursion.num_layers=1")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def experiment(kind: str, qwen: Path, precision: str) -> ExperimentConfig:
    settings = (f"optimization.precision={precision}", "optimization.ema_decay=0.9", "trainer.epochs=1")
    match kind:
        case "alignment":
            return tiny_experiment(*settings, "optimization.warmup_epochs=0")
        case "trm":
            return tiny_vlm(*settings)
        case "whole":
            return tiny_qwen_vlm(qwen, *settings)
        case _:
            return tiny_qwen_vlm(qwen, *settings, *ADAPTED)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", ["alignment", "trm", "whole", "adapted"])
def test_a_run_of_any_precision_loads_and_computes(kind: str, precision: str, qwen: Path, tmp_path: Path) -> None:
    run_dir = train(experiment(kind, qwen, precision), tmp_path / "run", command=[])
    loaded = impresa.load(run_dir, "cpu")  # which compares the golden outputs
    if kind == "alignment":
        assert loaded.encode_image(picture(0)).isfinite().all()
    else:
        assert isinstance(loaded.ask(picture(0), "what?"), str)
        prefix = loaded.prefix(collated(samples()))
        assert prefix.tokens.dtype == torch.float32


def test_small_steps_are_not_rounded_away_beside_a_frozen_language_model(qwen: Path) -> None:
    config = tiny_qwen_vlm(qwen, *ADAPTED, "optimization.precision=bf16-true")
    model = build_vlm(config, VOCAB)
    adapters = {name: value.clone() for name, value in model.named_parameters() if is_adapter(name)}
    rotary = model.decoder.model.model.rotary_emb.inv_freq.clone()
    cast_weights(model)
    precise = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert precise == {n for n, _ in model.named_parameters() if is_adapter(n) or n.startswith("decoder.recursion.")}
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in adapters.items())
    assert model.vision_encoder.backbone.positions.dtype == torch.bfloat16
    assert torch.equal(model.decoder.model.model.rotary_emb.inv_freq, rotary)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_scale_and_state_of_the_memory_move_among_weights_of_16_bits(loss: str) -> None:
    small = ("optimization.lr=1e-4", "optimization.lr_logits=1e-4", "optimization.warmup_epochs=0")
    config = tiny_experiment("optimization.precision=bf16-true", f"losses.type={loss}", *small)
    training = set_up(config, build_parts(config, None), join_group(config.trainer))
    precise = {n: t for n, t in training.state.model.state_dict().items() if t.dtype == torch.float32}
    bias = ["loss.logit_bias.value"] if loss == "siglip" else []
    assert {name for name in precise if "logit" in name} == {"loss.logit_scale", *bias}
    assert any(name.endswith("memory.state") for name in precise)
    before = {name: tensor.clone() for name, tensor in precise.items()}
    train_step(training, next(steps_of(training.train_loader, 1)))
    moved = (precise["loss.logit_scale"] - before["loss.logit_scale"]).abs().item()
    assert 5e-5 < moved < 2e-4  # in bfloat16 so small a step is none


def test_float16_on_a_cpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_experiment("optimization.precision=16-mixed")
    with pytest.raises(ConfigError, match=r"optimization.precision: 16-mixed is for a GPU, .* use bf16-mixed"):
        train(config, tmp_path / "run", command=[])
    with pytest.raises(ConfigError, match="16-mixed is for a GPU"):
        dry_run_of(config)
    assert not (tmp_path / "run").exists()


def test_batches_are_wholes_whose_pixels_alone_are_rounded() -> None:
    precision = Precision("bf16-true", torch.device("cpu"))
    batch = collated(samples())
    converted = precision.prepare_batch(batch)
    assert converted.image.dtype == torch.bfloat16
    assert converted.dialogues is batch.dialogues
    assert batch.image is not None
    assert batch.image.dtype == torch.float32
    sounds = Batch(ids=["a"], audio=torch.zeros(1, 4, 2), audio_mask=torch.ones(1, 4, dtype=torch.bool))
    converted = precision.prepare_batch(sounds)
    assert (converted.audio.dtype, converted.audio_mask.dtype) == (torch.bfloat16, torch.bool)
