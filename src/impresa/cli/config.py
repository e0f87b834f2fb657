"""Show a config as it will be run, list the shipped ones, or print the JSON schema of the YAML files."""

from __future__ import annotations

import argparse
import json
import re
import sys

from impresa.cli.overrides import add_config_name, config_name
from impresa.config.memory_vlm import ENGINE, SCHEMAS
from impresa.errors import ConfigError
from impresa.foreign_text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|list|schema")
    show = actions.add_parser(
        "show", help="print the experiment that results from NAME and the overrides", allow_abbrev=False
    )
    add_config_name(show)
    show.add_argument("--json", action="store_true", help="JSON instead of YAML")
    show.add_argument("--raw", action="store_true", help="the composed tree in its own dialect, before translation")
    actions.add_parser("list", help="print the names of the shipped configs and what they are for", allow_abbrev=False)
    schema = actions.add_parser("schema", help="print the JSON schema of the YAML files", allow_abbrev=False)
    schema.add_argument("--dialect", choices=list(SCHEMAS), default=ENGINE, help="default: %(default)s")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    if args.action == "show":
        _show(args, overrides)
    elif overrides:
        raise ConfigError(f"{overrides[0]}: impresa config {args.action} takes no overrides; leave it out")
    elif args.action == "list":
        _list()
    else:
        from impresa.config.reference import json_schema

        print(json.dumps(json_schema(args.dialect), indent=2))


def _show(args: argparse.Namespace, overrides: list[str]) -> None:
    from impresa.cli.chosen import is_own, load_or_choose
    from impresa.config.compose import load_tree, to_yaml
    from impresa.config.runs import shown_tree

    name = config_name(args)
    shown, lines = shown_tree(load_or_choose(name, overrides))  # with --raw as well, so that faults are refused
    if args.raw and not is_own(name):  # what it chose has no other form
        shown = load_tree(name, overrides)
    else:
        print(*(f"{printable(line)}\n" for line in lines), sep="", end="", file=sys.stderr)
    print(json.dumps(shown, indent=2) if args.json else printable(to_yaml(shown).rstrip(), lines=True))


def _list() -> None:
    from impresa.config.paths import shipped_folder, shipped_names

    names = shipped_names()
    width = max(map(len, names))
    for name in names:
        text = (shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        _command, description, *_ = re.findall(r"^# (?!yaml-language-server)(.*)$", text, flags=re.MULTILINE)
        print(printable(f"{name:<{width}}  {description}"))
