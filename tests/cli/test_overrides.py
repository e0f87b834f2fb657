"""The three spellings of an override, and what is left for argparse."""

from __future__ import annotations

import argparse

import pytest

from impresa.cli.overrides import add_config_name, config_name, options, split_overrides
from impresa.config import load_experiment
from impresa.errors import ConfigError

VALUES = ["1e-4", "-1", "-.5", "-1e-4", "-inf", "[0.9, 0.995]", "null", "{a: 1}", "a b", "", "x=y", "~/data", "true"]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["optimization.lr", "seed", "model", "training.optimizer_kwargs.betas"])
def test_three_spellings_mean_the_same(key: str, value: str) -> None:
    for words in ([f"--{key}", value], [f"--{key}={value}"], [f"{key}={value}"]):
        assert split_overrides(["shapes", *words, "--resume"]) == (["shapes", "--resume"], [f"{key}={value}"])


def test_the_spellings_make_the_same_experiment() -> None:
    experiments = [
        load_experiment("shapes", split_overrides(words)[1])
        for words in (
            ["--optimization.lr", "1e-4", "--optimization.betas", "[0.9, 0.995]"],
            ["--optimization.lr=1e-4", "--optimization.betas=[0.9, 0.995]"],
            ["optimization.lr=1e-4", "optimization.betas=[0.9, 0.995]"],
        )
    ]
    assert experiments[0] == experiments[1] == experiments[2] != load_experiment("shapes")
    assert experiments[0].optimization.betas == (0.9, 0.995)


def test_order_is_kept() -> None:
    assert split_overrides(["seed=1", "--seed", "2", "--seed=3"])[1] == ["seed=1", "seed=2", "seed=3"]


@pytest.mark.parametrize("word", ["~seed", "+seed=3", "++seed=3", "model@x=y", "a/b=c"])
def test_hydra_s_other_spellings_are_left_to_the_loader(word: str) -> None:
    assert split_overrides([word]) == ([], [word])


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--seed", "3"], ["optimization.eps=1"], ["-v"]])
def test_a_key_without_a_value(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        split_overrides(["shapes", "--optimization.lr", *words])
    assert caught.value.lines == (
        "optimization.lr: has no value; write --optimization.lr VALUE or optimization.lr=VALUE",
    )


def test_all_keys_without_a_value_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        split_overrides(["--optimization.lr", "--seed", "--name"])
    assert [line.split(":")[0] for line in caught.value.lines] == ["optimization.lr", "seed", "name"]


@pytest.mark.parametrize("word", ["--output-dir", "--config-name", "-o"])
def test_the_value_of_an_option_is_no_override(word: str) -> None:
    rest = [word, "runs/a.b=c", "shapes"]
    assert split_overrides([*rest, "seed=3"], {word}) == (rest, ["seed=3"])
    assert split_overrides([word, "seed=3"], {word}) == ([word, "seed=3"], [])
    assert split_overrides([word], {word}) == ([word], [])


def test_options_with_a_value_are_found_in_sub_commands_too() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir")
    show = parser.add_subparsers().add_parser("show")
    show.add_argument("--json", action="store_true")
    show.add_argument("-d", "--dialect")
    assert set(options(parser, with_value=True)) == {"--output-dir", "-d", "--dialect"}
    assert set(options(parser)) == {"-h", "--help", "--output-dir", "-d", "--dialect", "--json"}


@pytest.mark.parametrize(
    ("words", "name"),
    [("", None), ("a", "a"), ("--config-name a", "a"), ("--config-name=a", "a"), ("a --config-name=a", "a")],
)
def test_a_config_is_named_in_either_way(words: str, name: str | None) -> None:
    parser = argparse.ArgumentParser()
    add_config_name(parser)
    assert config_name(parser.parse_args(words.split())) == name


def test_two_names_are_refused() -> None:
    parser = argparse.ArgumentParser()
    add_config_name(parser)
    with pytest.raises(ConfigError, match="NAME: is given twice, as a and --config-name b; keep one"):
        config_name(parser.parse_args(["a", "--config-name", "b"]))


@pytest.mark.parametrize(
    "words",
    [
        ["dataset.train_path=train.a.parquet", "dataset.train_path=train.b.parquet"],
        ["--dataset.train_path=train.a.parquet", "--dataset.train_path=train.b.parquet"],
        ["--dataset.train_path", "train.a.parquet", "train.b.parquet"],
        ["shapes", "--dataset.val_path", "photos/a", "photos/b", "optimization.lr=1"],
        ["training.data.train_path=a", "training.data.train_path=b"],
    ],
)
def test_a_list_that_the_shell_took_apart_is_explained(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"_path: is given twice in a row, .* and .*; put a list in quotes"):
        split_overrides(words)


@pytest.mark.parametrize(
    "words",
    [
        ["dataset.train_path=a", "optimization.lr=1", "dataset.train_path=b"],  # the last one counts
        ["--dataset.train_path", "a.parquet", "shapes"],
        ["--dataset.train_path", "photos/a", "shapes"],
        ["--dataset.train_path", "photos/a", "--dataset.val_path", "photos/b"],
        ["--dataset.train_path", "a.parquet", "dataset.val_path=b.parquet"],
        ["dataset.image_size=24", "dataset.image_size=32"],
        ["shapes", "photos/a.parquet", "photos/b.parquet"],
    ],
)
def test_what_only_looks_like_such_a_list_is_left_alone(words: list[str]) -> None:
    split_overrides(words)
