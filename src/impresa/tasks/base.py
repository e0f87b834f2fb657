"""The interface of the two kinds of model to training, loading and evaluation.

An alignment (`tasks.alignment`) embeds; a vision-language model (`tasks.answering`) answers. Everything outside this
package works with the `Task` of a config, `impresa.tasks.task_of(config)`, and does not ask which of the two it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from PIL import Image
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig, towers
from impresa.data.preprocessing import Preprocessing, Tokenizer, prepare_audio_transform, prepare_image_transform
from impresa.data.sample import Sample
from impresa.data.sources import Source
from impresa.encoders.frozen import FrozenPart
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.tower import Tower, Use
from impresa.encoders.vision import VisionEncoder
from impresa.errors import DataError
from impresa.evaluation.results import Evaluation
from impresa.inside.explanation import Explanation, Method
from impresa.inside.occlusion import MOST_ROWS
from impresa.run_dir.golden import Golden
from impresa.run_dir.layout import BACKBONES
from impresa.run_dir.weights import with_stored_backbone
from impresa.tasks.arguments import text_of
from impresa.tasks.description import description
from impresa.tasks.devices import Device, cpu_by_default, float32_by_default, move, usable_device
from impresa.tasks.inputs import Picture, picture_of
from impresa.tasks.validation import NoWatch, Processes, StepWatch, Validation

if TYPE_CHECKING:
    from impresa.data.chat import ChatFormat

Collate = Callable[[Sequence[Sample]], Any]
"""Makes a batch of samples; those that it cannot use are named in the batch's `bad`."""


@dataclass
class ModelOutput:
    """Result of a model's forward pass on a batch."""

    loss: Tensor
    """Scalar with its graph."""
    logs: dict[str, Tensor]
    """Detached scalars by name, `loss` among them."""


class TrainableModel(nn.Module, ABC):
    """A model that training can drive."""

    vision_encoder: VisionEncoder
    frozen_vision: FrozenPart | None = None
    """The part of the image tower whose outputs are kept (`dataset.cache_features`): batches may hold these."""

    @property
    @abstractmethod
    def use_of_vision(self) -> Use:
        """What it reads of its image tower."""

    @abstractmethod
    def forward(self, batch: Any) -> ModelOutput:
        """The loss of a batch, and scalars to log."""

    @abstractmethod
    def commit(self, step: int) -> None:
        """Finish an optimizer step, for example by the update of the memory; every rank calls this once for each.

        Args:
            step: optimizer steps done since the start of training, from 1.
        """

    def state_to_save(self) -> dict[str, Tensor]:
        """The tensors that a run stores."""
        return self.state_dict()

    def facts(self) -> dict[str, str]:
        """What a dry run tells of the model after its steps, by a word for it."""
        return {}


