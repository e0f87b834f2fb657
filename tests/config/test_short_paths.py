"""The guide's short paths mean the same as the full ones, in YAML and in overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from impresa.config.compose import load_experiment
from impresa.config.describe import Fault
from impresa.config.memory_vlm import expand_short_overrides, expand_short_paths
from impresa.errors import ConfigError

FULL = {
    "optimizer": {"optimizer": "sgd", "optimizer_kwargs": {"eps": 1e-6}},
    "scheduler": {"scheduler": "linear", "scheduler_kwargs": {"min_lr": 0.0}},
}


@pytest.mark.parametrize(
    "short",
    [
        {
            "optimizer": "sgd",
            "optimizer_kwargs": {"eps": 1e-6},
            "scheduler": "linear",
            "scheduler_kwargs": {"min_lr": 0.0},
        },
        {
            "optimizer": {"optimizer": "sgd"},
            "optimizer_kwargs": {"eps": 1e-6},
            "scheduler": {"scheduler": "linear", "scheduler_kwargs": {"min_lr": 0.0}},
            "scheduler_kwargs": {"min_lr": 0.0},
        },
        FULL,
    ],
)
def test_a_tree_is_expanded(short: dict[str, Any]) -> None:
    assert expand_short_paths({"training": {"epochs": 3, **short}}) == {"training": {"epochs": 3, **FULL}}


def test_expansion_leaves_its_input_and_other_trees_alone() -> None:
    tree = {"training": {"optimizer": "sgd"}}
    expand_short_paths(tree)
    assert tree == {"training": {"optimizer": "sgd"}}
    assert expand_short_paths({"optimization": {"optimizer": "sgd"}}) == {"optimization": {"optimizer": "sgd"}}
    assert expand_short_paths({"training": 3}) == {"training": 3}


def test_both_paths_with_different_values_in_one_tree_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        expand_short_paths(
            {"training": {**FULL, "optimizer_kwargs": {"eps": 1e-5}, "scheduler_kwargs": {"min_lr": 1e-9}}}
        )
    assert caught.value.lines == (
        "training.optimizer.optimizer_kwargs.eps: is given twice, by its short and its full path, as 1e-06 and 1e-05; "
        "keep one",
        "training.scheduler.scheduler_kwargs.min_lr: is given twice, by its short and its full path, as 0.0 and 1e-09; "
        "keep one",
    )


def test_overrides_are_expanded_and_the_last_of_equal_keys_wins() -> None:
    faults: list[Fault] = []
    given = [("training.optimizer", "sgd"), ("training.optimizer", "adam"), ("training.optimizer_kwargs.eps", 1)]
    assert expand_short_overrides([*given, ("seed", 3)], faults) == [
        ("training.optimizer.optimizer", "sgd"),
        ("training.optimizer.optimizer", "adam"),
        ("training.optimizer.optimizer_kwargs.eps", 1),
        ("seed", 3),
    ]
    assert not faults


def test_both_paths_with_different_values_in_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer\.optimizer_kwargs\.eps: is given twice"):
        load_experiment(None, ["training.optimizer_kwargs.eps=1e-7", "training.optimizer.optimizer_kwargs.eps=1e-6"])
    same = ["training.optimizer_kwargs.eps=1e-7", "training.optimizer.optimizer_kwargs.eps=1e-7"]
    load_experiment(None, same)
    with pytest.raises(ConfigError, match="as 1e-07 and 1e-06; keep one"):
        load_experiment(None, [*same, "training.optimizer_kwargs.eps=1e-6"])


@pytest.mark.parametrize(
    "override",
    [
        "training.optimizer=sgd",
        "training.optimizer.optimizer=sgd",
        "training.optimizer={optimizer: sgd}",
        "training={optimizer: sgd}",
    ],
)
def test_the_spellings_of_an_override_keep_the_optimizer_s_settings(override: str) -> None:
    config = load_experiment(None, [override, "training.optimizer_kwargs.betas=[0.9, 0.995]"]).optimization
    assert (config.optimizer, config.betas, config.eps) == ("sgd", (0.9, 0.995), 1e-8)


def test_yaml_that_inherits_may_use_short_paths(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "defaults: [default, _self_]\ntraining: {optimizer: adam, optimizer_kwargs: {eps: 1e-7}}\n"
    )
    (tmp_path / "mine.yaml").write_text("defaults: [base, _self_]\ntraining: {scheduler: linear, optimizer: sgd}\n")
    config = load_experiment(str(tmp_path / "mine.yaml")).optimization
    assert (config.optimizer, config.eps, config.scheduler, config.warmup_epochs) == ("sgd", 1e-7, "linear", 5)


def test_files_of_a_group_may_use_short_paths(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "quick.yaml").write_text("optimizer: sgd\nscheduler_kwargs: {warmup_epochs: 1}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [default, training: quick]\n")
    config = load_experiment(str(tmp_path / "mine.yaml")).optimization
    assert (config.optimizer, config.warmup_epochs, config.scheduler) == ("sgd", 1, "cosine")
