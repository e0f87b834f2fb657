"""The preprocessing that pretrained towers were trained with: images, texts and sounds.

It is read from the files beside the weights, and kept in a run as plain values or in the format it was read from.
torchvision and torchaudio are not needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from impresa.data.audio import Clip, resample
from impresa.data.images import ImageTransform
from impresa.errors import ConfigError, DataError
from impresa.hub import TIMM, import_optional, location, read_config, reading

IMAGE, TEXT, AUDIO = "vision_encoder.backbone", "text_encoder.backbone", "audio_encoder.backbone"
"""Config keys that hold the names of pretrained towers."""
_FILTERS: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of its resampling filters."""
_SETTINGS = "batching.json"
_SIGLIP = ("siglip", "siglip_text_model")
_SHORTEST = 400
"""Samples that AST needs for its first frame; shorter clips are filled up with silence."""


def pretrained_image_transform(name: str, image_size: int) -> ImageTransform:
    """What a pretrained tower's own image processor does, to the size that is asked for.

    Args:
        name: a Hugging Face id, a path, or `timm:NAME`.
        image_size: side of the square in pixels.

    Raises:
        ConfigError: there is no image processor, or its filter is not one of ours.
    """
    if name.startswith(TIMM):
        return _timm_transform(name, image_size)
    from transformers import AutoImageProcessor

    with reading(IMAGE, name):
        own = AutoImageProcessor.from_pretrained(location(name), backend="pil")
    crops = bool(getattr(own, "do_center_crop", False))
    return ImageTransform(
        size=image_size,
        mean=_colours(own.image_mean) if own.do_normalize else (0.0, 0.0, 0.0),
        std=_colours(own.image_std) if own.do_normalize else (1.0, 1.0, 1.0),
        resize="crop" if crops or own.size.height is None else "squash",
        crop_fraction=own.crop_size.height / (own.size.shortest_edge or own.size.height) if crops else 1.0,
        resample=_filter(int(own.resample), f"{IMAGE}: {name}"),
    )


def _timm_transform(name: str, image_size: int) -> ImageTransform:
    timm = import_optional(IMAGE, "timm", "timm", user=name)
    with reading(IMAGE, name):
        own = timm.create_model(name.removeprefix(TIMM), pretrained=False).pretrained_cfg
    return ImageTransform(
        size=image_size,
        mean=_colours(own["mean"]),
        std=_colours(own["std"]),
        resize="squash" if own["crop_mode"] == "squash" else "crop",
        crop_fraction=1.0 if own["crop_mode"] == "squash" else own["crop_pct"],
        resample=own["interpolation"],
    )


