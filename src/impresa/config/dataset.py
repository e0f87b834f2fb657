"""The data of an experiment: where samples come from and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from impresa.config.augmentation import Augmentation, AugmentationOptions
from impresa.config.types import (
    Batch,
    Flag,
    FolderOrNull,
    Fraction,
    Gibibytes,
    Images,
    Mebibytes,
    Name,
    PixelCount,
    Pixels,
    Processes,
    ProcessesOrZero,
    Rate,
    Samples,
    Section,
    Seed,
    Text,
)

AudioAugmentation = Literal["none", "light", "strong"]
Resize = Literal["crop", "pad", "squash"]
"""How a picture that is no square becomes one."""
Source = Literal["auto", "shapes", "folder", "parquet", "webdataset", "hub"]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(Section):
    """Size and seed of the embedded procedural data set `shapes`."""

    num_train: Samples = 8192
    """Scenes in the training split."""
    num_val: Samples = 512
    """Scenes in the validation split (combinations seen in training, other scenes)."""
    num_test: Samples = 512
    """Scenes in the test split (combinations never trained on)."""
    seed: Seed = 0
    """Seed of the scenes; the same seed draws the same scenes on every machine."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section):
    """Where samples come from, how they are prepared and how they are grouped into batches."""

    source: Source = "auto"
    """Kind of data; `auto` goes by the path: `shapes`, parquet files, tar shards (`webdataset`), a data set of the
    `datasets` library (`hub`), or a folder of images with captions."""
    train_path: Name = "shapes"
    """Training data: a path, `shards/{0000..0099}.tar` or the like for shards, also at an address (`s3://`, `https://`),
    `hub://ORG/NAME@REVISION:CONFIG#SPLIT` for the Hugging Face hub, of which `hub://ORG/NAME` may be enough, or
    `shapes` for the embedded data set."""
    val_path: Text | None = None
    """Validation data. null: `shapes` has its own split; for other sources `val_fraction` of the training images."""
    test_path: Text | None = None
    """Data for the final evaluation. null: `shapes` has its own split; for other sources the validation data."""
    val_fraction: Fraction = 0.05
    """Fraction of the training images held out for validation when `val_path` is null; split by image, not by row."""
    image_root: Name | None = None
    """Folder that the images' paths in tables are relative to. null: the folder of the table."""
    skip_unsupported_rows: Flag = False
    """Leave out rows that are not supported (text only, or more images than `max_images`), and count them at the start.
    false: they are bad samples, which `max_bad_fraction` bounds."""
    image_column: Name = "image"
    """Column or key that holds the image: bytes or a path in parquet, a path in a folder's jsonl or csv; with a
    `decoder` also a list of them (`max_images`)."""
    caption_column: Name = "caption"
    """Column or key that holds the caption: a string or a list of strings, of which one is drawn for each epoch."""
    negative_column: Name | None = None
    """Column or key that holds hard negatives: a caption that is wrong for the image, or a list of them, of which one
    is drawn for each epoch. Every image of a training batch is contrasted with all of them, beside the other captions
    (image to text only), and a caption that is right for an image in the batch is not a negative of it. Validation has
    none. Rows may lack them. null reads none."""
    group_column: Name | None = None
    """Column or key whose equal values say that samples are variants of one thing, such as a drawing in other colours:
    an epoch of training draws one sample of each group, so that what has many variants does not outweigh the rest, and
    `val_fraction` never splits a group. A row that lacks it is its own group. null: no groups."""
    audio_column: Name = "audio"
    """Column or key that holds the sound, if there is one."""
    label_column: Name = "label"
    """Column or key that holds the class name or number, if there is one; it is used for zero-shot evaluation only."""
    class_names: tuple[Name, ...] | Name | None = None
    """Names of the classes, in the order of their numbers: a list, or the path of a file with one name per line or of a
    JSON file with a list of names or an object of names by label. null: labels are names, unless a parquet file has
    names in its schema (`ClassLabel` of the `datasets` library)."""
    question_column: Name = "question"
    """Column or key that holds a question about the image: a string or a list of strings."""
    answer_column: Name = "answer"
    """Column or key that holds the answer to it: text, a number or a boolean, or a list of several right answers; for a
    list of questions a list of the same length, of any of these."""
    kind_column: Name = "kind"
    """Column or key that holds the type of a question, if there is one; accuracy is reported by type."""
    max_images: Images = 1
    """Images that a question may be about: a row may have a list of up to this many, the decoder reads them one after
    the other, and learned embeddings of their index tell them apart. Rows with more are not read."""
    questions_per_image: Batch = 1
    """Questions per image in a training batch, drawn anew each epoch, the image encoded once; validation asks all."""
    prompt_templates: tuple[Name, ...] = ("a photo of a {}.",)
    """Prompts for zero-shot classification; `{}` is the class name. Their text embeddings are averaged per class."""
    batch_size: Batch = 256
    """Samples in a batch, per device; contrastive training needs two, over all processes if it gathers."""
    eval_batch_size: Batch | None = None
    """Samples in an evaluation batch: in validation the candidates that each of them is compared with, on any number of
    devices. null: `batch_size`; set it to compare the `val_loss` of runs that differ in that."""
    batch_by_length: Flag = False
    """Questions and answers of similar length share a training batch, so that less of it is padding: the samples of 50
    batches, or of a quarter of the epoch, are sorted, and the batches come in random order. An epoch still has each
    sample once. The length is that of the text in bytes; all texts are read once at the start."""
    image_size: Pixels = 224
    """Width and height in pixels of the square that the image encoder sees."""
    resize: Resize | Literal["auto"] = "auto"
    """How images become squares, in training, evaluation and use: `crop` (the centre square), `pad` (the whole image
    between bars of the mean colour), `squash` (the whole image, its aspect ratio ignored); `auto` is that of a
    pretrained tower's own preprocessing, and `crop` for a tower from scratch."""
    augmentation: Augmentation = "clip"
    """Training images: `none` (the square of `resize`), `clip` (random resized crop of 0.9 to 1.0 of the area; no flip,
    because captions say left and right), `strong` (small rotation, shear, zoom, shift and elastic bend, and random
    brightness and contrast). Validation images are never augmented."""
    augmentation_options: AugmentationOptions = field(default_factory=AugmentationOptions)
    audio_augmentation: AudioAugmentation = "none"
    """Training sounds: `none`, `light` (gain of up to 6 dB either way, time shift by up to 5% of the clip, up to 5%
    faster or slower, faint noise), `strong` (10 dB, 10%, 10%, more noise, and in the features two spans of time and two
    of frequency masked, each up to 15%). Validation sounds are never changed."""
    caption_dropout: Rate = 0.0
    """Probability of dropping each word of a training caption."""
    num_workers: ProcessesOrZero = 4
    """Processes that load data; 0 loads in the main process (and turns prefetching and persistent workers off)."""
    prefetch_factor: Processes = 2
    """Batches that each worker prepares ahead."""
    pin_memory: Flag = True
    """Copy batches into page-locked memory for a faster transfer to a GPU."""
    persistent_workers: Flag = True
    """Keep the workers alive between epochs."""
    max_bad_fraction: Fraction = 0.01
    """Bad samples are skipped and listed in the run's `bad_samples.jsonl`; above this fraction the run stops."""
    max_image_pixels: PixelCount = 50_000_000
    """Images with more pixels are bad samples, checked before they are decoded; at most 178956970, which is Pillow's
    limit."""
    reduced_decode: Flag = False
    """Decode a training JPEG at a half, a quarter or an eighth of its size wherever that is not smaller than needed:
    faster, but pixels then differ a little. false: only where it is still at least twice as large, so that almost
    nothing differs. Validation images are always decoded whole."""
    max_file_mib: Mebibytes = 256
    """Images and sounds of more MiB are bad samples, checked before they are read."""
    allow_outside: Flag = False
    """Read images and sounds that a table names outside its data's folder (`../..`, absolute paths). false: such rows
    are bad samples. Links are followed in either case."""
    streaming: Flag = False
    """Read a data set of the hub from its parquet files as they are needed, each copied whole (`shard_cache_gib`), so
    that the first step need not wait for all of them: order and resuming are as for tar shards at an address. Other
    formats are refused. false: the `datasets` library prepares the whole data set first."""
    shard_cache_gib: Gibibytes = 64
    """Shards and parquet files from an address, and shards under gzip, are read from copies that take at most this much
    of the disk; the least recently used are removed. They are in `impresa/shards` of the user's cache folder
    (`XDG_CACHE_HOME`)."""
    cache_features: FolderOrNull = None
    """Folder in which outputs of a frozen image tower are kept, in half precision: each image is decoded and encoded
    once, before the first step, and never again while image, weights and preprocessing stay the same, in this run or
    another. Needs `augmentation` none. null keeps none."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
