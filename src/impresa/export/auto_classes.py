"""An alignment of Impresa under the names that transformers' auto classes ask for: its config and its processor. The
model is in `auto_model.py`, for it needs torch's modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from transformers import BatchFeature

    from impresa.data.preprocessing import Preprocessing

MODEL_TYPE = "impresa"
_HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class ImpresaConfig(PretrainedConfig):
    """Fields that transformers asks of a config; the run's `config.yaml` beside it describes the model itself."""

    model_type = MODEL_TYPE

    before_use: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    """Called before a config is read, to register its model: all that models of transformers stand on takes seconds to
    import, and other users of the auto classes need not wait for it."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """The config of an exported folder."""
        cls.before_use()
        return super().from_dict(config_dict, **settings)


def folder_of(name: str | Path, settings: dict[str, Any]) -> Path:
    """The folder of that name, or a repository of the hub, with the `settings` of `from_pretrained` that say which."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(str(name), **{key: settings[key] for key in _HUB_ARGUMENTS if key in settings}))


class ImpresaProcessor:
    """Images, texts and sounds to what `ImpresaModel` takes.

    Args:
        folder: with the run's files.
        preprocessing: of the run.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.folder, self.preprocessing = folder, preprocessing

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Tensors of whatever is given: `pixel_values` (N, 3, S, S), `input_ids` and `attention_mask` (N, T),
        `input_features` (N, F, M) and `features_mask` (N, F).

        Args:
            images: one image or several, as `impresa.load(...).encode_image` takes them.
            text: one or several.
            audio: samples (S,) of one sound, or a list of several.
            sampling_rate: their number per second, in Hz.

        Raises:
            DataError: an input cannot be read, or the model has no audio encoder.
        """
        from transformers import BatchFeature

        from impresa.errors import DataError
        from impresa.tasks.inputs import features_of, images_of, pixels_of, sounds_of

        found: dict[str, Any] = {}
        if images is not None:
            found["pixel_values"] = pixels_of(images_of("images", images).items, self.preprocessing.image)
        if text is not None:
            found["input_ids"], mask = self.preprocessing.texts([text] if isinstance(text, str) else list(text))
            found["attention_mask"] = mask.long()
        if audio is not None:
            if self.preprocessing.audio is None:
                raise DataError("audio: the model has no audio encoder; give images or texts")
            several = audio if isinstance(audio, list | tuple) else [audio]
            sounds = [sound if sampling_rate is None else (sound, sampling_rate) for sound in several]
            features, mask = features_of(sounds_of("audio", sounds).items, self.preprocessing.audio)
            found |= {"input_features": features, "features_mask": mask.long()}
        if not found:
            raise DataError("images, text, audio: none is given; give one of them")
        return BatchFeature(found)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """The processor of a folder, or of a repository of the hub."""
        from impresa.data.preprocessing import Preprocessing

        folder = folder_of(pretrained_model_name_or_path, settings)
        return cls(folder, Preprocessing.load(folder))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Copy the folder that it was read from."""
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing to do; transformers calls it when it has read the class from a folder."""
