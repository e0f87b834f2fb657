"""No key is dead: another value of it changes what is trained, or it is named, as a label or because it does nothing.

What three steps on a CPU cannot show has its place in `ELSEWHERE`: the module that reads the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatch
from functools import cache, reduce
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch

import impresa
from impresa.config import ExperimentConfig
from impresa.config.describe import Fault
from impresa.config.memory_vlm import ENGINE_KEYS, LABELS
from impresa.config.optimization import OptimizationConfig
from impresa.config.relevance import check_relevance, default_tree, notices
from impresa.config.runs import prepare
from impresa.config.tree import is_union, known_keys, locate, lookup, merge, nested, to_tree
from impresa.config.validate import _parse
from impresa.data.sources import open_source, reading_of
from impresa.errors import ConfigError
from impresa.training.distributed import Group
from impresa.training.loop import steps_of, train_step, validate
from impresa.training.parts import build_parts
from impresa.training.run import set_up
from tiny_run import tiny_experiment
from tiny_vlm import tiny_vlm

STEPS = 3
BASES: dict[str, Callable[[], ExperimentConfig]] = {
    "alignment": lambda: tiny_experiment("vision_encoder.mrl_dimensions=[8,4]"),
    "answering": tiny_vlm,
}
VALUES: dict[str, list[dict[str, Any]]] = {
    "text_encoder.vocab_size": [{"text_encoder.vocab_size": 300}],
    "vision_encoder.embed_dim": [{"vision_encoder.embed_dim": 8, "text_encoder.embed_dim": 8}],
    "text_encoder.embed_dim": [{"vision_encoder.embed_dim": 8, "text_encoder.embed_dim": 8}],
    "dataset.eval_batch_size": [{"dataset.eval_batch_size": 3}],
    "dataset.augmentation_options.scale": [{"dataset.augmentation_options.scale": [0.5, 0.6]}],
    "dataset.augmentation_options.ratio": [{"dataset.augmentation_options.ratio": [0.5, 0.6]}],
    "losses.max_logit_scale": [{"losses.max_logit_scale": 10}],
    "decoder.max_len": [{"decoder.max_len": 12}],
    **{f"trainer.logging.{name}_interval": [{f"trainer.logging.{name}_interval": 2}] for name in ("eval", "save")},
}
"""Settings in place of those that can be guessed from the annotation and the key's value."""
ENGINE_LABELS = {ENGINE_KEYS[key] for key in LABELS}
HARDWARE = "training/distributed.py"
LOADER = "data/loading.py"
CHECKPOINTS = "training/checkpoints.py"
ELSEWHERE = {
    **dict.fromkeys(
        (f"dataset.{name}" for name in ("source", "train_path", "val_path", "test_path")), "data/sources/__init__.py"
    ),
    "dataset.streaming": "data/sources/__init__.py",
    "dataset.num_workers": LOADER,
    "dataset.prefetch_factor": LOADER,
    "dataset.persistent_workers": LOADER,
    "dataset.pin_memory": LOADER,
    "dataset.cache_features": "training/features.py",
    "trainer.early_stopping_patience": "training/monitor.py",
    "vision_encoder.backbone": "encoders/vision.py",
    "text_encoder.backbone": "data/preprocessing.py",
    "vision_encoder.checkpoint": "tasks/encoders.py",
    "text_encoder.checkpoint": "tasks/encoders.py",
    "vision_encoder.activation_checkpointing": "encoders/transformer.py",
    "text_encoder.prompts.*": "tasks/alignment/prompts.py",
    "text_encoder.activation_checkpointing": "encoders/transformer.py",
    "decoder.model": "decoders/pretrained.py",
    "decoder.init_from": "tasks/answering/task.py",
    "decoder.activation_checkpointing": "decoders/trm.py",
    "decoder.generation.stop": "tasks/answering",
    "decoder.generation.*": "decoders",
    "decoder.type": "decoders/kinds.py",
    "decoder.prefix": "tasks/answering/build.py",
    "optimization.packing": "encoders/text.py",
    "losses.duplicates": "losses/contrastive.py",
    "losses.gather_distributed": "losses/contrastive.py",
    "trainer.accelerator": HARDWARE,
    "trainer.devices": HARDWARE,
    "trainer.num_nodes": HARDWARE,
    "trainer.strategy": HARDWARE,
    "trainer.deterministic": "training/run.py",
    "trainer.max_restarts": "training/launch.py",
    "trainer.timeout_minutes": "training/run.py",
    "trainer.compile": "training/run.py",
    "trainer.logging.log_interval": "training/plan.py",
    "trainer.logging.wandb": "training/wandb_run.py",
    "trainer.logging.tensorboard": "training/logs.py",
    **{
        f"trainer.checkpoint.{name}": CHECKPOINTS
        for name in ("save_top_k", "monitor", "mode", "save_last", "dirpath", "filename")
    },
}
"""Keys of hardware, of files and of use -> the module, or the part, that reads them."""


