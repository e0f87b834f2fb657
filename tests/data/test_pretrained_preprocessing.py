"""Images, texts and sounds reach a pretrained tower as its own preprocessing would bring them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

import tiny_hub
from impresa.data.audio import Clip, PretrainedAudioTransform, StoredExtractor
from impresa.data.images import pretrained_image_transform
from impresa.data.tokenizers import PretrainedTokenizer
from impresa.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {**tiny_hub.one_of_each(root), "clap_fused": tiny_hub.clap(root / "clap_fused", fused=True)}


# --- Images


def _photo() -> Image.Image:
    """Smooth, so that half a pixel of a crop is not seen, and not square."""
    y, x = np.mgrid[0:90, 0:60] / 60
    waves = [np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(3)]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_images_are_those_of_the_own_processor(hub: dict[str, Path], name: str) -> None:
    own = transformers.AutoImageProcessor.from_pretrained(hub[name], backend="pil")
    theirs = own(_photo(), return_tensors="pt")["pixel_values"][0]
    ours = pretrained_image_transform(str(hub[name]), 32)(_photo())
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.03  # they crop at whole pixels after resizing, we before it


def test_the_filter_the_fraction_and_the_numbers_are_read(hub: dict[str, Path], tmp_path: Path) -> None:
    dinov2 = pretrained_image_transform(str(hub["dinov2"]), 32)
    assert (dinov2.resize, dinov2.crop_fraction, dinov2.mean) == ("crop", 32 / 36, (0.485, 0.456, 0.406))
    assert pretrained_image_transform(str(hub["siglip"]), 64).to_dict() == {
        "size": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": "squash", "crop_fraction": 1.0,
        "resample": "bicubic",
    }  # fmt: skip
    raw = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2, do_normalize=False)
    raw.save_pretrained(tmp_path)
    transform = pretrained_image_transform(str(tmp_path), 32)
    assert (transform.resample, transform.mean, transform.std) == ("bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    checks = Image.fromarray(np.kron(np.eye(9, dtype=np.uint8), np.full((5, 5), 255, np.uint8))).convert("RGB")
    theirs = torch.tensor(raw(checks, return_tensors="np")["pixel_values"][0])
    assert (transform(checks) - theirs).abs().max() < 0.01
    assert (replace(transform, resample="bicubic")(checks) - theirs).abs().max() > 0.05
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="resizes with Pillow's filter 0; ours are lanczos, bilinear, bicubic"):
        pretrained_image_transform(str(tmp_path), 32)


def test_a_model_without_an_image_processor_is_refused(hub: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"vision_encoder\.backbone: .*bert cannot be loaded"):
        pretrained_image_transform(str(hub["bert"]), 32)


def test_timm_images_follow_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    timm = SimpleNamespace(create_model=lambda name, pretrained: SimpleNamespace(pretrained_cfg=own))
    monkeypatch.setitem(sys.modules, "timm", timm)
    transform = pretrained_image_transform("timm:vit", 32)
    assert (transform.mean, transform.std, transform.resize) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "crop")
    assert (transform.crop_fraction, transform.resample) == (0.9, "bilinear")
    own["crop_mode"] = "squash"
    assert pretrained_image_transform("timm:vit", 32).resize == "squash"


# --- Texts


TEXTS = ["the red circle", "a blue square left of the green triangle and the dog barks loud and barks"]


def test_texts_are_those_of_the_own_tokenizer(hub: dict[str, Path]) -> None:
    own = transformers.AutoTokenizer.from_pretrained(hub["clip"])
    tokenizer = PretrainedTokenizer.from_backbone(str(hub["clip"]), 77)
    ids, mask = tokenizer(TEXTS)
    theirs = own(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"].bool())
    assert (tokenizer.max_len, tokenizer.vocab_size, tokenizer.end_id) == (12, len(own), own.eos_token_id)
    assert ids[1, -1] == tokenizer.end_id


def test_max_len_cuts_and_keeps_the_end_token(hub: dict[str, Path]) -> None:
    tokenizer = PretrainedTokenizer.from_backbone(str(hub["bert"]), 5)
    ids, mask = tokenizer(TEXTS)
    assert ids.shape == (2, 5)
    assert ids[:, -1].tolist() == [tokenizer.end_id] * 2
    assert mask.all()
    assert (tokenizer.num_cut(TEXTS), tokenizer.num_cut([TEXTS[0], "the"]), tokenizer.num_cut([])) == (1, 0, 0)
    assert PretrainedTokenizer.from_backbone(str(hub["bert"]), 77).max_len == 14


def test_siglip_texts_are_lower_case_and_padded_to_the_full_length(hub: dict[str, Path]) -> None:
    tokenizer = PretrainedTokenizer.from_backbone(str(hub["siglip"]), 5)
    ids, mask = tokenizer(["the red circle"])
    assert ids.shape == (1, 16)
    assert mask.sum() == 4
    assert torch.equal(tokenizer(["The RED Circle"])[0], ids)
    cased = PretrainedTokenizer.from_backbone(str(hub["clip"]), 5)
    assert not torch.equal(cased(["The RED Circle"])[0], cased(["the red circle"])[0])


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
def test_a_tokenizer_survives_its_folder(hub: dict[str, Path], tmp_path: Path, name: str) -> None:
    tokenizer = PretrainedTokenizer.from_backbone(str(hub[name]), 9)
    assert not PretrainedTokenizer.is_in(tmp_path)
    tokenizer.save(tmp_path)
    assert PretrainedTokenizer.is_in(tmp_path)
    for ours, theirs in zip(PretrainedTokenizer.load(tmp_path)(TEXTS), tokenizer(TEXTS), strict=True):
        assert torch.equal(ours, theirs)


def test_missing_and_unfit_tokenizers_are_refused(hub: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer can be read .*; restore the folder"):
        PretrainedTokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match=r"text_encoder\.backbone: .*dinov2 cannot be loaded"):
        PretrainedTokenizer.from_backbone(str(hub["dinov2"]), 77)
    own = transformers.AutoTokenizer.from_pretrained(hub["bert"])
    own.pad_token = None
    own.save_pretrained(tmp_path)
    transformers.AutoConfig.from_pretrained(hub["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no padding token; set its pad_token"):
        PretrainedTokenizer.from_backbone(str(tmp_path), 77)


# --- Sounds


def _clip(seconds: float, rate_hz: int = 16_000) -> Clip:
    generator = torch.Generator().manual_seed(0)
    return Clip(0.1 * torch.randn(int(seconds * rate_hz), generator=generator), rate_hz)


def _features(hub: dict[str, Path], name: str, *clips: Clip, max_seconds: float = 10.0) -> tuple[Tensor, Tensor]:
    return PretrainedAudioTransform.from_backbone(str(hub[name]), max_seconds)(clips)


def test_whisper_features_are_those_of_its_own_extractor(hub: dict[str, Path]) -> None:
    own = transformers.AutoFeatureExtractor.from_pretrained(hub["whisper"])
    features, mask = _features(hub, "whisper", _clip(0.3), _clip(2.0))
    theirs = own(_clip(0.3).samples.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features[:1].transpose(1, 2), theirs)
    assert features.shape == (2, 100, 8)
    assert mask.sum(dim=1).tolist() == [30, 100]


@pytest.mark.parametrize("name", ["clap", "clap_fused"])
def test_clap_features_are_those_of_its_own_extractor(hub: dict[str, Path], name: str) -> None:
    own = transformers.AutoFeatureExtractor.from_pretrained(hub[name])
    features, mask = _features(hub, name, _clip(0.3, 8_000), _clip(2.0, 8_000))
    theirs = own(_clip(0.3, 8_000).samples.numpy(), sampling_rate=8_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features[0], theirs[0, 0].float())
    assert features.dtype == torch.float32
    assert features.shape == (2, 101, 16)
    assert mask.all()
    again = _features(hub, name, _clip(2.0, 8_000))[0]  # cut at the end, not at random
    torch.testing.assert_close(again[0], features[1])


def test_ast_features_are_those_of_its_own_extractor(hub: dict[str, Path]) -> None:
    own = transformers.AutoFeatureExtractor.from_pretrained(hub["ast"])
    features, mask = _features(hub, "ast", _clip(0.2), _clip(2.0), _clip(0.001))
    theirs = own(_clip(0.2).samples.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(features[:1], theirs)
    assert mask.sum(dim=1).tolist() == [18, 40, 1]


@pytest.mark.parametrize("name", ["whisper", "clap", "ast"])
def test_features_know_rates_limits_and_dicts(hub: dict[str, Path], name: str) -> None:
    long, short = _features(hub, name, _clip(0.8), max_seconds=0.25), _features(hub, name, _clip(0.25))
    torch.testing.assert_close(long[0], short[0], atol=0.05, rtol=0)
    transform = PretrainedAudioTransform.from_backbone(str(hub[name]), 0.25)
    again = TypeAdapter(StoredExtractor).validate_json(json.dumps(transform.to_dict())).transform()
    for ours, theirs in zip(again([_clip(0.8)]), transform([_clip(0.8)]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_without_sound_is_refused(hub: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audio_encoder\.backbone: .*bert cannot be loaded"):
        PretrainedAudioTransform.from_backbone(str(hub["bert"]), 1.0)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not read sound as Whisper, CLAP or AST do"):
        PretrainedAudioTransform.from_backbone(str(tmp_path), 1.0)
