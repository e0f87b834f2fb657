"""Which settings fit somebody's own data, each with the reason; what the user has set stays and decides the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from math import ceil
from typing import Any

from impresa.config.compose import load_experiment, override_of
from impresa.config.encoder import FROM_SCRATCH, is_from_scratch
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import EMBEDDED, check_data_paths, expanded
from impresa.config.tree import lookup, to_tree
from impresa.data.sources.columns import guess_columns
from impresa.errors import ConfigError
from impresa.hub import can_be_fetched, is_at_hand
from impresa.own.survey import Survey, survey

OWN, CLIP = "own", "clip"
"""The profiles from scratch and with a pretrained pair."""
PATH = "dataset.train_path"
MOST_HELD_OUT, LEAST_HELD_OUT = 2000, 100
FEW_HELD_OUT, FEW_FROM_SCRATCH, FEW_CAPTIONS = 50, 1000, 0.1
STEPS_FROM_SCRATCH, STEPS_PRETRAINED = 900, 100
STEPS_OF_FEW = 450
"""From scratch on fewer than `FEW_FROM_SCRATCH` samples: more steps learn them by heart."""
MOST_EPOCHS_PRETRAINED = 20
TEXT_DEPTH = 2


@dataclass(frozen=True)
class Choice:
    """One setting."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The experiment, and for people what was chosen and what to be wary of."""

    config: ExperimentConfig
    survey: Survey
    choices: tuple[Choice, ...]
    """In the order of decisions; those of the user too, where there was something to choose."""
    warnings: tuple[str, ...]


def choose(overrides: Sequence[str]) -> Chosen:
    """Settings for the data that the overrides name.

    Raises:
        ConfigError: no data are named, or a setting is wrong.
        DataError: the data cannot be read, or it is in doubt which columns are meant.
    """
    typed = {text.lstrip("+").partition("=")[0]: text.partition("=")[2] for text in overrides}
    if PATH not in typed:
        raise ConfigError(f"{PATH}: own looks at your pictures first; name their folder or table, {PATH}=photos/")
    if asked := next((key for key in typed if key.split(".")[0] == "decoder"), None):
        raise ConfigError(f"{asked}: own aligns pictures and captions; leave it out, and put a decoder behind the run")
    base, towers = _towers(overrides, typed)
    plain = load_experiment(base, overrides)
    _check(plain)
    columns = [
        Choice(f"dataset.{key}", name, "guessed: no other column of the table can be it")
        for key, name in guess_columns(plain.dataset).items()
        if f"dataset.{key}" not in typed
    ]
    found = survey(load_experiment(base, [*_overrides(columns), *overrides]))
    chosen = [Choice("name", _name_of(plain.dataset.train_path), "after the data"), *columns]
    for choice in (_held_out, _size, _text_tower, _text_depth, _batch, _epochs):
        config = load_experiment(base, [*_overrides(chosen), *overrides])
        chosen += choice(config, found)
    config = load_experiment(base, [*_overrides(chosen), *overrides])
    told = [towers, *(_as_set(choice, config) if choice.key in typed else choice for choice in chosen)]
    return Chosen(config, found, tuple(told), tuple(_warnings(config, found)))


def _check(config: ExperimentConfig) -> None:
    if config.dataset.train_path == EMBEDDED:
        raise ConfigError(f"{PATH}: own is for pictures of yours, and these are drawn; `impresa train {EMBEDDED}`")
    check_data_paths(config)


def _overrides(choices: Sequence[Choice]) -> list[str]:
    return [override_of(choice.key, choice.value) for choice in choices]


def _as_set(choice: Choice, config: ExperimentConfig) -> Choice:
    return Choice(choice.key, lookup(to_tree(config), choice.key), "as you set it")


def _name_of(path: str) -> str:
    """The name of the folder or file, or of the folder of a pattern, in letters that every file system takes."""
    whole = expanded(path).absolute()
    while has_magic(str(whole)):
        whole = whole.parent
    return re.sub(r"[^\w-]+", "-", whole.stem if whole.is_file() else whole.name).strip("-") or OWN


def _towers(overrides: Sequence[str], typed: Mapping[str, str]) -> tuple[str, Choice]:
    """The profile that the rest builds on, and what is to be said of the image tower."""
    key, scratch = "vision_encoder.backbone", load_experiment(OWN).vision_encoder.backbone
    if (name := typed.get(key)) is not None:
        return OWN if name in FROM_SCRATCH["image"] else CLIP, Choice(key, name, "as you set it")
    clip = load_experiment(CLIP).vision_encoder.backbone
    if not (is_at_hand(clip) or can_be_fetched()):
        how = f"`hf download {clip}` where there is a network, and its cache copied here, would give a pretrained one"
        return OWN, Choice(key, scratch, f"from scratch: {clip} is not here and the hub cannot be reached; {how}")
    try:
        load_experiment(CLIP, overrides)
    except ConfigError:  # if it is not this, the same is wrong from scratch
        return OWN, Choice(key, scratch, f"from scratch: other settings of yours do not fit {clip}")
    where = "and here already" if is_at_hand(clip) else "600 MB that are fetched once"
    return CLIP, Choice(key, clip, f"pretrained, {where}; {key}={scratch} trains from scratch")


