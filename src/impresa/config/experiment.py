"""The configuration that the engine reads: one frozen, fully typed tree, `ExperimentConfig`.

The other dialect, `MemoryVLMConfig`, is translated into this one. Reading or building a config imports neither torch
nor transformers. A tree from YAML is validated by `impresa.config.validate`, and so is one built in Python as soon as
it is trained or saved. Without a `decoder` an experiment is an alignment (contrastive training of the encoders); with
one it is a vision-language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from impresa.config.decoder import DecoderConfig, TowerLoraConfig
from impresa.config.types import (
    MAX_LOGIT_SCALE,
    Batch,
    CheckpointConfig,
    Count,
    CountOrZero,
    Depth,
    Flag,
    Float,
    Fraction,
    LoggingConfig,
    LogitScale,
    Mebibytes,
    MemoryConfig,
    Multiple,
    Name,
    NonNegative,
    PatchRate,
    PixelCount,
    Pixels,
    Positive,
    Processes,
    ProcessesOrZero,
    Rate,
    Samples,
    Seconds,
    Section,
    Seed,
    Temperature,
    Text,
    Tokens,
    Vocabulary,
    Width,
)

Modality = Literal["image", "text", "audio"]
Augmentation = Literal["none", "clip", "strong"]
AudioAugmentation = Literal["none", "light", "strong"]
Source = Literal["auto", "shapes", "folder", "parquet", "webdataset", "hub"]
LossType = Literal["clip", "siglip"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
OptimizerName = Literal["adamw", "adam", "sgd"]
SchedulerName = Literal["cosine", "linear", "constant", "const_cooldown"]
PoolingName = Literal["auto", "cls", "mean", "eot"]
Projection = Literal["mlp", "linear", "none", "auto"]
PairName = Literal["image-text", "image-audio", "text-audio", "image+audio-text"]
FUSED_PAIR: PairName = "image+audio-text"
"""The pair of the embedding that image and sound are fused into, and the caption."""
PAIR = ("vision_encoder", "text_encoder")
"""The towers that a pretrained pair has."""
FROM_SCRATCH: dict[Modality, tuple[str, ...]] = {
    "image": ("vit", "convnet"),
    "text": ("transformer",),
    "audio": ("spectrogram",),
}
"""The backbones of each modality that are trained from scratch, first the default; any other is a pretrained one."""
OURS = tuple(chain.from_iterable(FROM_SCRATCH.values()))
TRANSFORMERS = ("vit", "transformer", "spectrogram")
"""Those of ours that are blocks of attention and MLPs."""


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
    """Kind of data; `auto` goes by the path: `shapes`, parquet files, or a folder of images with captions."""
    train_path: Name = "shapes"
    """Training data: a path, or `shapes` for the embedded data set."""
    val_path: Text | None = None
    """Validation data. null: `shapes` has its own split; for other sources `val_fraction` of the training images."""
    test_path: Text | None = None
    """Data for the final evaluation. null: `shapes` has its own split; for other sources the validation data."""
    val_fraction: Fraction = 0.05
    """Part of the training images held out for validation when `val_path` is null; split by image, not by row."""
    image_root: Name | None = None
    """Folder that the images' paths in tables are relative to. null: the folder of the table."""
    skip_unsupported_rows: Flag = False
    """Leave out rows of kinds that are not read, text alone and several images, and count them at the start. false:
    they are bad samples, which `max_bad_fraction` bounds."""
    image_column: Name = "image"
    """Column or key that holds the image: bytes or a path in parquet, a path in a folder's jsonl or csv."""
    caption_column: Name = "caption"
    """Column or key that holds the caption: a string or a list of strings, of which one is drawn for each epoch."""
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
    """Column or key that holds the answer to it: a string, or a list as long as that of the questions."""
    kind_column: Name = "kind"
    """Column or key that holds the type of a question, if there is one; accuracy is reported by type."""
    questions_per_image: Batch = 1
    """Questions per image in a training batch, drawn anew each epoch, the image encoded once; validation asks all."""
    prompt_templates: tuple[Name, ...] = ("a photo of a {}.",)
    """Prompts for zero-shot classification; `{}` is the class name. Their text embeddings are averaged per class."""
    batch_size: Batch = 256
    """Samples in a batch, per device; contrastive training needs two, over all processes if it gathers."""
    eval_batch_size: Batch | None = None
    """Samples in an evaluation batch: in a validation the candidates that each of them is told from, on any number of
    devices. null: `batch_size`; set it to compare the `val_loss` of runs that differ in that."""
    image_size: Pixels = 224
    """Width and height in pixels of the square that the image encoder sees."""
    augmentation: Augmentation = "clip"
    """Training images: `none` (resize and centre crop), `clip` (random resized crop of 0.9 to 1.0 of the area; no flip,
    because captions say left and right), `strong` (rotated, sheared, zoomed, shifted and bent a little, with other
    brightness and contrast). Validation images are never augmented."""
    audio_augmentation: AudioAugmentation = "none"
    """Training sounds: `none`, `light` (louder or softer by up to 6 dB, moved by up to 5% of the clip, played up to 5%
    faster or slower, with a faint noise), `strong` (10 dB, 10%, 10%, more noise, and in the features two spans of time
    and two of pitch covered, each up to 15%). Validation sounds are never changed."""
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
    """Bad samples are skipped and listed in the run's `bad_samples.jsonl`; above this part the run stops."""
    max_image_pixels: PixelCount = 50_000_000
    """Images of more pixels are bad samples, before they are decoded; at most 178956970, which is Pillow's limit."""
    max_file_mib: Mebibytes = 256
    """Images and sounds of more MiB are bad samples, before they are read."""
    allow_outside: Flag = False
    """Read images and sounds that a table names outside its data's folder (`../..`, absolute paths). false: such rows
    are bad samples. Links are followed in either case."""
    cache_features: Flag = False
    """Keep the outputs of frozen towers on disk so that later epochs skip them."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """One tower. The same class serves image, text and audio; a field that a modality cannot use is refused for it."""

    backbone: Name = "vit"
    """From scratch: `vit` or `convnet`, a small residual network (image), `transformer` (text), `spectrogram` (audio).
    Anything else is a Hugging Face id, a local path or `timm:NAME`."""
    checkpoint: Text | None = None
    """A finished run of ours whose tower of this modality is loaded; it is frozen unless `freeze` is false."""
    freeze: Flag | None = None
    """Keep the backbone as it is: eval mode, no gradient, no optimizer state. null: frozen if from `checkpoint`."""
    unfreeze_last: CountOrZero = 0
    """Of a frozen tower so many blocks, counted from the last, are trained all the same, with `lr_pretrained`, and its
    head with them."""
    lora: TowerLoraConfig | None = None
    """Low-rank adapters in a pretrained backbone, which stays as it is. null for none; `{}` for the defaults."""
    embed_dim: Width = 512
    """Width of the pooled embedding; the same for all towers."""
    dim: Width = 512
    """Width of a from-scratch backbone; of a `convnet` that of its last stage, half of it for each stage before."""
    depth: Depth = 12
    """Blocks of a from-scratch backbone. A `convnet` has a stage for each halving, and shares its residual blocks among
    all but the first, evenly or with one more in the last ones."""
    num_heads: Width = 8
    """Attention heads of a from-scratch backbone."""
    mlp_ratio: Multiple = 4.0
    """Hidden width of a block's MLP as a multiple of the block's width."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Activation of the MLPs; `quick_gelu` only matters for parity with OpenAI's CLIP weights."""
    pre_norm: Flag = False
    """Image: a LayerNorm on the embeddings before the blocks, as CLIP has it."""
    patch_bias: Flag = True
    """Image: bias in the patch embedding (CLIP has none)."""
    stem: Literal["patch", "conv"] = "patch"
    """Image: how patches enter a `vit`: `patch` (a linear map of each), `conv` (convolutions that halve the image until
    a cell is a patch; they often learn faster from little data). Needs a `patch_size` that is a power of two."""
    drop_rate: Rate = 0.0
    """Dropout after the embeddings, on attention output and MLP."""
    attn_drop_rate: Rate = 0.0
    """Dropout on attention weights."""
    patch_dropout: PatchRate = 0.0
    """Image: share of an image's patches that a training step leaves out, drawn anew for each image: faster steps for
    less detail (FLIP). Evaluation reads all."""
    patch_size: Pixels = 16
    """Image: side of a patch in pixels; with a `convnet` of a cell of its last feature map, and a power of two. Audio:
    mel bins and frames of a patch."""
    vocab_size: Vocabulary = 49408
    """Text: upper bound of the vocabulary; the table has the size of the tokenizer trained on the captions."""
    max_len: Tokens = 77
    """Text: longest caption in tokens, start and end included."""
    audio_max_seconds: Seconds = 10.0
    """Audio: longest clip in seconds; longer ones are cut, shorter ones padded and masked."""
    activation_checkpointing: Flag = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory, a third slower."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    projection: Projection = "mlp"
    """Layers before the pooling when there is no Perceiver. With `none` a pretrained tower keeps its own head if that
    gives `embed_dim`: it starts as the very model that it comes from. `auto`: the same where image and text tower are
    of one pretrained pair (CLIP, SigLIP), used whole and with `embed_dim` the width of its space; otherwise `mlp`, and
    a line at the start says so."""
    use_perceiver: Flag = False
    """Image, audio: compress the tokens into `perceiver_num_latents` with a Perceiver resampler."""
    perceiver_num_latents: Width = 64
    """Number of latents of the resampler."""
    perceiver_num_layers: Depth = 3
    """Depth of its cross-attention stack."""
    perceiver_num_heads: Width = 8
    """Its attention heads."""
    use_attention_pooling: Flag = False
    """Pool with one learned query instead of `pooling`; ignored under the Perceiver, whose latents are averaged."""
    pooling: PoolingName = "auto"
    """How tokens become one vector: `auto` is what the tower does itself (CLS, the end token of a causal text,
    SigLIP's and CLAP's own pooling), or else the mean."""
    use_mrl: Flag = False
    """Image: Matryoshka training, that is the loss on nested prefixes of the embeddings (all towers share them)."""
    mrl_dimensions: tuple[Width, ...] = (256, 128, 64)
    """Image: prefix lengths, descending; the full width is always trained as well."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Section):
    """How tokens of several modalities become one prefix, or one embedding."""

    strategy: Literal["concat", "cross_attention", "gated"] = "concat"
    """`concat` (project each, concatenate), `cross_attention` (learned queries), `gated` (sum under learned gates)."""
    layers: Depth = 2
    """cross_attention: depth."""
    num_queries: Width = 32
    """cross_attention, gated: number of learned queries."""
    num_heads: Width = 8
    """cross_attention, gated: attention heads."""
    dropout: Rate = 0.0
    """Dropout on the fused tokens."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """The contrastive objective: contrastive_weight * L(e) + mrl_weight * mean over d of L(e[:d])."""

    type: LossType = "clip"
    """`clip`: symmetric InfoNCE; `siglip`: a sigmoid for each pair."""
    contrastive_weight: NonNegative = 1.0
    """Weight of the loss at the full width."""
    mrl_weight: NonNegative = 1.0
    """Weight of the mean of the losses at the Matryoshka dimensions."""
    temperature: Temperature | None = None
    """Start (or fixed value) of the temperature that divides similarities. null: 0.07 (`clip`), 0.1 (`siglip`), or more
    under `max_logit_scale`. Learned or fixed it is at least 0.01: similarities are multiplied by 100 at most."""
    learn_temperature: Flag = True
    """Learn the temperature; false keeps it fixed."""
    max_logit_scale: LogitScale = MAX_LOGIT_SCALE
    """Most that similarities are multiplied by while the temperature is learned. On little data it falls until the
    model is sure of all that it has seen; a limit below 100 keeps it from that."""
    siglip_bias: Literal["auto"] | Float = "auto"
    """siglip: start of the bias; `auto` starts the loss at its floor for the batch at hand."""
    gather_distributed: Flag = False
    """Gather embeddings over all processes, so that n processes train as one with n times the batch. false: each
    contrasts its own rows only, with fewer negatives and a lower loss (at chance the ln of its rows), and a row of a
    short last batch counts more. Validation never gathers."""
    sample_single_mrl_dim: Flag = False
    """true: one drawn Matryoshka dimension per optimizer step; false: all of them in every step."""
    pairs: tuple[PairName, ...] | None = None
    """Pairs to align. null: every pair of modalities in the batch. `image+audio-text` aligns captions with the
    embedding that `fusion` makes of image and sound."""
    duplicates: Literal["ignore", "positive"] = "positive"
    """Samples of a batch with equal images (pixel by pixel, before augmentation), equal captions (before words are
    dropped) or equal sounds: each other's right answers (`positive`) or negatives (`ignore`). A pair of modalities is
    decided by these two alone. Equal samples that lie in different batches, or on processes that do not gather, never
    meet."""
    row_chunk: Count | None = None
    """Rows, and columns, of the batch's similarity matrix that are held at a time. null: those of the wide prefixes are
    kept whole; a number saves memory at large batches and costs a third more work in the loss."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(Section):
    """Optimizer, learning-rate schedule and numeric precision."""

    optimizer: OptimizerName = "adamw"
    """Optimizer."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    lr_pretrained: Positive | None = None
    """Learning rate of pretrained towers. null: `lr`."""
    lr_memory: Positive | None = None
    """Learning rate of the memory tokens. null: `lr`."""
    lr_logits: Positive | None = None
    """Learning rate of the logit scale and bias. null: `lr` for `clip`, 100 times `lr` for `siglip`."""
    weight_decay: NonNegative = 0.01
    """Weight decay; norms, biases, embeddings, the logit scale and memory are spared."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """adamw, adam: decay of the moment estimates. sgd: the first is the momentum."""
    eps: Positive = 1e-8
    """adamw, adam: added to the denominator."""
    clip_grad: NonNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    scheduler: SchedulerName = "cosine"
    """Learning rate after the warm-up: down to `min_lr` by half a cosine or a line, constant, or constant and down by a
    line over the last `cooldown_epochs` (`const_cooldown`)."""
    warmup_epochs: NonNegative = 5.0
    """Epochs of linear warm-up; cut to fit a shorter run."""
    warmup_steps: CountOrZero | None = None
    """Optimizer steps of the warm-up in place of `warmup_epochs`; cut likewise. null: `warmup_epochs`."""
    cooldown_epochs: NonNegative = 5.0
    """const_cooldown: epochs of the line at the end; cut to the steps after the warm-up. A longer run stays at the
    peak for longer."""
    min_lr: NonNegative = 1e-6
    """Learning rate at the end."""
    precision: Precision = "32-true"
    """Numbers of the computation: full, mixed with 16-bit floats, or bfloat16 throughout (`bf16-true`)."""
    ema_decay: Rate | None = None
    """Decay of the average of the weights that is validated, kept and evaluated in their place. null: no average."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """Length of the training run, hardware, logging and checkpoints."""

    epochs: Count = 100
    """Passes over the training data."""
    max_steps: Count | None = None
    """Stop after so many optimizer steps, if that comes before the last epoch."""
    early_stopping_patience: Count | None = None
    """Stop after so many validations in a row that were no better than the best before them, by
    `checkpoint.monitor`. null never does."""
    accumulate_grad_batches: Batch = 1
    """Batches whose gradients are added up for one optimizer step; it does not add negatives to a contrastive loss."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    devices: Processes | Literal["auto"] = "auto"
    """Number of devices of one machine."""
    num_nodes: Processes = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work: `ddp` keeps the whole model on each, `fsdp` a part; `auto` is `ddp`."""
    deterministic: Flag = False
    """Only deterministic algorithms, at some cost in speed on a GPU."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(Section):
    """Names and notes for people. They change no number; they are recorded in the run, in its model card and in W&B."""

    model: Text = ""
    """Identifier of the model."""
    description: Text = ""
    """Purpose of the experiment."""
    version: Text = ""
    """Version of the project."""
    tags: tuple[Name, ...] = ()
    """Tags."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(Section):
    """Root of the configuration: everything that decides a run."""

    name: Name = "experiment"
    """Name of the experiment."""
    seed: Seed = 0
    """Seed of the weights, the order of the data, augmentation and dropout."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    vision_encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Image tower."""
    text_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(backbone="transformer"))
    """Text tower of an alignment; with a `decoder`, which reads the text, none is built."""
    audio_encoder: EncoderConfig | None = None
    """Audio tower; null for none."""
    decoder: DecoderConfig | None = None
    """Language model; null for alignment."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def towers(config: ExperimentConfig) -> Iterator[tuple[Modality, str, EncoderConfig]]:
    """Modality, key and config of each tower that the experiment has; with a decoder there is none for text."""
    yield "image", "vision_encoder", config.vision_encoder
    if config.decoder is None:
        yield "text", "text_encoder", config.text_encoder
    if config.audio_encoder is not None:
        yield "audio", "audio_encoder", config.audio_encoder


def is_from_scratch(modality: Modality, tower: EncoderConfig) -> bool:
    """True when the backbone is one of ours, false when it is a pretrained one."""
    return tower.backbone in FROM_SCRATCH[modality]


def is_pair(config: ExperimentConfig) -> bool:
    """True when image and text tower are the halves of one pretrained model, and `projection: auto` keeps its heads."""
    halves = image, text = config.vision_encoder, config.text_encoder
    return (
        config.decoder is None
        and image.backbone == text.backbone
        and image.backbone not in OURS
        and all(tower.checkpoint is None and tower.projection in ("auto", "none") for tower in halves)
        and not any(tower.use_attention_pooling or tower.use_perceiver or tower.pooling != "auto" for tower in halves)
    )


def is_frozen(tower: EncoderConfig) -> bool:
    """True when the backbone is kept as it is, but for its last blocks (`unfreeze_last`) and its adapters (`lora`)."""
    stands_on_others = tower.checkpoint is not None or tower.lora is not None
    return stands_on_others if tower.freeze is None else tower.freeze


def has_trained_blocks(tower: EncoderConfig) -> bool:
    """True when gradients pass blocks of the backbone."""
    return not is_frozen(tower) or tower.unfreeze_last > 0 or (tower.lora is not None and tower.checkpoint is None)


def warmup_key(config: OptimizationConfig) -> str:
    """The key that says how long the warm-up is."""
    return "optimization.warmup_epochs" if config.warmup_steps is None else "optimization.warmup_steps"
