"""Let a run with a decoder describe images, or sounds (--sound).

For one image the caption is printed, on a terminal as it is generated; for several a line each, `path: caption`.
"""

from __future__ import annotations

import argparse

from impresa.cli.answering import add_generation, add_run, add_subjects_and_output, answer
from impresa.data.dialogue import CAPTION_PROMPTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_subjects_and_output(parser)
    add_generation(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Describe and print."""
    answer(args, CAPTION_PROMPTS[0])
