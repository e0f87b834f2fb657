"""The files of a curve, and the chosen weights as a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from impresa.data.sources import open_source, reading_of
from impresa.errors import CheckpointError, DataError
from impresa.evaluation.before import with_before, write_before
from impresa.evaluation.results import save_evaluation
from impresa.files import replacing_folder, write_atomic
from impresa.interpolation.curve import Curve
from impresa.interpolation.draw import png_of
from impresa.interpolation.measure import Mixture, split_of
from impresa.reports.card import model_card
from impresa.reports.html import write_report
from impresa.run_dir.environment import describe_environment, now, write_environment
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.save import save_run
from impresa.tasks.alignment.task import AlignmentTask
from impresa.tasks.gallery import with_explanations
from impresa.tasks.samples import read_samples

NAME = "interpolation"
NUM_GOLDEN = 4


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something. Raises `CheckpointError`."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"--out: {folder} is there already; name a new or an empty folder")


def write_curve(curve: Curve, folder: Path) -> None:
    """Write the curve as JSON, CSV and PNG."""
    for ending, content in (("json", curve.to_json()), ("csv", curve.to_csv()), ("png", png_of(curve))):
        write_atomic(folder / f"{NAME}.{ending}", content)


def write_run(mixture: Mixture, curve: Curve, run_dir: Path, *, command: Sequence[str], batch_size: int | None) -> None:
    """Write the chosen weights as a run, evaluated on the test data and with the curve beside it; whole or not at all.

    Args:
        mixture: the model.
        curve: says which weights.
        run_dir: a new or empty folder.
        command: the command line, for the record.
        batch_size: of the evaluation.
    """
    alpha, config = curve.chosen.alpha, mixture.config
    about = f"Weights at alpha {alpha:g} on the line from {curve.before} (0) to {curve.after} (1), see WiSE-FT"
    made = f"{about} (Wortsman et al. 2022): {curve.rule}; `{NAME}.csv` has the others."
    config = replace(config, labels=replace(config.labels, description=f"{about}."))
    test, task = split_of(mixture.config, "test"), AlignmentTask(mixture.config)
    train_source = None
    with suppress(DataError):  # then the baselines that are fitted on it are left out
        train_source = open_source(config.dataset, "train", reading_of(config))
    val = split_of(mixture.config, "val").source
    examples = [sample for _, sample in islice(read_samples(val, range(len(val)), bad=[]), NUM_GOLDEN)]
    environment = describe_environment(command, config.seed)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(run_dir) as folder:
        write_before(test.evaluation(mixture.set(0.0), batch_size), folder)
        model = mixture.set(alpha)
        evaluation = with_before(test.evaluation(model, batch_size, train_source), folder)
        save_evaluation(with_explanations(evaluation, task, model, test.source), folder)
        size = sum(parameter.numel() for parameter in model.model.parameters())
        save_run(folder, model.model, config, mixture.preprocessing, examples=examples, device=model.device)
        write_curve(curve, folder)
        environment["finished"] = now()
        write_environment(folder, environment)
        card = model_card(config, evaluation, environment, run_dir, size, made=made)
        write_atomic(folder / MODEL_CARD, card)
        write_report(folder)
