"""Write a run directory, as far as using the trained model needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from impresa.config import to_yaml
from impresa.config.experiment import ExperimentConfig
from impresa.config.locations import record_of
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.files import replacing_folder, write_atomic
from impresa.run_dir.integrity import save_golden
from impresa.run_dir.layout import BACKBONES, CONFIG, MANIFEST, PATHS, WEIGHTS
from impresa.run_dir.manifest import write_manifest
from impresa.run_dir.weights import write_weights
from impresa.tasks import task_of
from impresa.tasks.base import TrainableModel


def save_start(run_dir: Path, config: ExperimentConfig, preprocessing: Preprocessing) -> None:
    """Write the files that are known before training: config, full paths, tokenizer and transforms; the
    folder is there."""
    write_atomic(run_dir / CONFIG, to_yaml(config))
    if record := record_of(config):
        write_atomic(run_dir / PATHS, json.dumps(record, indent=2) + "\n")
    else:
        (run_dir / PATHS).unlink(missing_ok=True)
    preprocessing.save(run_dir)


def save_run(
    run_dir: Path,
    model: TrainableModel,
    config: ExperimentConfig,
    preprocessing: Preprocessing,
    *,
    examples: Sequence[Sample] = (),
    device: torch.device | str = "cpu",
) -> None:
    """Write a whole run, so that `load` gives the model back.

    Of a vision-language model the encoders are stored whole, wherever they came from; a language model that was frozen
    is not stored, but named and identified.

    Args:
        run_dir: the folder; made if needed.
        model: the weights to keep; left in eval mode, in float32 but for a frozen language model, on `device`.
        config: the experiment.
        preprocessing: tokenizer and transforms of the run.
        examples: samples that become golden inputs.
        device: where to compute the golden outputs; `load` is strict on the same kind of device.
    """
    task = task_of(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / MANIFEST).unlink(missing_ok=True)
    save_start(run_dir, config, preprocessing)
    write_weights(run_dir / WEIGHTS, model.state_to_save())
    with replacing_folder(run_dir / BACKBONES) as folder:
        task.save_architectures(model, folder)
    save_golden(run_dir, task.use(model, preprocessing, device), examples)
    write_manifest(run_dir)
