"""A trained alignment model in use: images, texts and sounds in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, Unpack, cast, get_args, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from impresa.config.experiment import ExperimentConfig
from impresa.config.types import EmbeddingPrecision
from impresa.data.audio import Clip
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.errors import ConfigError, DataError
from impresa.inside.explanation import Explanation, Method
from impresa.run_dir.golden import Golden, packed
from impresa.tasks.alignment.explain import explain_image
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.alignment.pool import checked_devices, embedded_by_all
from impresa.tasks.alignment.prompts import prompted
from impresa.tasks.arguments import (
    Inputs,
    Named,
    Vectors,
    as_whole,
    flag,
    of_one_width,
    one_of,
    shown,
    texts_of,
    whole_number,
)
from impresa.tasks.base import UsableModel
from impresa.tasks.devices import Device, cpu_by_default
from impresa.tasks.inputs import Picture, Sound, features_of, images_of, pixels_of, small_images, sounds_of
from impresa.tasks.quantization import checked_ranges, quantized

Arrays = NDArray[Any]


class EncodeOptions(TypedDict, total=False):
    """Keyword arguments of every `encode_*` method."""

    batch_size: int
    """Inputs that pass the model at a time; 32 unless given."""
    normalize: bool
    """Scale embeddings to length one; true unless given."""
    dim: int | None
    """Keep the first `dim` of the E numbers (a Matryoshka prefix, scaled to length one by itself)."""
    device: Device | None
    """Move the model there first; None leaves it where it is."""
    devices: Sequence[Device] | None
    """Two or more devices, each of which embeds a part in a process of its own, `["cuda:0", "cuda:1"]` or
    `["cpu", "cpu"]`; the model stays where it is. Starting the processes takes seconds: it is for many inputs, and a
    script that does it needs `if __name__ == "__main__":`. None stays in this process."""
    show_progress: bool
    """A progress bar on standard error."""
    precision: EmbeddingPrecision
    """Numbers of the result, float32 unless given. `int8` and `uint8` divide the range of each dimension into 256
    steps; `binary` and `ubinary` keep its sign, of eight dimensions in a number. They are for indices that search such
    numbers; `similarity` and `impresa.semantic_search` take float32."""
    ranges: Vectors | None
    """int8, uint8: (2, E), the smallest and the largest number of each dimension. None takes them from the result,
    which then can be compared with itself alone: give queries the ranges of their corpus."""


class EmbeddingModel(UsableModel):
    """An alignment model with its own preprocessing; `impresa.load` returns one.

    Every `encode_*` method takes the keyword arguments of `EncodeOptions` and returns embeddings on the CPU: (N, E) of
    several inputs, (E,) of a single one, float32 unless `precision` says otherwise; a tensor, or with
    `convert_to_numpy` an array. Arguments are those of `UsableModel`; the towers are frozen and put into float32.
    """

    model: AlignmentModel

    def __init__(
        self,
        model: AlignmentModel,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        device: Device | None = None,
    ) -> None:
        super().__init__(model.float().eval().requires_grad_(False), config, preprocessing, device)

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.config.vision_encoder.embed_dim

    @overload
    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        convert_to_numpy: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...
    @overload
    def encode_image(
        self, images: Picture | Sequence[Picture], *, convert_to_numpy: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Arrays: ...
    def encode_image(
        self, images: Picture | Sequence[Picture], *, convert_to_numpy: bool = False, **options: Unpack[EncodeOptions]
    ) -> Tensor | Arrays:
        """Embed images.

        Args:
            images: one image or several, see `Picture`; a tensor (N, C, H, W) is N images.

        Raises:
            DataError: an image cannot be read, or an array or an option is none that is possible.
            ConfigError: the device cannot be used.
        """
        return self._encode(images_of("images", images), self._embed_images, convert_to_numpy, **options)

    @overload
    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        convert_to_numpy: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...
    @overload
    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        convert_to_numpy: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Arrays: ...
    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        convert_to_numpy: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor | Arrays:
        """Embed one text or several; those longer than the model's context are cut. Errors: see `encode_image`.

        Args:
            texts: the text or texts.
            prompt_name: put that of the run's `text_encoder.prompts` before each.
            prompt: put these words before each.
        """
        inputs = prompted(texts_of("texts", texts), self.config.text_encoder.prompts, prompt_name, prompt)
        return self._encode(inputs, self._embed_texts, convert_to_numpy, **options)

    @overload
    def encode_audio(
        self,
        sounds: Sound | Sequence[Sound],
        *,
        convert_to_numpy: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...
    @overload
    def encode_audio(
        self, sounds: Sound | Sequence[Sound], *, convert_to_numpy: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Arrays: ...
    def encode_audio(
        self, sounds: Sound | Sequence[Sound], *, convert_to_numpy: bool = False, **options: Unpack[EncodeOptions]
    ) -> Tensor | Arrays:
        """Embed sounds of any rate; those longer than the model's context are cut.

        Args:
            sounds: one sound or several, see `Sound`.

        Raises:
            DataError: a sound cannot be read, or the model has no audio encoder.
        """
        self._require_audio("encode_audio")
        return self._encode(sounds_of("sounds", sounds), self._embed_sounds, convert_to_numpy, **options)

    @overload
    def encode_image_audio(
        self,
        images: Picture | Sequence[Picture],
        sounds: Sound | Sequence[Sound],
        *,
        convert_to_numpy: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...
    @overload
    def encode_image_audio(
        self,
        images: Picture | Sequence[Picture],
        sounds: Sound | Sequence[Sound],
        *,
        convert_to_numpy: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Arrays: ...
    def encode_image_audio(
        self,
        images: Picture | Sequence[Picture],
        sounds: Sound | Sequence[Sound],
        *,
        convert_to_numpy: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor | Arrays:
        """Embed N pairs of an image and a sound as one; for a model that was trained with `image+audio-text`.

        Raises:
            DataError: an input cannot be read, the numbers differ, or the model has no fusion.
        """
        self._require_audio("encode_image_audio")
        seen, heard = images_of("images", images), sounds_of("sounds", sounds)
        if len(seen.items) != len(heard.items):
            fault = f"{len(seen.items)} images and {len(heard.items)} sounds"
            raise DataError(f"encode_image_audio: {fault}; give as many of each")
        pairs = [Named("pair", pair) for pair in zip(seen.items, heard.items, strict=True)]
        return self._encode(Inputs(pairs, seen.is_one and heard.is_one), self._embed_both, convert_to_numpy, **options)

    @cpu_by_default()
    def similarity(self, a: Vectors, b: Vectors) -> Tensor:
        """Cosines of all rows of `a` (N, E) with all rows of `b` (M, E): (N, M). A single embedding (E,) is one row.

        Raises:
            DataError: an argument holds no embeddings, or the two differ in width.
        """
        rows, others = of_one_width(("a", "b"), a, b)
        if not (len(rows) and len(others)):
            return torch.zeros(len(rows), len(others), dtype=torch.float32)
        return _unit(rows) @ _unit(others).T

    def explained(self, picture: Image.Image, words: str | None, method: Method, max_rows: int) -> Explanation:
        return explain_image(self, picture, words, method, max_rows)

    @cpu_by_default()
    @torch.no_grad()
    def _encode(
        self,
        inputs: Inputs,
        embed: Callable[[list[Named]], Tensor],
        convert_to_numpy: bool,
        *,
        batch_size: int = 32,
        normalize: bool = True,
        dim: int | None = None,
        device: Device | None = None,
        devices: Sequence[Device] | None = None,
        show_progress: bool = False,
        precision: EmbeddingPrecision = "float32",
        ranges: Vectors | None = None,
        **unknown: object,
    ) -> Tensor | Arrays:
        if unknown:
            known = ", ".join(("convert_to_numpy", *EncodeOptions.__annotations__))
            raise TypeError(f"encode_* has no option {', '.join(unknown)}; there are {known}")
        size = whole_number("batch_size", batch_size)
        width = self.embed_dim if dim is None else as_whole(dim)
        if width is None or not 1 <= width <= self.embed_dim:
            fault = f"dim: {shown(dim)} is not within 1 to {self.embed_dim}, the embeddings' width"
            raise DataError(f"{fault}; choose another")
        normalize, show_progress = flag("normalize", normalize), flag("show_progress", show_progress)
        convert_to_numpy = flag("convert_to_numpy", convert_to_numpy)
        precision = cast("EmbeddingPrecision", one_of("precision", precision, get_args(EmbeddingPrecision)))
        limits = checked_ranges(ranges, width, precision)
        pool = None if devices is None else checked_devices(devices)
        if pool and device is not None:
            raise ConfigError("device: contradicts devices; give one of them")
        if device is not None:
            self.to(device)
        self.model.eval()
        batches = [inputs.items[i : i + size] for i in range(0, len(inputs.items), size)]
        done: Iterable[tuple[int, Tensor]] = ((i, embed(batch).float().cpu()) for i, batch in enumerate(batches))
        if pool:
            done = embedded_by_all(self, embed.__name__, batches, pool)
        if show_progress:
            from rich.console import Console
            from rich.progress import track

            done = track(done, description="encoding", total=len(batches), console=Console(stderr=True))
        parts = dict(done)
        whole = [parts[number] for number in range(len(batches))]
        embeddings = (torch.cat(whole) if whole else torch.zeros(0, self.embed_dim, dtype=torch.float32))[:, :width]
        if normalize:
            embeddings = _unit(embeddings)
        embeddings = quantized(embeddings, precision, limits)
        embeddings = embeddings[0] if inputs.is_one else embeddings
        return embeddings.numpy() if convert_to_numpy else embeddings

    def golden_tensors(self, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        images = small_images(examples, self.preprocessing.image.size)
        texts = [caption for sample in examples for caption in sample.captions[:1]] or ["a picture"]
        tensors = {f"image_{i}": image for i, image in enumerate(images)}
        tensors["image_embeddings"] = self.encode_image(images)
        tensors["text_embeddings"] = self.encode_text(texts)
        metadata = {"texts": packed(texts)}
        if self.preprocessing.audio is not None:
            sounds = [sample.audio for sample in examples if sample.audio is not None]
            tensors |= {f"audio_{i}": sound.samples for i, sound in enumerate(sounds)}
            tensors["audio_embeddings"] = self.encode_audio(sounds)
            metadata["audio_rates_hz"] = packed([sound.rate_hz for sound in sounds])
        return tensors, metadata

    def golden_pairs(self, golden: Golden) -> list[tuple[Tensor, Tensor]]:
        pictured, written = (golden.outputs(f"{kind}_embeddings", self.embed_dim) for kind in ("image", "text"))
        pairs = [
            (self.encode_image(golden.images(len(pictured), self.preprocessing.image.size)), pictured),
            (self.encode_text(golden.texts("texts", len(written))), written),
        ]
        if self.preprocessing.audio is not None:
            heard = golden.outputs("audio_embeddings", self.embed_dim)
            pairs.append((self.encode_audio([Clip(*sound) for sound in golden.sounds(len(heard))]), heard))
        return pairs

    def _embed_images(self, images: list[Named]) -> Tensor:
        return self.model.embed_image(pixels_of(images, self.preprocessing.image).to(self.device))

    def _embed_texts(self, texts: list[Named]) -> Tensor:
        input_ids, mask = self.preprocessing.texts([text for _, text in texts])
        return self.model.embed_text(input_ids.to(self.device), mask.to(self.device))

    def _embed_sounds(self, sounds: list[Named]) -> Tensor:
        return self.model.embed_audio(*self._features(sounds))

    def _embed_both(self, pairs: list[Named]) -> Tensor:
        images, sounds = zip(*(pair for _, pair in pairs), strict=True)
        pixels = pixels_of(images, self.preprocessing.image).to(self.device)
        return self.model.embed_image_audio(pixels, *self._features(sounds))

    def _features(self, sounds: Sequence[Named]) -> tuple[Tensor, Tensor]:
        assert self.preprocessing.audio is not None
        features, mask = features_of(sounds, self.preprocessing.audio)
        return features.to(self.device), mask.to(self.device)

    def _require_audio(self, method: str) -> None:
        if self.preprocessing.audio is None:
            fault = f"{method}: this model has no audio encoder"
            raise DataError(f"{fault}; train one with `audio_encoder` in the config")


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