def _held_out(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    """A tenth, from 100 to 2,000 images, but never more than a fifth."""
    if config.dataset.val_path is not None:
        return
    num = min(max(found.num_images / 10, LEAST_HELD_OUT), MOST_HELD_OUT, found.num_images / 5)
    share = ceil(1e4 * num / found.num_images) / 1e4
    a_part = "a fifth" if num == found.num_images / 5 else "a tenth" if num == found.num_images / 10 else "enough"
    reason = f"{a_part}: {_num_held_out(share, found):,} of {found.num_images:,} images are held out"
    yield Choice("dataset.val_fraction", share, reason)


def _num_held_out(share: float, found: Survey) -> int:
    return min(max(round(share * found.num_images), 1), found.num_images - 1)


def _num_val(config: ExperimentConfig, found: Survey) -> int:
    own = found.num_val_images
    return _num_held_out(config.dataset.val_fraction, found) if own is None else own


def _num_train(config: ExperimentConfig, found: Survey) -> int:
    """Samples to train on, if all images have as many."""
    if found.num_val_images is not None:
        return found.num_samples
    return round(found.num_samples * (1 - _num_val(config, found) / found.num_images))


def _size(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    px, tower = config.dataset.image_size, config.vision_encoder
    if not is_from_scratch("image", tower):
        yield Choice("dataset.image_size", px, "what the pretrained tower was trained on")
        return
    reason = f"your images have {found.side_px:,} px; more cost time, and little data do not fill them"
    if found.side_px < px:
        cell = tower.patch_size
        px, reason = max(found.side_px // cell, 2) * cell, f"your images have {found.side_px} px"
    yield Choice("dataset.image_size", px, reason)


def _text_tower(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    """A bag of words where a transformer would learn the few captions by heart."""
    if not is_from_scratch("text", config.text_encoder):
        return
    key, num = "text_encoder.backbone", _num_train(config, found)
    if num < FEW_FROM_SCRATCH:
        yield Choice(key, "bag", f"{num:,} samples are too few to learn more than what each word means")
    else:
        yield Choice(key, "transformer", f"{num:,} samples are enough to learn what the order of words means")


def _text_depth(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    if config.text_encoder.backbone == "transformer":
        yield Choice("text_encoder.depth", TEXT_DEPTH, "small, as the images' tower is")
        yield Choice("text_encoder.pooling", "mean", "of all tokens: learned sooner than a token of its own")


def _batch(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    num, most = _num_train(config, found), config.dataset.batch_size
    size = most
    while size > 8 and 3 * size > num:
        size //= 2
    reason = "each caption is told from so many" if size == most else f"at least three batches of {num:,} samples"
    yield Choice("dataset.batch_size", size, reason)


def _epochs(config: ExperimentConfig, found: Survey) -> Iterator[Choice]:
    num = _num_train(config, found)
    per_epoch = ceil(num / config.dataset.batch_size)
    if is_from_scratch("image", config.vision_encoder):
        epochs = max(ceil((STEPS_OF_FEW if num < FEW_FROM_SCRATCH else STEPS_FROM_SCRATCH) / per_epoch), 10)
    else:
        epochs = min(max(ceil(STEPS_PRETRAINED / per_epoch), config.trainer.epochs), MOST_EPOCHS_PRETRAINED)
    yield Choice("trainer.epochs", epochs, f"{epochs * per_epoch:,} steps, {per_epoch:,} in an epoch")


def _warnings(config: ExperimentConfig, found: Survey) -> Iterator[str]:
    num_val, num_train, px = _num_val(config, found), _num_train(config, found), config.dataset.image_size
    if num_val < FEW_HELD_OUT:
        yield f"{num_val:,} held-out images are few: the figures at the end are rough, see their intervals"
    if is_from_scratch("image", config.vision_encoder) and num_train < FEW_FROM_SCRATCH:
        few = f"{num_train:,} samples are few to learn from scratch"
        yield f"{few}: a colour histogram may find more; a pretrained CLIP needs less data"
    if found.num_different_captions < max(FEW_CAPTIONS * found.num_captions, 2):
        same = f"{found.num_different_captions:,} of {found.num_captions:,} captions are different"
        yield f"{same}: they are names of classes, which images alone can hardly be told apart by"
    if px > found.side_px:
        yield f"images of {found.side_px:,} px are enlarged to {px:,} px, which adds nothing (dataset.image_size)"
    if config.dataset.batch_size > num_train:
        yield f"a batch of {config.dataset.batch_size:,} is more than all {num_train:,} samples (dataset.batch_size)"
