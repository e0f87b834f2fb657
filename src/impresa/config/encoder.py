"""One tower of an experiment, and what its settings come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from impresa.config.decoder import TowerLoraConfig
from impresa.config.types import (
    CountOrZero,
    Depth,
    Flag,
    MemoryConfig,
    Multiple,
    Name,
    PatchRate,
    Pixels,
    Rate,
    Seconds,
    Section,
    Text,
    Tokens,
    Vocabulary,
    Width,
)

Modality = Literal["image", "text", "audio"]
PoolingName = Literal["auto", "cls", "mean", "eot"]
Projection = Literal["mlp", "linear", "none", "auto"]
FROM_SCRATCH: dict[Modality, tuple[str, ...]] = {
    "image": ("vit", "convnet"),
    "text": ("transformer", "bag"),
    "audio": ("spectrogram",),
}
"""The backbones of each modality that are trained from scratch, first the default; any other is a pretrained one."""
OURS = tuple(chain.from_iterable(FROM_SCRATCH.values()))
TRANSFORMERS = ("vit", "transformer", "spectrogram")
"""Those of ours that are blocks of attention and MLPs."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(Section):
    """Text prefixes, for towers that were trained to tell queries from documents by them. They are kept in the run and
    used only where `encode_text(prompt_name=...)` or `impresa encode --prompt-name` asks for them: training and
    evaluation use none, and a tower from a `checkpoint` brings none."""

    query: Name | None = None
    """Put before a text that is a query, such as `"query: "`. null: there is none."""
    document: Name | None = None
    """Put before a text that is a document. null: there is none."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """One tower. The same class serves image, text and audio; a field that a modality cannot use is refused for it."""

    backbone: Name = "vit"
    """From scratch: `vit` or `convnet`, a small residual network (image); `transformer` or `bag`, the mean of the word
    embeddings without their order, in which words that occur in no training caption are ignored (text); `spectrogram`
    (audio). Anything else is a Hugging Face id, a local path or `timm:NAME`."""
    checkpoint: Text | None = None
    """A finished Impresa run whose tower of this modality is loaded; it is frozen unless `freeze` is false."""
    freeze: Flag | None = None
    """Keep the backbone as it is: eval mode, no gradient, no optimizer state. null: frozen if from `checkpoint`."""
    unfreeze_last: CountOrZero = 0
    """Number of last blocks of a frozen tower that are trained anyway, and its head with them, with `lr_pretrained`."""
    lora: TowerLoraConfig | None = None
    """Low-rank adapters in a pretrained backbone, which stays as it is. null for none; `{}` for the defaults."""
    embed_dim: Width = 512
    """Width of the pooled embedding; the same for all towers."""
    dim: Width = 512
    """Width of a from-scratch backbone; of a `convnet` that of its last stage, halved for each earlier stage."""
    depth: Depth = 12
    """Blocks of a from-scratch backbone. A `convnet` has a stage for each halving of the image, and spreads its
    residual blocks over all stages but the first, evenly or with one more in the last ones."""
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
    """Image: fraction of an image's patches that a training step drops, drawn for each image: faster steps, less detail
    (FLIP). Evaluation uses all."""
    patch_size: Pixels = 16
    """Image: side of a patch in pixels; with a `convnet` of a cell of its last feature map, and a power of two. Audio:
    mel bins and frames of a patch."""
    vocab_size: Vocabulary = 49408
    """Text: upper bound of the vocabulary; the table has the size of the tokenizer trained on the captions."""
    max_len: Tokens = 77
    """Text: longest caption in tokens, start and end included."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    audio_max_seconds: Seconds = 10.0
    """Audio: longest clip in seconds; longer ones are cut, shorter ones padded and masked."""
    activation_checkpointing: Flag = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory, a third slower."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    projection: Projection = "mlp"
    """Layers before the pooling when there is no Perceiver. With `none` a pretrained tower keeps its own head if that
    gives `embed_dim`: it starts as exactly the model that it comes from. `auto`: the same where image and text tower
    are from one pretrained pair (CLIP, SigLIP), used whole and with `embed_dim` the width of its space; otherwise
    `mlp`, and a line at the start says so."""
    use_perceiver: Flag = False
    """Image, audio: compress the tokens into `perceiver_num_latents` with a Perceiver resampler."""
    perceiver_num_latents: Width = 64
    """Number of latents of the resampler."""
    perceiver_num_layers: Depth = 3
    """Depth of its cross-attention stack."""
    perceiver_num_heads: Width = 8
    """Its attention heads."""
    use_attention_pooling: Flag = False
    """Pool with one learned query instead of `pooling`; ignored with a Perceiver, whose latents are averaged."""
    pooling: PoolingName = "auto"
    """How tokens become one vector: `auto` is the tower's own way (CLS, the end token of a causal text, SigLIP's and
    CLAP's own pooling), or else the mean."""
    use_mrl: Flag = False
    """Image: Matryoshka training, that is the loss on nested prefixes of the embeddings (all towers share them)."""
    mrl_dimensions: tuple[Width, ...] = (256, 128, 64)
    """Image: prefix lengths, descending; the full width is always trained as well."""


def is_from_scratch(modality: Modality, tower: EncoderConfig) -> bool:
    """True when the backbone is one of ours, false when it is a pretrained one."""
    return tower.backbone in FROM_SCRATCH[modality]


def is_frozen(tower: EncoderConfig) -> bool:
    """True when the backbone is kept as it is, but for its last blocks (`unfreeze_last`) and its adapters (`lora`)."""
    stands_on_others = tower.checkpoint is not None or tower.lora is not None
    return stands_on_others if tower.freeze is None else tower.freeze


def has_trained_blocks(tower: EncoderConfig) -> bool:
    """True when gradients pass blocks of the backbone."""
    return not is_frozen(tower) or tower.unfreeze_last > 0 or (tower.lora is not None and tower.checkpoint is None)
