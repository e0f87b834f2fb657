"""From two models to the curve between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import Source, Split, open_source, reading_of
from impresa.errors import CheckpointError
from impresa.evaluation.figures import figures
from impresa.evaluation.results import Evaluation
from impresa.interpolation.curve import Curve, Measured, Point, choose, metric_of
from impresa.interpolation.weights import Line, line_between, merged, without_adapters
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.alignment.task import AlignmentTask
from impresa.tasks.samples import name_of_data

_COMPARED_TEXTS = 100


class Mixture:
    """A model whose weights lie between two others; it reads inputs as the second does.

    Args:
        before: the model at alpha 0.
        after: that at alpha 1, of a run.
        names: of the two, for messages.
        device: where to compute.

    Raises:
        CheckpointError: the two are of different architectures, or read texts differently.
    """

    def __init__(
        self, before: EmbeddingModel, after: EmbeddingModel, names: tuple[str, str], device: torch.device
    ) -> None:
        assert after.run_dir is not None
        self.config = without_adapters(after.config)
        self.preprocessing = after.preprocessing
        self._check_texts(before, names)
        tokenizer = self.preprocessing.texts
        task = AlignmentTask(self.config).standing_on(after.run_dir)
        with torch.random.fork_rng(devices=[]):
            network = task.blank(tokenizer)
        states = [merged(_on_cpu(model), model.config) for model in (before, after)]
        self.line: Line = line_between(states[0], states[1], network, names)
        self.model: EmbeddingModel = AlignmentTask(self.config).use(network, self.preprocessing, device)

    def _check_texts(self, before: EmbeddingModel, names: tuple[str, str]) -> None:
        texts = list(
            islice(open_source(self.config.dataset, "val", reading_of(self.config)).captions(), _COMPARED_TEXTS)
        )
        theirs, ours = before.preprocessing.texts, self.preprocessing.texts
        if texts and not torch.equal(theirs(texts)[0], ours(texts)[0]):
            fault = f"{names[1]} reads texts by another tokenizer than {names[0]}"
            raise CheckpointError(f"{fault}; name the model that it was fine-tuned from")

    def set(self, alpha: float) -> EmbeddingModel:
        """The model at `alpha`; the next call changes it."""
        self.model.model.load_state_dict(self.line.at(alpha))
        return self.model


def _on_cpu(model: EmbeddingModel) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.model.state_dict().items()}


class Data:
    """A source, with the settings that say how it is judged."""

    def __init__(self, config: ExperimentConfig, dataset: DatasetConfig, source: Source, name: str) -> None:
        self._config = replace(config, dataset=dataset)
        self.source, self.name = source, name

    def evaluation(
        self, model: EmbeddingModel, batch_size: int | None, train_source: Source | None = None
    ) -> Evaluation:
        """All figures of a model on it."""
        model.config = self._config
        return AlignmentTask(self._config).evaluate(
            model, self.source, data=self.name, batch_size=batch_size, train_source=train_source
        )


def split_of(config: ExperimentConfig, split: Split) -> Data:
    """A split of the run's own data."""
    source = open_source(config.dataset, split, reading_of(config, labels=True))
    return Data(config, config.dataset, source, name_of_data(config.dataset, split))


def measure(
    mixture: Mixture,
    alphas: Sequence[float],
    old: Data | None,
    *,
    names: tuple[str, str],
    keep: float,
    batch_size: int | None,
    track: Callable[[Iterable[float]], Iterable[float]] = iter,
) -> Curve:
    """Validation data and old data at each alpha, then the test data at both ends and at the chosen place.

    Args:
        mixture: the model.
        alphas: from 0 to 1, both included.
        old: data whose figure is to be kept, if any.
        names: of the two models.
        keep: share of the old figure, see `choose`.
        batch_size: of the evaluations.
        track: wraps the iteration over the alphas, for a progress bar.

    Raises:
        DataError: data cannot be used.
    """
    val, test = split_of(mixture.config, "val"), split_of(mixture.config, "test")
    points, metrics = [], {"new": "", "old": ""}
    for alpha in track(alphas):
        model, found = mixture.set(alpha), {}
        for kind, data in (("new", val), ("old", old)):
            if data is not None:
                evaluation = data.evaluation(model, batch_size)
                metrics[kind] = metrics[kind] or metric_of(evaluation)
                found[kind] = figures(evaluation)[metrics[kind]]
        points.append(Point(alpha, found["new"], found.get("old")))
    chosen, tested = choose(points, keep), {}
    test_metric = metrics["new"]
    for alpha in sorted({0.0, chosen.alpha, 1.0}):
        evaluation = test.evaluation(mixture.set(alpha), batch_size)
        of_test = figures(evaluation)
        test_metric = test_metric if test_metric in of_test else metric_of(evaluation)
        tested[alpha] = of_test[test_metric]
    return Curve(
        before=names[0],
        after=names[1],
        new=Measured(val.name, metrics["new"]),
        old=None if old is None else Measured(old.name, metrics["old"]),
        keep=keep,
        points=tuple(points),
        test=Measured(test.name, test_metric),
        tested=tested,
    )
