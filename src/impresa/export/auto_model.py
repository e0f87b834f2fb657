"""An alignment of Impresa as a model of transformers, for `AutoModel`.

Letters of shapes: N inputs, K images, L texts, S image side, T tokens, F frames, M mel bins, E embedding.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from impresa.errors import ConfigError
from impresa.export.auto_classes import ImpresaConfig, folder_of
from impresa.tasks.alignment.model import AlignmentModel


@dataclass
class ImpresaOutput(ModelOutput):
    """Embeddings of length one (N, E) of what was given, and of images and texts the scaled cosines between them."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None


class ImpresaModel(PreTrainedModel):
    """The towers of an alignment, frozen; `from_pretrained` makes one.

    Args:
        config: as transformers has it.
        model: the alignment.
        folder: with the run's files.
    """

    config_class = ImpresaConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"

    def __init__(self, config: ImpresaConfig, model: AlignmentModel | None = None, folder: Path | None = None) -> None:
        super().__init__(config)
        if model is None or folder is None:
            raise ConfigError("ImpresaModel: is made with its weights; use from_pretrained, not from_config")
        self.model, self.folder = model, folder

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Images (N, 3, S, S) to `pooler_output` (N, E), not normalised."""
        return BaseModelOutputWithPooling(pooler_output=self.model.embed_image(pixel_values.to(self.dtype)))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """Token ids and their mask (N, T) to `pooler_output` (N, E), not normalised."""
        mask = None if attention_mask is None else attention_mask.bool()
        return BaseModelOutputWithPooling(pooler_output=self.model.embed_text(input_ids, mask))

    def get_audio_features(
        self, input_features: Tensor, features_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Features (N, F, M) of sounds and their mask (N, F) to `pooler_output` (N, E), not normalised."""
        mask = None if features_mask is None else features_mask.bool()
        return BaseModelOutputWithPooling(pooler_output=self.model.embed_audio(input_features.to(self.dtype), mask))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        features_mask: Tensor | None = None,
        **_: Any,
    ) -> ImpresaOutput:
        """Embed what is given; see the methods above for the shapes. Logits are (K, L) and (L, K)."""
        found: dict[str, Any] = {}
        if pixel_values is not None:
            found["image_embeds"] = F.normalize(_pooled(self.get_image_features(pixel_values)), dim=-1)
        if input_ids is not None:
            found["text_embeds"] = F.normalize(_pooled(self.get_text_features(input_ids, attention_mask)), dim=-1)
        if input_features is not None:
            found["audio_embeds"] = F.normalize(_pooled(self.get_audio_features(input_features, features_mask)), dim=-1)
        if pixel_values is not None and input_ids is not None:
            logits = self.model.loss.logit_scale.exp() * found["text_embeds"] @ found["image_embeds"].T
            if self.model.loss.logit_bias is not None:
                logits = logits + self.model.loss.logit_bias.value
            found |= {"logits_per_text": logits, "logits_per_image": logits.T}
        return ImpresaOutput(**found)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *_: Any,
        config: ImpresaConfig | None = None,
        dtype: torch.dtype | str | None = None,
        **settings: Any,
    ) -> Self:
        """The model of a folder, or of a repository of the hub, by `impresa.load`: its files are checked as those of a
        run are. `dtype` is that of the weights, float32 unless given."""
        from impresa.run_dir.load import load_embedder

        folder = folder_of(pretrained_model_name_or_path, settings)
        config = ImpresaConfig.from_json_file(folder / "config.json") if config is None else config
        found = cls(config, load_embedder(folder, "cpu").model, folder).eval()
        return found.to(dtype) if isinstance(dtype, torch.dtype) else found

    def save_pretrained(self, save_directory: str | Path, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Copy the files; the towers are frozen, so that they are as they were."""
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)


def _pooled(output: BaseModelOutputWithPooling) -> Tensor:
    assert output.pooler_output is not None
    return output.pooler_output