class UsableModel(ABC):
    """A trained model with its own preprocessing, as `impresa.load` returns it.

    Args:
        model: the network.
        config: the experiment that trained it.
        preprocessing: of the run.
        device: where to compute, a number is that of a GPU; None stands for a GPU if there is one, else the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        device: Device | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.preprocessing = preprocessing
        self.run_dir: Path | None = None
        """The run that it was loaded from."""
        self.device = next(model.parameters()).device
        self.to(usable_device(device))

    def __repr__(self) -> str:
        return description(self)

    def to(self, device: Device) -> Self:
        """Move the model to another device; returns itself.

        Raises:
            ConfigError: there is no such device or no room on it; the model stays usable where it was.
        """
        found = usable_device(device)
        move(self.model, found, self.device)
        self.device = found
        return self

    @cpu_by_default()
    @float32_by_default()
    def explain(
        self, image: Picture, words: str | None = None, *, method: Method = "last", max_rows: int = MOST_ROWS
    ) -> Explanation:
        """Maps of where the model looks in an image; drawn by `impresa.inside.figure` or `impresa.inside.page`.

        Args:
            image: one image, not preprocessed.
            words: of an alignment a text, and the map shows which parts of the image their similarity hangs on; of a
                model that answers the question, by default that for a description.
            method: how attention is read.
            max_rows: rows and columns at most of the squares that are covered one after the other for a text.

        Raises:
            DataError: the image cannot be read, or the words are empty or no UTF-8 text.
            ConfigError: the image tower gives nothing away, and there are no words.
        """
        picture = picture_of("image", image, self.preprocessing.image.size)
        if words is not None and not text_of("words", words).value.strip():
            raise DataError("words: are empty; say something, or leave them out")
        return self.explained(picture, words, method, max_rows)

    @abstractmethod
    def explained(self, picture: Image.Image, words: str | None, method: Method, max_rows: int) -> Explanation:
        """`explain` of an RGB image and checked words."""

    @abstractmethod
    def golden_tensors(self, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """A few inputs, before any preprocessing, with the model's outputs; and metadata of them.

        Without examples it is an input of our own.
        """

    @abstractmethod
    def golden_pairs(self, golden: Golden) -> list[tuple[Tensor, Tensor]]:
        """New and stored outputs for the stored inputs, row by row.

        Raises:
            ValueError: the file does not hold what `golden_tensors` returned.
            DataError: an input cannot be read.
        """


class Task(ABC):
    """Everything that differs between the kinds of model, for one experiment.

    Args:
        config: the experiment, with towers of other runs as they are there (`impresa.config.prepare`).
    """

    answers: ClassVar[bool]
    """True for a model that answers questions, false for one that embeds."""
    blind_baseline: ClassVar[str]
    """Name of the baseline that is fitted on the training data."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    def prepare(self, source: Source) -> Preprocessing:
        """The preprocessing of a new run.

        Args:
            source: the training data, for a tokenizer that is trained on their texts.

        Raises:
            ConfigError: a pretrained part's preprocessing cannot be read, or the vocabulary is too small.
            CheckpointError: a run that a tower comes from is damaged.
        """
        tokenizer = self.prepare_tokenizer(source)
        return Preprocessing(tokenizer, prepare_image_transform(self.config), prepare_audio_transform(self.config))

    @abstractmethod
    def prepare_tokenizer(self, source: Source) -> Tokenizer | ChatFormat:
        """The tokenizer of the run that this one stands on, a pretrained model's own, or one trained on the source."""

    @abstractmethod
    def notes(self, source: Source, preprocessing: Preprocessing) -> tuple[str, ...]:
        """Sentences about texts of a source that the model does not read whole, see `impresa.data.lengths`."""

    @abstractmethod
    def collator(self, preprocessing: Preprocessing) -> Collate:
        """A function from samples to a batch."""

    @abstractmethod
    def build(self, preprocessing: Preprocessing) -> TrainableModel:
        """The model as training starts from it, on the CPU; new weights come from torch's global seed."""

    def is_of_use_untrained(self, model: TrainableModel) -> bool:
        """True if the model that `build` made can do something before its first training step."""
        return False

    @abstractmethod
    def restore(self, run_dir: Path, preprocessing: Preprocessing) -> TrainableModel:
        """The model with the weights of a finished run of this very experiment."""

    @abstractmethod
    def use(self, model: Any, preprocessing: Preprocessing, device: Device | None = None) -> UsableModel:
        """The model for users; it is left in eval mode on `device`."""

    @abstractmethod
    def loss_weights(self, batches: Sequence[Any], group: Processes) -> list[float]:
        """Factor of each batch's loss in a training step, so that gradients averaged over processes are those of the
        step."""

    def check_batches(self, num_train: int, num_val: int, world_size: int) -> None:
        """Refuse so many samples, or batches of the config's sizes, if nothing can be learned from them.

        Raises:
            ConfigError: a size is too small.
            DataError: there are too few samples.
        """
        return

    def least_samples(self, world_size: int) -> int:
        """Samples that each of the processes needs in a training batch. 0 where the batches of all are one in the loss,
        and a process may have none of it."""
        return 1 if world_size == 1 else 0

    def train_sums(self, output: Any) -> dict[str, Tensor]:
        """Tensors of a training batch that are added up over the batches and processes of a step, for `train_logs`."""
        return {}

    def train_logs(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of a training step beside those that the model logs itself, from all of its `train_sums`."""
        return {}

    @abstractmethod
    def validation(self, group: Processes) -> Validation:
        """A new, empty validation."""

    def watch(self, warmup_steps: int, group: Processes) -> StepWatch:
        """A watch for training runs that do not learn."""
        return NoWatch()

    @abstractmethod
    def evaluate(
        self,
        model: Any,
        source: Source,
        *,
        data: str,
        train_source: Source | None = None,
        probe_source: Source | None = None,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Evaluation:
        """All figures of the model on a source, beside those of simple baselines. The weights are not changed.

        Args:
            model: the model for users, of this task.
            source: the data.
            data: the data's name in the result.
            train_source: the training data, which some baselines are fitted on; None leaves these out.
            probe_source: of an alignment, training data with labels that a linear probe is fitted on; None: no probe.
            batch_size: samples at a time. None: the config's evaluation batch size.
            show_progress: progress bars on standard error.

        Raises:
            DataError: no sample is usable.
        """

    @abstractmethod
    def words_of(self, sample: Sample) -> str | None:
        """The text or the question of a sample that `UsableModel.explain` takes beside its image."""

    def save_architectures(self, model: TrainableModel, folder: Path) -> None:
        """Write the architecture of each pretrained part, so that a run does not depend on the part's origin."""
        for part, encoder in model.named_children():
            if isinstance(encoder, Tower) and isinstance(encoder.backbone, PretrainedBackbone):
                encoder.backbone.save_architecture(folder / part)

    def standing_on(self, run_dir: Path) -> Self:
        """The same task with a run's own descriptions of pretrained parts in place of ids and paths."""
        changed: dict[str, Any] = {
            part: with_stored_backbone(tower, run_dir / BACKBONES / part) for _, part, tower in towers(self.config)
        }
        return type(self)(replace(self.config, **changed))
