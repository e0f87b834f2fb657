"""Values that are spelled oddly: the same in a file and on the command line, and refused where they could mislead."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from impresa.config import ExperimentConfig, load_experiment, read_config, to_yaml
from impresa.config.experiment import LabelsConfig
from impresa.errors import ConfigError

SPELLINGS = [
    ("trainer.epochs", "42", 42),
    ("trainer.epochs", "+42", 42),
    ("trainer.epochs", "1_000", 1000),
    (
        "trainer.epochs",
        "0042",
        "got '0042' (text); it must be a whole number at least 1 and at most 1000000000; write 42",
    ),
    (
        "trainer.epochs",
        "0b11",
        "got '0b11' (text); it must be a whole number at least 1 and at most 1000000000; write 3",
    ),
    (
        "trainer.epochs",
        "0x1F",
        "got '0x1F' (text); it must be a whole number at least 1 and at most 1000000000; write 31",
    ),
    (
        "trainer.epochs",
        "0o17",
        "got '0o17' (text); it must be a whole number at least 1 and at most 1000000000; write 15",
    ),
    (
        "trainer.epochs",
        "'42'",
        "got '42' (text); it must be a whole number at least 1 and at most 1000000000; write 42",
    ),
    ("trainer.epochs", "1:30", "got '1:30' (text); it must be a whole number at least 1"),
    ("trainer.epochs", "1:30:00", "got '1:30:00' (text); it must be a whole number at least 1"),
    ("trainer.epochs", "1__0", "got '1__0' (text); it must be a whole number at least 1"),
    ("trainer.epochs", "2024-01-31", "got '2024-01-31' (text); it must be a whole number at least 1"),
    ("trainer.epochs", "9" * 5000, "is no YAML that can be used"),
    ("optimization.lr", "5e-4", 5e-4),
    ("optimization.lr", ".5", 0.5),
    ("optimization.lr", "5.", 5.0),
    ("optimization.lr", "1.e-3", 1e-3),
    ("optimization.lr", "00.5", "got '00.5' (text); it must be a number above 0; write 0.5"),
    ("optimization.lr", "1:30.5", "got '1:30.5' (text); it must be a number above 0"),
    ("optimization.lr", ".inf", "got '.inf' (text); it must be a number above 0"),
    ("trainer.deterministic", "TRUE", True),
    ("trainer.deterministic", "yes", "got 'yes' (text); it must be true or false; write true"),
    ("trainer.deterministic", "Off", "got 'Off' (text); it must be true or false; write false"),
    ("name", "0042", "0042"),
    ("name", "1:30", "1:30"),
    ("name", "on", "on"),
    ("name", "No", "No"),
    ("name", "2024-01-31", "2024-01-31"),
    ("labels.tags", "[0042, yes]", ("0042", "yes")),
    ("dataset.val_path", "None", "got 'None' (text) where null is meant; write null"),
    ("dataset.val_path", "'~'", "got '~' (text) where null is meant; write null"),
    ("dataset.val_path", "NULL", None),
    ("dataset.val_path", "./None", "./None"),
    ("optimization.lr_memory", "None", "got 'None' (text); it must be a number above 0 or null; write null"),
    ("audio_encoder", "None", "got 'None' (text); it must be a mapping of keys or null; write null"),
    ("losses.siglip_bias", "0042", "got '0042'; it must be auto or a number; write 42"),
]


def in_yaml(key: str, text: str) -> str:
    *parents, last = key.split(".")
    return (
        "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parents))
        + f"{'  ' * len(parents)}{last}: {text}\n"
    )


@pytest.mark.parametrize(("key", "text", "found"), SPELLINGS, ids=[f"{key}={text[:12]}" for key, text, _ in SPELLINGS])
@pytest.mark.parametrize("source", ["file", "command line"])
def test_a_spelling_means_the_same_in_a_file_and_on_the_command_line(
    source: str, key: str, text: str, found: object, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(in_yaml(key, text) if source == "file" else "seed: 0\n")
    overrides = [f"{key}={text}"] if source == "command line" else []
    is_refusal = isinstance(found, str) and found.startswith(("got ", "is no YAML"))
    if not is_refusal:
        assert attrgetter(key)(load_experiment(path, overrides)) == found
        return
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    (line,) = caught.value.lines
    assert line.startswith((f"{key}: {found}", f"{path}: {found}", f"{key}: got '9999"))


@pytest.mark.parametrize(
    "text", ["0042", "1:30", "0b11", "1_000", "yes", "None", "1.e3", "+5", ".inf", "2024-01-31", "<<"]
)
def test_a_text_comes_back_from_yaml_as_text(text: str, tmp_path: Path) -> None:
    config = replace(ExperimentConfig(), labels=LabelsConfig(description=text, tags=(text,)))
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(config))
    assert load_experiment(path) == read_config(path) == config


FILLED_IN: list[tuple[str, str, str | None, object]] = [
    ("optimization.lr", "${oc.env:VALUE}", "5e-4", 5e-4),
    ("optimization.lr", "${oc.env:VALUE}e-4", "5", 5e-4),
    ("optimization.lr", "${oc.env:VALUE,0.5}", None, 0.5),
    ("trainer.epochs", "${oc.env:VALUE}", "12", 12),
    ("trainer.deterministic", "${oc.env:VALUE}", "true", True),
    ("optimization.lr_memory", "${oc.env:VALUE}", "null", None),
    ("optimization.betas", "['${oc.env:VALUE}', 0.99]", "0.8", (0.8, 0.99)),
    ("name", "${oc.env:VALUE}", "2024", "2024"),
    ("labels.tags", "['${oc.env:VALUE}']", "2024", ("2024",)),
]


@pytest.mark.parametrize("row", FILLED_IN, ids=[f"{row[0]}={row[1]}" for row in FILLED_IN])
def test_the_environment_gives_the_number_that_it_spells(
    row: tuple[str, str, str | None, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text, value, found = row
    if value is not None:
        monkeypatch.setenv("VALUE", value)
    path = tmp_path / "mine.yaml"
    path.write_text(in_yaml(key, text))
    empty = tmp_path / "empty.yaml"
    empty.touch()
    assert attrgetter(key)(load_experiment(path)) == found
    assert attrgetter(key)(load_experiment(empty, [f"{key}={text}"])) == found


def test_the_environment_is_read_as_strictly_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUE", "0042")
    with pytest.raises(ConfigError, match=r"^trainer.epochs: got '0042' \(text\); it must be .*; write 42$"):
        load_experiment("shapes", ["trainer.epochs=${oc.env:VALUE}"])