def _colours(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _filter(number: int, who: str) -> Literal["lanczos", "bilinear", "bicubic"]:
    if number not in _FILTERS:
        raise ConfigError(f"{who} resizes with Pillow's filter {number}; ours are {', '.join(_FILTERS.values())}")
    return _FILTERS[number]


class PretrainedTokenizer:
    """A pretrained text tower's own tokenizer, with the interface of ours.

    Args:
        tokenizer: transformers' tokenizer.
        max_len: longest text in tokens; longer ones are cut and keep their end token.
        pads_fully: pad every batch to `max_len`, because the tower was trained so.
        lower_case: lower the case first, because the tower was trained so.
    """

    def __init__(self, tokenizer: Any, *, max_len: int, pads_fully: bool = False, lower_case: bool = False) -> None:
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        self._tokenizer = tokenizer
        self.max_len = max_len
        self.pads_fully = pads_fully
        self.lower_case = lower_case

    @classmethod
    def from_backbone(cls, name: str, max_len: int) -> PretrainedTokenizer:
        """The tokenizer of a text tower by Hugging Face id or path.

        `max_len` is cut to what the tower can read. SigLIP's texts are lower case and padded to its full length.

        Raises:
            ConfigError: there is no tokenizer, or it cannot pad.
        """
        from transformers import AutoTokenizer

        config = read_config(TEXT, name)
        with reading(TEXT, name):
            tokenizer = AutoTokenizer.from_pretrained(location(name))
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"{TEXT}: the tokenizer of {name} has no padding token; set its pad_token and save it again"
            )
        tower = getattr(config, "text_config", config)
        longest = min(tokenizer.model_max_length, getattr(tower, "max_position_embeddings", max_len))
        if config.model_type in _SIGLIP:
            return cls(tokenizer, max_len=tower.max_position_embeddings, pads_fully=True, lower_case=True)
        return cls(tokenizer, max_len=min(max_len, longest))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tokenizer)

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        end = self._tokenizer.eos_token_id
        return int(self._tokenizer.sep_token_id if end is None else end)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to (B, T) int64 token ids, padded on the right, and a (B, T) bool mask, true where there is a token."""
        encoded = self._tokenizer(
            [text.lower() for text in texts] if self.lower_case else list(texts),
            padding="max_length" if self.pads_fully else "longest",
            truncation=True,
            max_length=self.max_len,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def save(self, directory: Path) -> None:
        """Write the tokenizer's own files and our settings into the directory."""
        self._tokenizer.save_pretrained(directory)
        settings = {"max_len": self.max_len, "pads_fully": self.pads_fully, "lower_case": self.lower_case}
        (directory / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether `save` wrote into the directory."""
        return (directory / _SETTINGS).is_file()

    @classmethod
    def load(cls, directory: Path) -> PretrainedTokenizer:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such folder, or a file in it is missing or damaged.
        """
        from transformers import AutoTokenizer

        try:
            settings = json.loads((directory / _SETTINGS).read_text())
            return cls(AutoTokenizer.from_pretrained(directory), **settings)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{directory}: no tokenizer can be read ({error}); restore the folder") from error


class PretrainedAudioTransform:
    """A pretrained audio tower's own features of clips.

    Clips are cut at the end, to `max_seconds` and to what the tower can see, so that no random piece is taken; shorter
    ones are padded (CLAP: repeated) to the tower's fixed length.

    Args:
        extractor: transformers' feature extractor of Whisper, CLAP or AST.
        max_seconds: longer clips are cut.
    """

    def __init__(self, extractor: Any, max_seconds: float) -> None:
        self._extractor = extractor
        self.max_seconds = max_seconds

    @classmethod
    def from_backbone(cls, name: str, max_seconds: float) -> PretrainedAudioTransform:
        """The features of an audio tower by Hugging Face id or path.

        Raises:
            ConfigError: there is no feature extractor, or not one of Whisper, CLAP or AST.
        """
        from transformers import AutoFeatureExtractor

        with reading(AUDIO, name):
            extractor = AutoFeatureExtractor.from_pretrained(location(name))
        if type(extractor).__name__ not in _FEATURES:
            raise ConfigError(f"{AUDIO}: {name} does not read sound as Whisper, CLAP or AST do; use one of them")
        return cls(extractor, max_seconds)

    def __call__(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Features of B clips, (B, F, M) float32, and a (B, F) bool mask, true on frames that are not padding."""
        rate_hz = self._extractor.sampling_rate
        longest = int(self.max_seconds * rate_hz)
        waveforms = [resample(clip, rate_hz)[:longest].numpy() for clip in clips]
        features, mask = _FEATURES[type(self._extractor).__name__](self._extractor, waveforms)
        return features.float(), mask

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"max_seconds": self.max_seconds, "extractor": json.loads(self._extractor.to_json_string())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainedAudioTransform:
        """The transform that `to_dict` described."""
        import transformers

        extractor = getattr(transformers, values["extractor"]["feature_extractor_type"])
        return cls(extractor.from_dict(values["extractor"]), values["max_seconds"])


Waveforms = list[np.ndarray]


def _whisper_features(extractor: Any, waveforms: Waveforms) -> tuple[Tensor, Tensor]:
    out = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
    return out["input_features"].transpose(1, 2), out["attention_mask"].bool()


def _clap_features(extractor: Any, waveforms: Waveforms) -> tuple[Tensor, Tensor]:
    seen = [waveform[: extractor.nb_max_samples] for waveform in waveforms]
    features = extractor(seen, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    features = features[:, 0]  # with fusion there are four crops, all alike because nothing is longer than a crop
    return features, torch.ones(features.shape[:2], dtype=torch.bool)


def _ast_features(extractor: Any, waveforms: Waveforms) -> tuple[Tensor, Tensor]:
    long_enough = [np.pad(waveform, (0, max(0, _SHORTEST - len(waveform)))) for waveform in waveforms]
    features = extractor(long_enough, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]
    num_frames = torch.tensor([1 + (len(waveform) - _SHORTEST) // 160 for waveform in long_enough])
    return features, torch.arange(features.shape[1]) < num_frames[:, None]


_FEATURES = {
    "WhisperFeatureExtractor": _whisper_features,
    "ClapFeatureExtractor": _clap_features,
    "ASTFeatureExtractor": _ast_features,
}
