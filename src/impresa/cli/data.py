"""Check data, fetch the pictures of a table, pack data as shards or parquet, or write the embedded ones to a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli import data_fetch, data_pack
from impresa.cli.options import count, count_or_zero, fraction, pixels
from impresa.cli.overrides import check_data_overrides
from impresa.config.dataset import DatasetConfig, ShapesConfig
from impresa.config.decoder import DecoderConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded
from impresa.errors import ConfigError, DataError
from impresa.foreign_text import json_text, printable

if TYPE_CHECKING:
    from rich.console import Console

    from impresa.data.check import Histogram, Look, SourceSummary, Spread
    from impresa.data.sources import Source

_COLUMNS = ("image", "caption", "audio", "label", "question", "answer", "kind")
_MOST_LABELS = 20
_MOST_COPIES = 10
_MOST_SECONDS = 600.0
"""Sounds are read up to this length."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|fetch|pack|export")
    _add_check(actions.add_parser("check", help="read all samples and list every bad one", allow_abbrev=False))
    what = "fetch the pictures of a table of URLs into tar shards"
    data_fetch.add_arguments(actions.add_parser("fetch", help=what, allow_abbrev=False))
    what = "write any data as shards or parquet, divided into train, val and test"
    data_pack.add_arguments(actions.add_parser("pack", help=what, allow_abbrev=False))
    _add_export(actions.add_parser("export", help="write the embedded data set to a folder", allow_abbrev=False))


def _add_check(parser: argparse.ArgumentParser) -> None:
    defaults = DatasetConfig()
    parser.description = "Read all samples and list every bad one. Keys of `dataset` say how, as in training."
    parser.add_argument(
        "path", metavar="PATH", help="a folder, .parquet files, tar shards ('s/{0000..0099}.tar'), or shapes"
    )
    for name in _COLUMNS:
        key = f"{name}_column"
        what = f"short for dataset.{key} (default: {getattr(defaults, key)})"
        parser.add_argument(f"--{name}-column", metavar="NAME", help=what)
    parser.add_argument("--questions", action="store_true", help="read questions too, as for a config with a decoder")
    parser.add_argument("--audio", action="store_true", help="read sounds too, as for a config with an audio_encoder")
    what = f"short for dataset.max_bad_fraction (default: {defaults.max_bad_fraction})"
    parser.add_argument("--max-bad-fraction", metavar="X", type=fraction, help=what)
    parser.add_argument("--val", metavar="PATH", help="validation data: are they free of images of PATH?")
    parser.add_argument("--test", metavar="PATH", help="the same for test data")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--html", metavar="PAGE", type=Path, help="write everything to one HTML page as well")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="write some pictures with their captions as PNG")


