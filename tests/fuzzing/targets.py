"""What is fuzzed: files of data as a source reads them, and every file of a run as its users open it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import torch
from PIL import Image

import impresa
from forged_runs import forge
from fuzzing.mutations import Mutate, mutation_of
from impresa.config.dataset import DatasetConfig
from impresa.data.chat import prepare_chat
from impresa.data.fetch.content import picture_of
from impresa.data.fetch.failure import Failure
from impresa.data.fetch.table import open_addresses
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.shards.places import INDEX_SUFFIX
from impresa.data.sources import BadSample, Reading, Source, open_path
from impresa.data.sources.base import IMAGES_AND_CAPTIONS
from impresa.errors import DataError, ImpresaError
from impresa.reports.html import render_report
from impresa.run_dir.environment import describe_environment, now, write_environment
from impresa.run_dir.load import read_run_config
from impresa.run_dir.save import save_run
from impresa.tasks.answering.build import build_vlm
from impresa.training.run import train
from pictures import photo, png
from saved_on_disk import arrow, save_splits
from saved_on_disk import numbered as saved_rows
from shards_on_disk import tar
from sounds_on_disk import sine
from tiny_hub import clip
from tiny_qwen import save_qwen
from tiny_vlm import tiny_qwen_vlm

COLUMNS = DatasetConfig(max_bad_fraction=1.0)
SOUNDS = Reading(audio_seconds=2.0)
DIALOGUES = Reading(dialogues=True)
REPORTED = (
    "config.yaml",
    "environment.json",
    "evaluation.json",
    "gallery.json",
    "metrics.csv",
    "bad_samples.jsonl",
    "cost.json",
)
"""Files of a run that its report is made from."""
BAD_SAMPLES = """{"split": "train", "id": "a.png", "reason": "cannot be decoded"}
{"split": "val", "id": "b.png", "reason": "the caption is empty"}
"""


@dataclass(frozen=True)
class Target:
    """One file, how it is damaged, and what a user does with it."""

    name: str
    content: bytes
    use: Callable[[bytes], None]
    """Opens the damaged file as a user would; `ImpresaError` is a fine answer, anything else is a find."""
    mutate: Mutate
    share: float = 1.0
    """Of the mutations that others get; smaller where one takes long."""


def data_targets(folder: Path) -> Iterator[Target]:
    """Pictures, sounds, texts and tables in a folder of data, and what describes them."""
    for kind, picture in pictures().items():
        yield _file(folder / kind, f"a.{kind}", picture, beside={"a.txt": b"a caption"})
    for kind in ("wav", "flac", "ogg", "mp3"):
        yield _file(folder / kind, f"a.{kind}", sound(kind), SOUNDS, beside={"a.txt": b"a caption"})
    for name, text in texts().items():
        reading, beside = DIALOGUES if name == "train.json" else Reading(), {f"{n}.png": png(n) for n in range(8)}
        yield _file(folder / "texts" / name, name, text, reading, beside)
    for name, table in tables(folder / "table").items():
        yield _file(folder / "table" / Path(name).stem, name, table, DIALOGUES if "asked" in name else Reading())
    yield index_of_shard(folder / "index")
    yield from saved(folder / "saved")


def pictures() -> dict[str, bytes]:
    found = {}
    for kind in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "ppm", "avif"):
        file = io.BytesIO()
        image = photo(61, 47).quantize(16) if kind == "gif" else photo(61, 47)
        image.save(file, kind)
        found[kind] = file.getvalue()
    return found


def sound(kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(sine(440, 0.2)), 16_000, format=kind.upper())
    return file.getvalue()


def texts() -> dict[str, bytes]:
    """Captions beside pictures `0.png` to `7.png`, in the forms of several data sets."""
    conversation = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "this"}]
    return {
        "0.txt": "a caption\nanother one, größer\n".encode(),
        "0.json": json.dumps({"caption": ["a caption", "another one"]}).encode(),
        "captions.txt": b"image,caption\n" + b"".join(b"%d.png,a picture %d\n" % (n, n) for n in range(8)),
        "flickr.token": b"".join(b"%d.png#0\ta picture %d\n" % (n, n) for n in range(8)),
        "metadata.tsv": b"image\tcaption\n" + b"".join(b"%d.png\ta picture %d\n" % (n, n) for n in range(8)),
        "train.json": json.dumps([{"image": f"{n}.png", "conversations": conversation} for n in range(8)]).encode(),
    }


def tables(folder: Path) -> dict[str, bytes]:
    """The same rows in each form, with pictures beside them, or in them for parquet."""
    rows = [{"image": f"{i}.png", "caption": f"a picture {i}", "label": str(i % 3)} for i in range(8)]
    asked = [{"image": f"{i}.png", "question": "what?", "answer": "this"} for i in range(8)]
    for name in ("rows", "lines", "asked", "cells"):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            (folder / name / f"{i}.png").write_bytes(png(i))
    table, file = (
        pyarrow.Table.from_pylist([{**row, "image": {"bytes": png(i), "path": None}} for i, row in enumerate(rows)]),
        io.BytesIO(),
    )
    pyarrow.parquet.write_table(table, file, row_group_size=3)
    shard = {
        "a" * (120 * (i == 2)) + str(i): {"png": png(i), "txt": b"a", "json": json.dumps(row).encode()}
        for i, row in enumerate(rows)
    }
    csv = "image,caption,label\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    return {
        "rows.parquet": file.getvalue(),
        "shard.tar": tar(shard, format=tarfile.GNU_FORMAT),
        "packed.tar.gz": gzip.compress(tar(shard, format=tarfile.PAX_FORMAT)),
        "lines.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "asked.jsonl": "".join(json.dumps(row) + "\n" for row in asked).encode(),
        "cells.csv": csv.encode(),
    }


def _file(
    folder: Path,
    name: str,
    content: bytes,
    reading: Reading = IMAGES_AND_CAPTIONS,
    beside: Mapping[str, bytes] | None = None,
) -> Target:
    """A file that is data by itself, or lies beside others in a folder that is."""
    folder.mkdir(parents=True, exist_ok=True)
    for other, whole in (beside or {}).items():
        (folder / other).write_bytes(whole)
    path = folder / name

    def use(damaged: bytes) -> None:
        path.write_bytes(damaged)
        as_fetched(path)
        os.environ["XDG_CACHE_HOME"] = str(folder.parent / f"cache-{name}")  # of this process alone
        read_all(open_path(COLUMNS, str(folder if beside else path), reading))

    return Target(name, content, use, mutation_of(path.suffix))


def as_fetched(path: Path) -> None:
    """What `impresa data fetch` makes of it: of a file that a server has sent, or of a table of addresses."""
    with suppress(Failure, DataError):
        if path.suffix in (".parquet", ".jsonl", ".csv", ".tsv"):
            list(open_addresses(str(path), url_column="image").rows())
        else:
            picture_of(path.read_bytes(), 1 << 20)


def read_all(source: Source) -> None:
    """Every sample is there or is named with its reason, in one line."""
    for _ in (*source.captions(), *source.dialogues()):
        pass
    for index in range(len(source)):
        try:
            source[index]
        except BadSample as fault:
            if not (fault.id and fault.reason and len(str(fault).splitlines()) == 1):
                raise ValueError(f"it is no name with a reason in one line: {fault!s:.100}") from fault


def saved(folder: Path) -> Iterator[Target]:
    """The files of `save_to_disk`."""
    whole = save_splits(folder, train=[arrow(saved_rows(0, 8)), arrow(saved_rows(8, 3))])
    for name in ("train/data-00000-of-00002.arrow", "train/state.json", "dataset_dict.json"):
        content = (folder / name).read_bytes()

        def use(damaged: bytes, name: str = name, content: bytes = content) -> None:
            (whole / name).write_bytes(damaged)
            try:
                read_all(open_path(COLUMNS, str(whole)))
            finally:
                (whole / name).write_bytes(content)

        yield Target(f"saved/{name}", content, use, mutation_of(Path(name).suffix))


def index_of_shard(folder: Path) -> Target:
    """The index beside a shard, with the right size and time in it, as a stranger may give it along."""
    folder.mkdir(parents=True)
    shard = folder / "a.tar"
    shard.write_bytes(tar({str(i): {"png": png(i), "txt": b"a"} for i in range(8)}))
    open_path(COLUMNS, str(shard))
    beside = folder / f"a.tar{INDEX_SUFFIX}"

    def use(damaged: bytes) -> None:
        beside.write_bytes(damaged)
        read_all(open_path(COLUMNS, str(shard)))

    return Target("a.tar" + INDEX_SUFFIX, beside.read_bytes(), use, mutation_of(""))


def run_targets(name: str, run_dir: Path, folder: Path) -> Iterator[Target]:
    """Every file of a finished run, damaged and with a manifest that agrees, and the last checkpoint of an unfinished
    one."""
    drawn, own = folder / f"{name}-drawn", folder / name
    shutil.copytree(run_dir, drawn)
    (drawn / "bad_samples.jsonl").write_text(BAD_SAMPLES)
    shutil.copytree(drawn, own)
    (own / "metrics.csv").unlink(missing_ok=True)  # charts take longer than all else
    for path in sorted(drawn.rglob("*")):
        relative = path.relative_to(drawn)
        if path.is_file() and path.suffix not in {".ckpt", ".html", ".md"} and relative.parts[0] != "events":
            use = _use_of_run(drawn if path.name == "metrics.csv" else own, relative)
            yield Target(f"{name}/{relative}", path.read_bytes(), use, mutation_of(path.suffix))
    unfinished = folder / f"{name}-unfinished"
    shutil.copytree(run_dir, unfinished)
    (unfinished / "manifest.json").unlink()
    environment = json.loads((unfinished / "environment.json").read_text())
    del environment["finished"]
    (unfinished / "environment.json").write_text(json.dumps(environment))
    checkpoint = unfinished / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        yield _resumed(name, unfinished, checkpoint)


def pretrained_run(folder: Path) -> Path:
    """A run with a pretrained image tower and a frozen language model with adapters, both of which it describes."""
    tower = (f"vision_encoder.backbone={clip(folder / 'clip')}", "vision_encoder.dim=512", "vision_encoder.depth=12")
    tower += ("vision_encoder.num_heads=8", "vision_encoder.patch_size=16", "decoder.use_lora=true")
    config = tiny_qwen_vlm(save_qwen(folder / "qwen"), *tower)
    assert config.decoder is not None
    chat = prepare_chat(config.decoder, [])
    model = build_vlm(config, chat.vocab_size)
    save_run(folder / "run", model, config, Preprocessing(chat, ImageTransform(16)))
    write_environment(folder / "run", {**describe_environment(["impresa"], 0), "finished": now()})
    return folder / "run"


def _use_of_run(run_dir: Path, relative: Path) -> Callable[[bytes], None]:
    path = run_dir / relative
    whole = {name: (run_dir / name).read_bytes() for name in ("manifest.json", str(relative))}
    ways = (
        [_load]
        if path.name not in REPORTED
        else [_load, render_report]
        if relative == Path("config.yaml")
        else [render_report]
    )

    def use(damaged: bytes) -> None:
        try:
            path.write_bytes(damaged)
            if str(relative) in json.loads(whole["manifest.json"])["sha256"]:
                forge(run_dir, str(relative))
            for way in ways:
                try:
                    way(run_dir)
                except ImpresaError:
                    continue
        finally:
            for name, content in whole.items():
                (run_dir / name).write_bytes(content)

    return use


def _load(run_dir: Path) -> None:
    model, picture = impresa.load(run_dir, "cpu"), Image.new("RGB", (16, 16))
    if hasattr(model, "encode_image"):
        model.encode_image([picture])
        model.encode_text(["a"])
    else:
        model.ask(picture, "what?")


def _resumed(name: str, run_dir: Path, checkpoint: Path) -> Target:
    original = checkpoint.read_bytes()

    def use(damaged: bytes) -> None:
        with torch.random.fork_rng(devices=[]):
            checkpoint.write_bytes(damaged)
            for other in checkpoint.parent.glob("*.ckpt"):
                if other != checkpoint:
                    other.unlink()
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                train(read_run_config(run_dir), run_dir, command=["impresa"], resume=True)

    return Target(f"{name}/resumed/last.ckpt", original, use, mutation_of(".ckpt"), 0.1)
