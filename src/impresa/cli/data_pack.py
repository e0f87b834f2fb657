"""`impresa data pack`: any data as shards or parquet, in parts that share no equal or near-equal image."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.named import config_of, is_config
from impresa.cli.options import count_or_zero, pixels
from impresa.cli.overrides import check_data_overrides
from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import EMBEDDED, expanded
from impresa.errors import ConfigError
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.data.packing.pack import Packed

Track = Callable[[Iterable[int], str], Iterable[int]]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:I?B)?", re.IGNORECASE)
_LEAST_BYTES = 1 << 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write any data as tar shards or parquet. Keys of `dataset` say how they are read."
    what = "whatever dataset.train_path takes, or a config, whose dataset.train_path it is"
    parser.add_argument("data", metavar="ANY", help=what)
    what = "a new folder: train/, val/ and test/ in it, manifest.json, and duplicates/"
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help=what)
    parser.add_argument(
        "--format", choices=("webdataset", "parquet"), default="webdataset", help="default: %(default)s"
    )
    what = "parts for train, val and test (default: 0.9,0.05,0.05)"
    parser.add_argument("--split", metavar="A,B,C", type=_fractions, default=(0.9, 0.05, 0.05), help=what)
    what = "most bytes of a file, such as 64MB (default: 256MB)"
    parser.add_argument("--shard-size", metavar="SIZE", type=_num_bytes, default=256 << 20, help=what)
    parser.add_argument("--seed", metavar="N", type=count_or_zero, default=0, help="of the division (default: 0)")
    what = "side of the pictures that are drawn, for shapes (default: 64)"
    parser.add_argument("--image-size", metavar="PX", type=pixels, help=what)
    parser.add_argument("--force", action="store_true", help="replace an earlier pack in DIR")


def run(args: argparse.Namespace, overrides: list[str], track: Track) -> None:
    """Pack, and print what was written."""
    config, path = _source(args, overrides)
    out = expanded(str(args.out))
    from impresa.data.packing.pack import MANIFEST, PackPlan, check_target, pack
    from impresa.data.packing.rows import open_rows

    check_target(out, force=args.force)
    data = expanded(path)
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"--out: {args.out} lies in the data themselves, which would be other data then; name another"
        )
    plan = PackPlan(path, args.format, args.split, args.seed, args.shard_size)
    done = pack(open_rows(config, path), config, out, plan, force=args.force, track=track)
    for line in _lines(done, args.out):
        print(printable(line))
    print(printable(str(args.out / MANIFEST)))


def _source(args: argparse.Namespace, overrides: list[str]) -> tuple[DatasetConfig, str]:
    name = Path(args.data)
    if args.data != EMBEDDED and not expanded(args.data).is_dir() and is_config(name):
        config = config_of(name, overrides).dataset
    else:
        from impresa.config.compose import with_overrides

        check_data_overrides(overrides)
        size = args.image_size or 64 if args.data == EMBEDDED else DatasetConfig.image_size
        plain = ExperimentConfig(dataset=DatasetConfig(train_path=args.data, image_size=size))
        config = with_overrides(plain, overrides).dataset
    if args.image_size:
        if config.train_path != EMBEDDED:
            raise ConfigError(f"--image-size: pictures of {config.train_path} stay as they are; leave it out")
        config = replace(config, image_size=args.image_size)
    return config, config.train_path


def _lines(done: Packed, out: Path) -> Iterable[str]:
    for part, number in done.num_packed.items():
        files = done.files[part]
        size = sum(files.values()) / (1 << 20)
        yield f"{out / part}: {number} samples in {len(files)} file{'s' * (len(files) > 1)}, {size:.1f} MiB"
    found = done.duplicates
    near, equal = found["pairs"]["near"], found["pairs"]["bytes"] + found["pairs"]["pixels"]
    if found["num_groups"]:
        alike = f"{found['num_images_in_groups']} images are equal or nearly so, in {found['num_groups']} groups"
        yield f"{alike} ({equal} equal pairs, {near} near-equal), each group in one part; duplicates/ has them"
    if unseen := found["num_left_out"]:
        yield f"{unseen} pairs were not compared, as too many images hash alike; near-equal ones may be apart"
    if done.bad:
        yield f"{sum(done.bad.values())} of {done.num_rows} rows are left out, bad_rows.jsonl names them:"
        yield from (f"  {reason}: {number}" for reason, number in done.bad.items())
    if done.left_out:
        yield f"no part of any row: {', '.join(f'{what} {number}' for what, number in done.left_out.items())}"


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    right = 1 <= len(values) <= 3 and all(0 <= value <= 1 for value in values) and math.isclose(sum(values), 1)
    if not right:
        raise argparse.ArgumentTypeError(f"{text} is not up to three parts for train, val and test that sum to 1")
    train, val, test = [*values, 0.0, 0.0][:3]
    return train, val, test


def _num_bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < _LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is no size from 1KB, such as 64MB")
    return size