def _add_export(parser: argparse.ArgumentParser) -> None:
    defaults = ShapesConfig()
    parser.add_argument("name", choices=("shapes",), help="the embedded data set")
    parser.add_argument("folder", metavar="DIR", type=Path, help="splits are written to DIR/train, DIR/val, DIR/test")
    for split in ("train", "val", "test"):
        size = getattr(defaults, f"num_{split}")
        parser.add_argument(f"--num-{split}", metavar="N", type=count, default=size, help=f"default: {size}")
    parser.add_argument("--image-size", metavar="PX", type=pixels, default=64, help="default: %(default)s")
    parser.add_argument("--seed", metavar="N", type=count_or_zero, default=defaults.seed, help="default: %(default)s")
    parser.add_argument("--format", choices=("folder", "parquet"), default="folder", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace the splits of a folder that is not empty")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Check, fetch, pack or export."""
    if args.action == "check":
        _check(args, overrides)
    elif args.action == "pack":
        data_pack.run(args, overrides, _track)
    elif overrides:
        raise ConfigError(f"{overrides[0]}: impresa data {args.action} takes no keys, only options; leave it out")
    elif args.action == "fetch":
        data_fetch.run(args)
    else:
        _export(args)


def _config_of_check(args: argparse.Namespace, overrides: list[str]) -> ExperimentConfig:
    """An experiment that reads the data as the command line says; its model is none that anybody asked for."""
    from impresa.config.compose import with_overrides

    check_data_overrides(overrides)
    keys = (*(f"{name}_column" for name in _COLUMNS), "max_bad_fraction")
    given = [f"dataset.{key}={value}" for key in keys if (value := getattr(args, key)) is not None]
    config = ExperimentConfig(
        dataset=DatasetConfig(train_path=args.path),
        audio_encoder=EncoderConfig(backbone="spectrogram", audio_max_seconds=_MOST_SECONDS) if args.audio else None,
        decoder=DecoderConfig(type="trm") if args.questions else None,
    )
    return with_overrides(config, [*given, *overrides])


def _check(args: argparse.Namespace, overrides: list[str]) -> None:
    config = _config_of_check(args, overrides)
    from impresa.data.check import look_at
    from impresa.data.fetch.summary import missing_rows
    from impresa.reports.verdict import crop_warning

    _check_targets(args)
    source = _opened(args, config)
    look = look_at(source, lambda indices: _track(indices, "reading"))
    summary = look.summary
    missing = missing_rows(expanded(args.path))  # in text a warning has said so
    notes = _notes(config, source)
    pictures = crop_warning(summary.share_cut)
    if args.json:
        print(json_text({**summary.to_dict(), "notes": [*([missing] if missing else []), *pictures, *notes]}))
    else:
        _print(args.path, summary, pictures, notes)
    _write(args, look, source, [*pictures, *notes])
    if summary.num_good == 0:
        raise DataError(f"{args.path}: none of {summary.num_samples} samples can be used; fix those listed above")
    if summary.bad_fraction > config.dataset.max_bad_fraction:
        part = f"{len(summary.bad)} of {summary.num_samples} samples cannot be used"
        raise DataError(f"{args.path}: {part}; fix those listed above, or raise dataset.max_bad_fraction")


def _opened(args: argparse.Namespace, config: ExperimentConfig) -> Source:
    """The data; with validation or test data beside them all as one, each under its name."""
    from impresa.data.sources import open_path, reading_of
    from impresa.data.sources.joined import Joined

    reading = reading_of(config, labels=True)
    paths = {"train": args.path, "val": args.val, "test": args.test}
    sources = {name: open_path(config.dataset, path, reading) for name, path in paths.items() if path is not None}
    return Joined(sources) if len(sources) > 1 else sources["train"]


def _check_targets(args: argparse.Namespace) -> None:
    """Refuse, before anything is read, files that cannot be written."""
    for option in ("html", "sheet"):
        path: Path | None = getattr(args, option)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"--{option}: {path} cannot be written; name a file in a folder that is there")


def _write(args: argparse.Namespace, look: Look, source: Source, notes: list[str]) -> None:
    """The page and the contact sheet, where they are asked for."""
    from impresa.files import replacing, write_atomic
    from impresa.reports.data_check import contact_sheet, data_page, samples_to_show

    if args.html is not None:
        page = data_page(args.path, look, source, notes, list(_summary_rows(look.summary)))
        write_atomic(args.html, page.encode("utf-8", "replace"))
    if args.sheet is not None:
        with replacing(args.sheet) as temporary:
            contact_sheet(samples_to_show(source)).save(temporary, "PNG")


def _notes(config: ExperimentConfig, source: Source) -> list[str]:
    """Notes on texts too long for a model of default size, by a tokenizer that is trained on the same texts."""
    from impresa.data.chat import prepare_chat
    from impresa.data.lengths import MOST_TEXTS, notes_on_captions, notes_on_dialogues
    from impresa.data.preprocessing import prepare_tokenizer

    if config.decoder is None:
        captions = list(islice(source.captions(), MOST_TEXTS))
        return list(notes_on_captions(captions, prepare_tokenizer(config, captions)))
    dialogues = list(islice(source.dialogues(), MOST_TEXTS))
    return list(notes_on_dialogues(dialogues, prepare_chat(config.decoder, dialogues), config.decoder.max_len))


def _export(args: argparse.Namespace) -> None:
    from impresa.data.export import export_shapes

    size, kind = args.image_size, args.format
    config = ShapesConfig(num_train=args.num_train, num_val=args.num_val, num_test=args.num_test, seed=args.seed)
    folders = export_shapes(config, args.folder, image_size_px=size, file_format=kind, force=args.force, track=_track)
    for split, folder in folders.items():
        print(f"{folder}: {getattr(config, f'num_{split}')} images of {size} x {size} pixels")


