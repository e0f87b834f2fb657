"""Interpolate the weights of a model before and after fine-tuning (WiSE-FT), and choose the best.

BEFORE is a run, a config of a pretrained pair such as clip (with its keys), or the id or folder of a pair; AFTER a run
that was fine-tuned from it. The weights are interpolated linearly: alpha 0 is BEFORE, 1 is AFTER, and both are always
measured. Every alpha is evaluated on AFTER's validation data and on --old-data, by classification where there are
labels and else by R@1; the best on the validation data among those that keep --keep of BEFORE's score on the old data
is chosen, without old data simply the best. AFTER's test data are reported for both ends and the chosen one. A table is
printed, and interpolation.json, .csv and .png are written; with --out the chosen weights beside them, as a run like any
other. Old data are read with the columns of BEFORE, and may have keys of their own: dataset.caption_column=text, and so
on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.named import config_of, is_config
from impresa.cli.new_folder import command_line, new_folder
from impresa.cli.options import add_device, checked_device, count, fraction
from impresa.cli.other_data import open_data, reading_config
from impresa.cli.overrides import check_data_overrides
from impresa.config.experiment import PAIR, ExperimentConfig
from impresa.config.paths import expanded
from impresa.errors import ConfigError
from impresa.foreign_text import printable
from impresa.run_dir.layout import CONFIG

if TYPE_CHECKING:
    from impresa.interpolation.curve import Curve
    from impresa.interpolation.measure import Data
    from impresa.tasks.alignment.embedder import EmbeddingModel

_MOST_ALPHAS = 101
_AND_SO_ON = "..."


def alphas_of(text: str) -> list[float]:
    """The numbers of a list like `0,0.1,...,1`, with 0 and 1, in order."""
    fault = argparse.ArgumentTypeError(f"{text} is no list of numbers from 0 to 1, like 0,0.5,1 or 0,0.1,...,1")
    found: list[float] = []
    words = [word.strip() for word in text.split(",")]
    for place, word in enumerate(words):
        try:
            if word == _AND_SO_ON:
                step, end = found[-1] - found[-2], float(words[place + 1])
                if not step > 0 or not 0 <= end <= 1 or end - found[-1] > _MOST_ALPHAS * step:
                    raise fault
                number = math.floor((end - found[-1]) / step + 1e-6)
                found += [found[-1] + step * i for i in range(1, number + 1)]
            else:
                found.append(float(word))
        except (ValueError, IndexError):
            raise fault from None
    if not all(0 <= alpha <= 1 for alpha in found):
        raise fault
    alphas = sorted({0.0, 1.0, *(round(alpha, 6) for alpha in found)})
    if len(alphas) > _MOST_ALPHAS:
        raise argparse.ArgumentTypeError(f"{text} has {len(alphas)} numbers, each of which is evaluated; at most 101")
    return alphas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "before", metavar="BEFORE", help="a run, a config of a pretrained pair, or a pair's id or folder"
    )
    parser.add_argument("after", type=Path, metavar="AFTER", help="the run that was fine-tuned from it")
    what = "weights of AFTER, from 0 to 1 (default: 0,0.1,...,1)"
    parser.add_argument("--alpha", type=alphas_of, metavar="LIST", default="0,0.1,...,1", help=what)
    parser.add_argument(
        "--old-data", metavar="PATH", help="data that BEFORE already does well on: a folder, a table, or shapes"
    )
    what = "share of BEFORE's score on the old data to keep (default: %(default)s)"
    parser.add_argument("--keep", type=fraction, metavar="X", default=0.95, help=what)
    what = "write the chosen weights as a run (default: only the curve, in interpolations/NAME/DATE-TIME)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=what)
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or texts at a time (default: that of evaluations)"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Measure, print and write; the last line on standard output is the folder."""
    from impresa.config.runs import check_embeds, read_run

    check_embeds(args.after, read_run("AFTER", str(args.after)))
    if overrides and not is_config(Path(args.before)):
        if not args.old_data:
            raise ConfigError(f"{overrides[0]}: is for --old-data; name them, or leave it out")
        check_data_overrides(overrides)
    from impresa.interpolation.measure import Mixture, measure
    from impresa.interpolation.write import check_folder, write_curve, write_run
    from impresa.run_dir.load import load_embedder

    if args.out is not None:
        check_folder(args.out)
    device, names = checked_device(args.device), (args.before, str(args.after))
    after = load_embedder(args.after, device)
    before = _opened(args.before, overrides, after.config, device)
    old = _old_data(args, overrides, before, after.config)
    mixture = Mixture(before, after, names, after.device)
    del before, after  # their weights are in the mixture
    curve = measure(mixture, args.alpha, old, names=names, keep=args.keep, batch_size=args.batch_size, track=_track)
    if args.out is None:
        folder = new_folder("interpolations", mixture.config.name)
        write_curve(curve, folder)
    else:
        folder = args.out
        write_run(mixture, curve, folder, command=command_line(), batch_size=args.batch_size)
    _print(curve, mixture.line.note, folder, as_json=args.json)


def _opened(name: str, overrides: Sequence[str], after: ExperimentConfig, device: str | None) -> EmbeddingModel:
    """The model before: of a run, of a config, or of a pair that takes the place of AFTER's towers."""
    from impresa.run_dir.load import load_embedder
    from impresa.tasks.alignment.untrained import untrained

    if is_config(Path(name)):
        return untrained(config_of(Path(name), overrides), device)
    if (expanded(name) / CONFIG).is_file():
        return load_embedder(name, device)
    origin = {"backbone": name, "checkpoint": None, "lora": None}
    pair = {part: replace(getattr(after, part), **origin) for part in PAIR}
    return untrained(replace(after, **pair), device)


def _old_data(
    args: argparse.Namespace, overrides: Sequence[str], before: EmbeddingModel, after: ExperimentConfig
) -> Data | None:
    if not args.old_data:
        return None
    from impresa.data.sources import reading_of
    from impresa.interpolation.measure import Data

    keys = [] if is_config(Path(args.before)) else overrides  # those of a config are in it
    dataset = reading_config(before.config, args.old_data, keys).dataset
    source, name = open_data(dataset, args.old_data, "test", reading_of(after, labels=True))
    return Data(after, dataset, source, name)


def _track(alphas: Iterable[float]) -> Iterable[float]:
    from rich.console import Console
    from rich.progress import track

    return track(alphas, "alphas", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _print(curve: Curve, note: str, folder: Path, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from impresa.reports.terminal import print_table

    print(printable(note), file=sys.stderr)
    if as_json:
        print(curve.to_json(), end="")
        return
    console = Console()
    chosen = f"{curve.chosen.alpha:g}"
    print_table(console, curve.table(), bold=chosen)
    console.print(Text(printable(f"alpha {chosen} is {curve.rule}")), soft_wrap=True)
    print(printable(str(folder)))
