"""Tiny runs of a Qwen model behind `tiny_run`'s alignment."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from impresa.config import ExperimentConfig, load_experiment
from tiny_qwen import save_qwen
from tiny_run import finished_run
from tiny_vlm import SMALL

LORA = ("decoder.use_lora=true", "decoder.lora.r=4", "decoder.lora.dropout=0")


def qwen_on(run_dir: Path, *overrides: str) -> ExperimentConfig:
    """`shapes_vqa_qwen` made tiny, with the tower of a finished run and a base model of random weights."""
    tower = (f"vision_encoder.checkpoint={run_dir}", "decoder.prefix_layer=last")
    model = (f"decoder.model={base_model()}", "decoder.max_len=160", "decoder.generation.max_new_tokens=6")
    return load_experiment("shapes_vqa_qwen", [*SMALL, *tower, *model, *overrides])


@cache
def base_model() -> Path:
    """A tiny Qwen on disk; not to be changed."""
    return save_qwen(_folder() / "qwen")


@cache
def lora_run() -> Path:
    """A finished run of it with adapters, trained once for all tests of a process; not to be changed."""
    from impresa.training.run import train

    return train(qwen_on(finished_run(), *LORA), _folder() / "run", command=["impresa", "train", "shapes_vqa_qwen"])


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="impresa-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