def _print(path: str, summary: SourceSummary, pictures: list[str], notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    table = Table(title=path, show_header=False, title_justify="left")
    for row in _summary_rows(summary):
        table.add_row(*row)
    console.print(table)
    _print_list(console, "classes", [f"{label}: {count}" for label, count in summary.labels.items()], _MOST_LABELS)
    _print_list(console, "questions", [f"{kind}: {count}" for kind, count in summary.kinds.items()], _MOST_LABELS)
    _print_list(console, "equal images", [", ".join(ids) for ids in summary.same_image], _MOST_COPIES)
    _print_list(console, "near-equal images", [", ".join(ids) for ids in summary.near_images], _MOST_COPIES)
    for overlap in summary.overlaps:
        title = f"shared by {' and '.join(overlap.splits)}: {overlap.num_equal} equal, {overlap.num_near} near-equal"
        _print_list(console, title, [", ".join(pair) for pair in overlap.examples], _MOST_COPIES)
    _print_list(console, "widths", _bars(summary.widths_px, "px"), _MOST_LABELS)
    _print_list(console, "heights", _bars(summary.heights_px, "px"), _MOST_LABELS)
    _print_list(console, "caption lengths", _bars(summary.captions_words, "words"), _MOST_LABELS)
    _print_list(
        console, "duplicate ids", [f"{id}: {count} samples" for id, count in summary.same_id.items()], _MOST_COPIES
    )
    _print_list(console, "pictures", pictures, len(pictures))
    _print_list(console, "texts", notes, len(notes))
    _print_list(console, "bad samples by reason", [f"{why}: {n}" for why, n in summary.reasons.items()], _MOST_LABELS)
    _print_list(console, "bad samples", [f"{row.id}: {row.reason}" for row in summary.bad], len(summary.bad))


def _summary_rows(summary: SourceSummary) -> Iterable[tuple[str, str]]:
    yield "samples", f"{summary.num_samples}"
    if summary.splits:
        yield "splits", ", ".join(f"{name} {number}" for name, number in summary.splits.items())
    yield "usable", f"{summary.num_good}"
    yield "bad", f"{len(summary.bad)} ({summary.bad_fraction:.1%})"
    if summary.left_out:
        yield "left out", ", ".join(f"{kind} {number}" for kind, number in summary.left_out.items())
    yield "width", _spread(summary.width_px, "px")
    yield "height", _spread(summary.height_px, "px")
    yield "captions", f"{summary.num_captions}, {summary.num_distinct_captions} distinct"
    yield "caption length", _spread(summary.caption_words, "words")
    if summary.sound_ms is not None:
        yield "sounds", f"{summary.num_sounds}"
        yield "sound length", _spread(summary.sound_ms, "ms")
    if summary.num_dialogues:
        yield "dialogues", f"{summary.num_dialogues}"
        yield "answer length", _spread(summary.answer_words, "words")
        yield "turns left out", f"{summary.num_dropped_turns}"
    yield "classes", f"{len(summary.labels)}"
    yield "equal images", f"{sum(map(len, summary.same_image))}"
    if summary.near_images:
        yield "near-equal images", f"{sum(map(len, summary.near_images))}"
    if unseen := summary.duplicates["num_left_out"]:
        yield "not compared", f"{unseen} pairs, as too many images hash alike"
    yield "duplicate ids", f"{sum(summary.same_id.values())}"


def _spread(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.smallest} to {spread.largest} {unit}, median {spread.median:g}"


def _bars(values: Histogram | None, unit: str) -> list[str]:
    """A histogram as lines; none where all values are the same."""
    if values is None or len(values.counts) < 2:
        return []
    ends = [values.start + values.width * k for k in range(len(values.counts) + 1)]
    width, most = len(str(ends[-1])), max(values.counts)
    names = (
        f"{low:>{width}}" if values.width == 1 else f"{low:>{width}} to {high - 1:>{width}}"
        for low, high in pairwise(ends)
    )
    rows = zip(names, values.counts, strict=True)
    return [f"{name} {unit} {'#' * round(30 * count / most)} {count}" for name, count in rows]


def _print_list(console: Console, title: str, lines: list[str], most: int) -> None:
    if lines:
        rest = [f"and {len(lines) - most} more; --json has them all"] if len(lines) > most else []
        console.print("\n  ".join([f"\n{title}", *map(printable, lines[:most]), *rest]))


def _track(indices: Iterable[int], what: str) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(indices, what, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
