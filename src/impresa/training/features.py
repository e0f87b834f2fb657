"""What a frozen image tower makes of the data, computed once before the first step and kept on disk.

A folder of `dataset.cache_features` holds a store for each tower and preprocessing, named by a digest of all that the
rows depend on beside the image: a row is never served for other weights.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded
from impresa.config.tree import to_tree
from impresa.data.feature_store import FeatureStore, bytes_per_row, writing
from impresa.data.images import ImageTransform
from impresa.data.kept_features import NONE, KeptSource
from impresa.data.loading import WorkerLoader, as_it_is
from impresa.data.sample import Sample, TensorBatch
from impresa.encoders.frozen import PRECISION, FrozenPart, frozen_part
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.errors import CheckpointError, DataError
from impresa.files import naming, write_atomic
from impresa.run_dir.environment import installed_version
from impresa.run_dir.lock import locked
from impresa.tasks.samples import progress_bar
from impresa.training.distributed import Group
from impresa.training.processes import GracefulStop, TrainingInterrupted
from impresa.training.state import TrainState

if TYPE_CHECKING:
    from impresa.tasks.base import TrainableModel

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the store; a change makes all older ones unread."""
ABOUT = "about.json"
_LIBRARIES = ("torch", "transformers", "timm")
_OF_USE = ("checkpoint", "freeze", "unfreeze_last", "activation_checkpointing", "prompts")
"""Settings of a tower that change no output of a frozen one; a backbone's name stands for what it is built from."""
_READ_AT_ONCE = 256
_WAIT_S = 1.0


@dataclass(frozen=True)
class _Wanted:
    """An image that is in no store yet."""

    source: KeptSource
    index: int


@dataclass
class _Encodable:
    """Images that are to be encoded, as a worker has read them."""

    pixels: Tensor
    """(K, 3, S, S) float32; K may be 0."""
    digests: list[bytes]
    keys: list[int]


class _Digests(Dataset[list[bytes | None]]):
    """The digests of the images of a source, several at a time; None where there is no image."""

    def __init__(self, source: KeptSource) -> None:
        self._source = source

    def __getitems__(self, indices: list[int]) -> list[bytes | None]:
        found = (self._source.image_at(index) for index in indices)
        return [None if image is None else image.digest for image in found]


class _Images(Dataset[_Encodable]):
    """Images that a tower can be given; those that cannot be decoded are left out, and are bad samples later."""

    def __init__(self, wanted: Sequence[_Wanted], transform: ImageTransform) -> None:
        self._wanted, self._transform = wanted, transform

    def __getitems__(self, numbers: list[int]) -> _Encodable:
        found = _Encodable(torch.zeros(0), [], [])
        squares = []
        for number in numbers:
            image = self._wanted[number].source.image_at(self._wanted[number].index)
            if image is None:
                continue
            try:
                picture = image.decoded()
            except ValueError:
                continue
            squares.append(self._transform.pixels([picture]))
            found.digests.append(image.digest)
            found.keys.append(Sample("", picture).image_key or 0)
        if squares:
            found.pixels = self._transform.normalize(torch.cat(squares))
        return found


