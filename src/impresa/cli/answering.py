"""Options of the verbs that let a run answer, refusals before torch is imported, and the answering itself."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impresa.cli.options import add_device, checked_device, count, count_or_zero, fraction, non_negative
from impresa.config.describe import raise_faults
from impresa.data.text import printable
from impresa.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from impresa.config.experiment import GenerationConfig
    from impresa.tasks.answering.answerer import AnsweringModel


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run with a decoder")


def add_generation(parser: argparse.ArgumentParser, *, beams: bool = True) -> None:
    """Options that override `decoder.generation` of the run."""
    group = parser.add_argument_group("generation", "defaults are those of the run's config")
    group.add_argument("--max-new-tokens", type=count, metavar="N", help="longest answer in tokens")
    group.add_argument("--temperature", type=non_negative, metavar="X", help="of sampling; 0 takes the likeliest token")
    group.add_argument("--top-p", type=fraction, metavar="X", help="sample from the likeliest tokens of this share")
    if beams:
        group.add_argument("--beams", dest="num_beams", type=count, metavar="N", help="beams; 1 is no beam search")
    group.add_argument("--seed", type=count_or_zero, metavar="N", help="of sampling (default: another each time)")
    add_device(parser)


def add_images_and_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--batch-size", type=count, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a list of objects: image, question, answer")


def check_inputs(args: argparse.Namespace, images: Iterable[Path]) -> None:
    """Refuse runs without a decoder, impossible options and unreadable images, before torch is imported."""
    from impresa.config.runs import read_run

    decoder = read_run("RUN", str(args.run)).decoder
    if decoder is None:
        raise CheckpointError(f"{args.run}: is an alignment and answers nothing; train a run with a decoder on it")
    _check_generation(args, decoder.generation)
    for image in images:
        _check_image(image)


def load_model(args: argparse.Namespace) -> AnsweringModel:
    """The run's model, set to generate as the options say, and torch's generator seeded."""
    import torch

    from impresa.run_dir.load import load_answerer

    model = load_answerer(args.run, checked_device(args.device))
    # torch starts every process from the same seed.
    torch.manual_seed(torch.seed() if args.seed is None else args.seed)
    model.generation = replace(model.generation, **_given(args))
    return model


def answer(args: argparse.Namespace, question: str) -> None:
    """Print the answer to one question about each of the images."""
    check_inputs(args, args.images)
    model = load_model(args)
    if not args.json and len(args.images) == 1 and sys.stdout.isatty() and model.generation.num_beams == 1:
        print_pieces(model.stream(args.images[0], question))
        return
    answers = model.ask(args.images, question, batch_size=args.batch_size)
    names = [printable(str(image)) for image in args.images]
    if args.json:
        rows = zip(names, answers, strict=True)
        found = [{"image": name, "question": question, "answer": text} for name, text in rows]
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif len(answers) == 1:
        print(answers[0])
    else:
        for name, text in zip(names, answers, strict=True):
            print(f"{name}: {' '.join(text.split())}")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of generation that the options name."""
    names = ("max_new_tokens", "temperature", "top_p", "num_beams")
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _check_generation(args: argparse.Namespace, defaults: GenerationConfig) -> None:
    from impresa.config.rules import check_generation

    given = _given(args)
    generation = replace(defaults, **given)
    faults = (fault for fault in check_generation(generation) if fault.key in given)
    raise_faults(replace(fault, key=f"--{fault.key.replace('_', '-')}") for fault in faults)
    if args.seed is not None and generation.temperature == 0:
        print("--seed: changes nothing at temperature 0, which draws nothing", file=sys.stderr)


def print_pieces(pieces: Iterable[str]) -> str:
    """Print text as it comes and end the line; returns the whole."""
    text = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print(flush=True)
    return text


def _check_image(path: Path) -> None:
    from impresa.data.image_files import open_image

    try:
        with open_image(path):
            return
    except ValueError as error:
        raise DataError(f"{path}: {error}; give another image") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give the path of an image file") from error
