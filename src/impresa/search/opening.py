"""The sources of an index, opened with the columns of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from impresa.config.compose import with_overrides
from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import Modality
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import EMBEDDED, expanded
from impresa.config.shard_names import is_address
from impresa.data.sources import Reading, Source, open_path
from impresa.data.text import is_unicode
from impresa.errors import ConfigError, DataError
from impresa.search.reading import Reader


def source_names(sources: Iterable[str]) -> list[str]:
    """Sources in full, each once: paths without links, the same from any folder, and addresses as they are."""
    return list(dict.fromkeys(map(_in_full, sources)))


def _in_full(name: str) -> str:
    if not name:
        raise DataError("SOURCE: is empty; name a folder of pictures, or . for this one")
    if not is_unicode(name):
        raise DataError(f"{name}: its name is not UTF-8, and an index keeps names; rename it")
    return name if name == EMBEDDED or is_address(name) else str(expanded(name).resolve())


def modalities_of(config: ExperimentConfig, asked: Sequence[Modality]) -> tuple[Modality, ...]:
    """The parts of a sample that become rows: those asked for, else images, and sounds with an audio encoder.

    Raises:
        ConfigError: sounds are asked for, and the run has no audio encoder.
    """
    if "audio" in asked and config.audio_encoder is None:
        raise ConfigError("--modality: the run has no audio encoder; name image or text")
    every: tuple[Modality, ...] = ("image",) if config.audio_encoder is None else ("image", "audio")
    return tuple(dict.fromkeys(asked)) or every


def open_readers(
    config: ExperimentConfig,
    names: Sequence[str],
    modalities: Sequence[Modality],
    overrides: Sequence[str] = (),
    *,
    known: Collection[str] = (),
) -> list[Reader]:
    """The sources, read with a run's columns, but not from its `dataset.image_root`; those that the index has are
    `known`.

    Raises:
        DataError: a source is missing, or is none.
        ConfigError: an override is wrong.
    """
    config = replace(config, dataset=replace(config.dataset, image_root=None, source="auto"))
    dataset = with_overrides(config, overrides).dataset if overrides else config.dataset
    hears = config.audio_encoder is not None and "audio" in modalities
    seconds = config.audio_encoder.audio_max_seconds if config.audio_encoder and hears else None
    reading = Reading(audio_seconds=seconds, parts=tuple(modalities), others=True)
    dataset = replace(dataset, skip_unsupported_rows=False)  # they are listed with the bad samples
    return [Reader(name, _opened(dataset, name, reading, is_known=name in known), modalities) for name in names]


def _opened(dataset: DatasetConfig, name: str, reading: Reading, *, is_known: bool) -> Source:
    try:
        return open_path(dataset, name, reading)
    except DataError as error:
        if not is_known:
            raise
        fix = f"bring it back, or remove its rows with --drop {name}"
        raise DataError(f"{error.lines[0].partition('; ')[0]}; {fix}") from error
