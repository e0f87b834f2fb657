"""Examine this machine before a training: versions, devices, whether processes reach each other, disk and data.

With a config its data are opened and its devices looked for. Exit code 1 where a training would fail; what is only
slow does not count.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from impresa.foreign_text import json_text, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a shipped config or the path of a YAML file")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are written")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Print each finding; returns 1 where one is a fault."""
    from impresa.cli.chosen import load_or_choose
    from impresa.training.doctor import examine

    config = load_or_choose(args.name, overrides) if args.name or overrides else None
    findings = []
    for finding in examine(config, args.output_dir):
        findings.append(finding)
        if not args.json:
            print(printable(f"{finding.state:<6}{finding.name + ':':<14} {finding.text}"), flush=True)
    is_well = all(finding.state != "fault" for finding in findings)
    if args.json:
        print(json_text({"ok": is_well, "findings": [asdict(finding) for finding in findings]}))
    return 0 if is_well else 1
