"""Every key, value and option that the page on other libraries names is there."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from impresa.cli.main import VERBS
from impresa.cli.overrides import options
from impresa.config.describe import Fault
from impresa.config.experiment import ExperimentConfig
from impresa.config.relevance import default_tree
from impresa.config.tree import known_keys, merge, nested
from impresa.config.validate import _parse

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
OURS = [row.rsplit("|", 2)[1] for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith("| ---")]
WORDS = [word for cell in OURS for word in re.findall(r"`([^`]+)`", cell)]
SETTINGS = sorted({word for word in WORDS if re.match(r"[a-z_]+\.[a-z_.]+(=|$)", word) and "model." not in word[:6]})
COMMANDS = sorted({word for word in WORDS if word.startswith("impresa ")})


@pytest.mark.parametrize("setting", [word for word in SETTINGS if not word.startswith("impresa.")])
def test_keys_and_values_are_possible(setting: str) -> None:
    key, _, value = setting.partition("=")
    assert key in known_keys(ExperimentConfig)
    if value:
        faults: list[Fault] = []
        tree = nested(key, yaml.safe_load(value))
        _parse(ExperimentConfig, tree, merge(default_tree({"decoder": {}}), tree), faults)
        assert faults == []


@pytest.mark.parametrize("command", COMMANDS)
def test_verbs_and_options_are_there(command: str) -> None:
    _, verb, *rest = command.split()
    assert verb in VERBS
    parser = argparse.ArgumentParser()
    import_module(f"impresa.cli.{verb}").add_arguments(parser)
    assert {word for word in rest if word.startswith("--")} <= set(options(parser))


def test_both_tests_have_something_to_look_at() -> None:
    assert len(SETTINGS) > 40
    assert len(COMMANDS) > 5
