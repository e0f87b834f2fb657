"""Overrides on the command line: `--a.b v`, `--a.b=v` and `a.b=v` mean the same; and how a config is named."""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import PurePath

from impresa.config.memory_vlm import TOP_LEVEL
from impresa.errors import ConfigError

_ASSIGNMENT = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/-]*=", re.DOTALL)
_NEGATIVE_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)
_TOP_LEVEL_KEYS = frozenset().union(*TOP_LEVEL.values())


_OF_TRAINING = (
    *("train_path", "val_path", "test_path", "val_fraction", "batch_size", "eval_batch_size", "image_size", "resize"),
    *(
        "augmentation",
        "augmentation_options",
        "audio_augmentation",
        "caption_dropout",
        "questions_per_image",
        "num_workers",
    ),
    *("prefetch_factor", "pin_memory", "persistent_workers", "cache_features"),
)
"""Keys of `dataset` that do not say how files are read."""


def split_overrides(
    argv: Sequence[str], value_options: Container[str] = (), *, names_data: bool = False
) -> tuple[list[str], list[str]]:
    """The words after the verb that are left for argparse, and the overrides, each as `key=value`.

    The word after one of `value_options` is never an override. With `names_data` a word may also be the path of a
    folder like `year=2020`: then an override begins with a section of the configuration.

    Raises:
        ConfigError: with one line for each `--key` without a value.
    """
    rest, overrides, missing = list[str](), list[str](), list[str]()
    words = list(argv)
    _refuse_expanded_lists(words)
    while words:
        word = words.pop(0)
        if word in value_options:
            rest += [word, *words[:1]]
            del words[:1]
        elif word.partition("=")[0] in value_options:
            rest.append(word)
        elif _is_key_option(word):
            key, equals, value = word[2:].partition("=")
            if not equals and (not words or _is_no_value(words[0])):
                missing.append(f"{key}: has no value; write --{key} VALUE or {key}=VALUE")
            else:
                overrides.append(f"{key}={value if equals else words.pop(0)}")
        elif _is_dotted_key(word) if names_data else _ASSIGNMENT.match(word) or word.startswith("~"):
            overrides.append(word)
        else:
            rest.append(word)
    if missing:
        raise ConfigError(*missing)
    return rest, overrides


def options(parser: argparse.ArgumentParser, *, with_value: bool = False) -> Iterator[str]:
    """Options of a parser and of its sub-commands: all, or those that take a value."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options(child, with_value=with_value)
        elif action.nargs != 0 or not with_value:
            yield from action.option_strings


def add_config_name(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a config: a positional, or `--config-name` as Hydra's users write it."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a shipped config or the path of a YAML file")
    parser.add_argument("--config-name", metavar="NAME", help="the same as NAME (default: default)")


def config_name(args: argparse.Namespace) -> str | None:
    """The config that the arguments of `add_config_name` name; None for the default one."""
    if args.name is not None and args.config_name is not None and args.name != args.config_name:
        raise ConfigError(f"NAME: is given twice, as {args.name} and --config-name {args.config_name}; keep one")
    chosen: str | None = args.config_name if args.name is None else args.name
    return chosen


def check_data_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that do not say how the files of data are read.

    Raises:
        ConfigError: with one line for each.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    faults = [
        f"{key}: is no key of `dataset`, the only ones here; leave it out"
        for key in keys
        if not key.startswith("dataset.")
    ]
    idle = [key for key in keys if key.removeprefix("dataset.") in _OF_TRAINING]
    faults += [f"{key}: changes nothing here, it does not say how files are read; leave it out" for key in idle]
    if faults:
        raise ConfigError(*faults)


def _refuse_expanded_lists(words: Sequence[str]) -> None:
    """Refuse a data path that the shell has made two of, as it does with `{a,b}` outside of quotes.

    Raises:
        ConfigError: the same key twice in a row, or a further path of the same kind behind `--key PATH`.
    """
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        key, equals, path = word.lstrip("-").partition("=")
        other_key, _, other = after.lstrip("-").partition("=")
        if equals and key == other_key:
            key_of_both, pair = key, (path, other)
        else:
            key_of_both, pair = before.removeprefix("--"), (word, after)
            if "=" in before or not before.startswith("--") or not _are_alike(*pair):
                continue
        if key_of_both.endswith("_path") and "." in key_of_both and pair[0] != pair[1]:
            fix = f"put a list in quotes, '{key_of_both}=data/{{a,b}}.parquet', or the shell takes it apart"
            raise ConfigError(f"{key_of_both}: is given twice in a row, {pair[0]} and {pair[1]}; {fix}")


def _are_alike(path: str, other: str) -> bool:
    """True for two words that can come of one path with a list in it, false for an option, a key or a config."""
    first, second = PurePath(path), PurePath(other)
    if other.startswith("-") or _ASSIGNMENT.match(other):
        return False
    return first.suffix == second.suffix and (first.suffix != "" or first.parent == second.parent != PurePath())


def _is_dotted_key(word: str) -> bool:
    section, dot, _ = word.lstrip("+~").partition("=")[0].partition(".")
    return bool(dot) and "=" in word and section in _TOP_LEVEL_KEYS


def _is_key_option(word: str) -> bool:
    """True when a word is `--key` or `--key=value` with a key of the configuration: dotted, or at its top level."""
    if not word.startswith("--"):
        return False
    key = word[2:].partition("=")[0]
    return "." in key or key in _TOP_LEVEL_KEYS


def _is_no_value(word: str) -> bool:
    """True when a word that follows `--key` begins something else: another option or an override."""
    if word.startswith("-"):
        return not _NEGATIVE_NUMBER.match(word)
    key = word.partition("=")[0]
    return bool(_ASSIGNMENT.match(word)) and key.split(".")[0] in _TOP_LEVEL_KEYS