def others(annotation: Any, value: Any) -> Iterator[Any]:
    """Values other than `value` that an annotation may allow: of words and switches all, of numbers some near it."""
    kind = get_origin(annotation) or annotation
    if is_union(annotation):
        for part in get_args(annotation):
            yield from others(part, value)
    elif kind is Annotated:
        yield from others(get_args(annotation)[0], value)
    elif kind is Literal:
        yield from (word for word in get_args(annotation) if word != value)
    elif kind is bool:
        yield not value
    elif kind in (int, float):
        is_number = isinstance(value, int | float)
        near = [value / 2, value * 2, 0.1, 0.5] if is_number else [0.1, 0.5]
        yield from near if kind is float else [round(2 * number) for number in near] + [1, 2, 4]
    elif kind is str:
        yield f"{value or ''}x"
    elif kind is tuple:
        first = value[-1] if value else None
        yield from ([*(value or ())[:-1], other] for other in others(get_args(annotation)[0], first))


def settings(key: str, annotation: Any, value: Any) -> Iterator[dict[str, Any]]:
    """What to set, key by key, in order to have another value of `key`."""
    yield from VALUES.get(key, [])
    yield from ({key: other} for other in others(annotation, value) if other != value)


@cache
def trained(config: ExperimentConfig) -> dict[str, Any]:
    """All that a few steps, a validation and the plan of a run show of its config."""
    parts = build_parts(config, None)
    training = set_up(config, parts, Group(torch.device("cpu")))
    shown: dict[str, Any] = {"start": digest(parts.model.state_dict())}
    for step in islice(steps_of(training.train_loader, config.trainer.accumulate_grad_batches), STEPS):
        shown[f"batches {training.state.step}"] = [digest(vars(batch)) for batch in step]
        shown[f"logs {training.state.step}"] = digest(train_step(training, step))
    shown["end"] = digest(parts.model.state_dict())
    shown["validation"] = validate(training)
    plan, schedule, optimizer = training.plan, training.schedule, training.state.optimizer
    shown["length"] = (plan.steps_per_epoch, plan.total_steps)
    shown["due"] = [(plan.logs_after(n), plan.evaluates_after(n), plan.saves_after(n)) for n in range(1, 30)]
    shown["rates"] = [schedule.learning_rate(n, 1.0) for n in range(1, plan.total_steps + 1)]
    shown["test data"] = len(open_source(config.dataset, "test", reading_of(config)))
    shown["groups"] = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return shown


def digest(values: dict[str, Any]) -> Any:
    return {name: _digest(value) for name, value in values.items()}


def _digest(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.double().sum().item(), value.double().norm().item()
    if is_dataclass(value):
        return {field.name: _digest(getattr(value, field.name)) for field in fields(value)}
    return repr(value)


def named(config: ExperimentConfig) -> str:
    """All keys, and sections, that are refused or warned of because they do nothing."""
    return " ".join(
        (*(fault.key for fault in check_relevance(config)), *(line.split(": ")[0] for line in notices(config)))
    )


def effect(base: ExperimentConfig, key: str, setting: dict[str, Any]) -> str | None:
    """What becomes of a setting: it is refused as impossible (None), named, has an effect, or has none (empty)."""
    faults: list[Fault] = []
    tree = reduce(merge, (nested(*item) for item in setting.items()), to_tree(base))
    config = _parse(ExperimentConfig, tree, default_tree(tree), faults)
    if faults:
        return None
    sections = "|".join(re.escape(part) for part in accumulate(key.split("."), "{}.{}".format))
    if re.search(rf"(?<![.\w])({sections})(?![.\w])", named(config)):
        return "named"
    try:
        changed = trained(prepare(config))
    except ConfigError:
        return None
    return ", ".join(part for part, value in trained(prepare(base)).items() if value != changed[part])


def keys_of(base: ExperimentConfig) -> list[str]:
    """The keys of the parts that an experiment has."""
    tree = to_tree(base)
    return [key for key in known_keys(ExperimentConfig) if tree.get(key.split(".")[0], "") is not None]


WALK = [(name, key) for name, base in BASES.items() for key in keys_of(base())]


@pytest.mark.parametrize(("name", "key"), WALK, ids=[f"{name}: {key}" for name, key in WALK])
def test_a_key_changes_something_or_is_named(name: str, key: str) -> None:
    base = BASES[name]()
    if key in ENGINE_LABELS:
        return
    if where := next((where for known, where in ELSEWHERE.items() if fnmatch(key, known)), None):
        place = Path(impresa.__file__).parent / where
        source = "".join(file.read_text(encoding="utf-8") for file in ([place], place.rglob("*.py"))[place.is_dir()])
        assert re.search(rf"\.{key.rpartition('.')[2]}\b", source), f"{where} does not read {key}"
        return
    annotation = locate(ExperimentConfig, key.split("."))[1]
    found = (effect(base, key, setting) for setting in settings(key, annotation, lookup(to_tree(base), key)))
    assert any(found), f"no value of {key} changes anything, and nothing says so"


def test_a_dead_key_is_found() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Grown(OptimizationConfig):
        dead: float = 1.0

    base = tiny_experiment()
    one, two = (replace(base, optimization=Grown(**vars(base.optimization), dead=value)) for value in (1.0, 2.0))
    assert one != two
    assert trained(one) == trained(two) == trained(base)
    assert named(two) == named(base) == ""


def test_the_list_of_modules_holds_keys_that_there_are() -> None:
    known = list(known_keys(ExperimentConfig))
    assert [key for key in ELSEWHERE if not any(fnmatch(other, key) for other in known)] == []
    assert [key for key in ELSEWHERE if key in ENGINE_LABELS] == []