@dataclass(frozen=True)
class FeatureKeeper:
    """Computes what a store lacks, in the processes of a training run."""

    config: ExperimentConfig
    """With `dataset.cache_features`."""
    transform: ImageTransform
    state: TrainState
    """Has the model, on its device."""
    group: Group
    """Shares the work; all of its processes see the folder."""
    stop: GracefulStop
    """Asked after each batch; what is done by then is kept."""

    def keep(self, sources: Sequence[KeptSource]) -> None:
        """Let the sources, training and validation data, read from a store that has all of their images.

        Raises:
            DataError: the tower's numbers do not fit into half precision, or the rows not on the disk.
            OSError: the folder cannot be written.
            TrainingInterrupted: the user stopped the run.
        """
        assert self.config.dataset.cache_features is not None
        group, part = self.group, self._frozen_part()
        about = _description(self.config, part, self.transform)
        store = expanded(self.config.dataset.cache_features) / _name_of(about, part)
        digests = [self._digests_of(source) for source in sources]
        with _alone(store) if group.is_main else nullcontext():
            group.barrier()
            known = FeatureStore(store, part.row_length)
            places = known.places()
            wanted = _missing(sources, digests, places)
            if group.is_main:
                num_hits = len(places.keys() & {digest for found in digests for digest in found})
                _say_what_is_there(known, num_hits, len(wanted), part, store)
                write_atomic(store / ABOUT, json.dumps(about, indent=2, default=str) + "\n")
            _check_room(len(wanted) * bytes_per_row(part.row_length), store)
            group.barrier()
            if wanted:
                self._encode(wanted[group.rank :: group.world_size], part, store)
            group.barrier()
        kept = FeatureStore(store, part.row_length)
        places = kept.places()
        for source, found in zip(sources, digests, strict=True):
            source.use(kept, [NONE if digest is None else places.get(digest, NONE) for digest in found])
        self._model.frozen_vision = part

    @property
    def _model(self) -> TrainableModel:
        return cast("TrainableModel", self.state.model)

    def _frozen_part(self) -> FrozenPart:
        model, size = self._model, self.transform.size
        probe = TensorBatch(ids=[""], image=torch.zeros(1, 3, size, size))
        found: FrozenPart = self.state.precision.forward(
            lambda batch: frozen_part(model.vision_encoder, model.use_of_vision, batch.image), probe
        )
        return found

    def _digests_of(self, source: KeptSource) -> list[bytes | None]:
        """The digest of each image of a source, in order; each process reads a part of them."""
        first, end = (len(source) * rank // self.group.world_size for rank in (self.group.rank, self.group.rank + 1))
        own: list[bytes | None] = []
        for _, found in self._read(_Digests(source), range(first, end), _READ_AT_ONCE):
            own += found
        return self.group.gather(own)

    def _encode(self, wanted: Sequence[_Wanted], part: FrozenPart, store: Path) -> None:
        """Add the rows of some images to the store, batch by batch."""
        dataset, is_main, started = self.config.dataset, self.group.is_main, time.monotonic()
        size = dataset.eval_batch_size or dataset.batch_size
        shown = progress_bar(is_main and sys.stderr.isatty())
        with shown as bar, writing(store, str(self.group.rank), part.row_length) as writer:
            task = bar.add_task("encoding images", total=len(wanted))
            for numbers, read in self._read(_Images(wanted, self.transform), range(len(wanted)), size):
                if read.digests:
                    images = TensorBatch(ids=[""] * len(read.digests), image=read.pixels)
                    rows = self.state.precision.forward(lambda batch: part.encode(batch.image), images)
                    writer.add(read.digests, read.keys, rows.cpu().numpy())
                bar.advance(task, len(numbers))
        if is_main:
            seconds = max(time.monotonic() - started, 1e-9)
            speed = f"{len(wanted) / seconds:.0f} a second"
            logger.info(f"dataset.cache_features: {len(wanted)} images encoded in {seconds:.1f} s, {speed}")

    def _read(self, dataset: Dataset[Any], numbers: range, size: int) -> Iterator[tuple[range, Any]]:
        """What a dataset returns for so many numbers at a time, made by as many workers as those of the training."""
        chunks, workers = [numbers[start : start + size] for start in range(0, len(numbers), size)], self.config.dataset
        loader: DataLoader[Any] = WorkerLoader(
            dataset,
            batch_sampler=chunks,
            collate_fn=as_it_is,
            num_workers=workers.num_workers,
            prefetch_factor=workers.prefetch_factor if workers.num_workers else None,
        )
        for found in zip(chunks, loader, strict=True):
            yield found
            if self.stop.requested:
                raise TrainingInterrupted


def _missing(
    sources: Sequence[KeptSource], digests: Sequence[Sequence[bytes | None]], places: dict[bytes, int]
) -> list[_Wanted]:
    """One sample for each image that has no row, in the order of the data."""
    wanted: dict[bytes, _Wanted] = {}
    for source, found in zip(sources, digests, strict=True):
        for index, digest in enumerate(found):
            if digest is not None and digest not in places:
                wanted.setdefault(digest, _Wanted(source, index))
    return list(wanted.values())


def _say_what_is_there(known: FeatureStore, num_hits: int, num_misses: int, part: FrozenPart, store: Path) -> None:
    each = bytes_per_row(part.row_length)
    line = f"{num_hits} images are kept already ({_mib(known.num_bytes)} in {store}), {num_misses} are encoded first"
    added = f", {_mib(num_misses * each)} at {each} bytes each" if num_misses else ""
    logger.info(f"dataset.cache_features: {line}{added}")


def _check_room(num_bytes: int, store: Path) -> None:
    free = shutil.disk_usage(store).free
    if num_bytes > free:
        fault = f"{_mib(num_bytes)} are added, and the disk of {store.parent} has {_mib(free)} left"
        raise DataError(f"dataset.cache_features: {fault}; name a folder on another disk, or leave it out")


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """The only one that adds to the store; waits for a training that does."""
    with naming(store):
        store.mkdir(parents=True, exist_ok=True)
    waits = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(store, "is being written{}"))
                break
            except CheckpointError as busy:
                if not waits:
                    logger.info(f"dataset.cache_features: waiting, for {busy}")
                waits = True
                time.sleep(_WAIT_S)
        yield


def _description(config: ExperimentConfig, part: FrozenPart, transform: ImageTransform) -> dict[str, Any]:
    """All that rows depend on beside the image and the weights."""
    tower = {name: value for name, value in to_tree(config.vision_encoder).items() if name not in _OF_USE}
    backbone = part.tower.backbone
    if isinstance(backbone, PretrainedBackbone) and backbone.config is not None:
        tower["backbone"] = {
            name: value
            for name, value in backbone.config.to_dict().items()
            if not name.startswith(("_", "transformers"))
        }
    return {
        "format": FORMAT,
        "tower": tower,
        "kept": [
            part.use,
            part.length,
            part.tower.kept,
            {name: list(shape) for name, shape in part.shapes.items()},
        ],
        "numbers": [config.optimization.precision, str(PRECISION)],
        "images": asdict(transform),
        "libraries": {name: installed_version(name) for name in _LIBRARIES},
    }


def _name_of(about: dict[str, Any], part: FrozenPart) -> str:
    """A digest of the description and of all weights and buffers that rows depend on."""
    digest = blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=12)
    for module in part.modules():
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
