"""Keys that have an effect only under a condition: two tables say where they have none, and why."""

from __future__ import annotations

from impresa.config.augmentation import views_of
from impresa.config.encoder import is_from_scratch, is_frozen
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.hub_names import is_hub_name
from impresa.config.losses import FUSED_PAIR
from impresa.config.paths import EMBEDDED
from impresa.config.relevance_towers import PERCEIVER, Rule, below, switched_off, tower_rules
from impresa.config.shard_names import is_address

_PRETRAINED_ONLY = ("model", "load_in_4bit", "load_in_8bit", "use_lora", "lora", "freeze", "use_trm_recursion")
_TRM_ONLY = ("dim", "num_heads", "mlp_ratio", "vocab_size")
_TOKENS_ONLY = "does nothing with a `decoder`, which reads the tower's tokens and no embedding"


_OF_FILES = (
    *("val_fraction", "max_bad_fraction", "prompt_templates", "class_names", "image_root", "skip_unsupported_rows"),
    *("max_image_pixels", "max_file_mib", "reduced_decode", "allow_outside", "max_images"),
    *("streaming", "shard_cache_gib"),
    *(
        f"{name}_column"
        for name in ("image", "caption", "negative", "group", "audio", "label", "question", "answer", "kind")
    ),
)
"""Fields of `DatasetConfig` for data in files; the embedded scenes are drawn and have no labels."""
_SPLITS = ("train", "val", "test")


def _has_decoder(config: ExperimentConfig) -> bool:
    return config.decoder is not None


def _pools_nothing(config: ExperimentConfig) -> bool:
    """True where no embedding is made, and `prefix_layer` does not depend on how a frozen tower once made it."""
    decoder = config.decoder
    return decoder is not None and not (decoder.prefix_layer == "auto" and bool(config.vision_encoder.freeze))


def _reads_shapes(config: ExperimentConfig) -> dict[str, bool]:
    """True for each split that is one of the embedded data."""
    data = config.dataset
    others = {"val": data.val_path or data.train_path, "test": data.test_path or data.train_path}
    paths = {"train": data.train_path, **others}
    return {split: path == EMBEDDED for split, path in paths.items()}


def _data_paths(config: ExperimentConfig) -> list[str]:
    data = config.dataset
    return [path for path in (data.train_path, data.val_path, data.test_path) if path is not None]


def _streams_nothing(config: ExperimentConfig) -> bool:
    """True where no data path is that of a data set on the hub."""
    return not any(is_hub_name(path) for path in _data_paths(config)) and config.dataset.source != "hub"


def _copies_nothing(config: ExperimentConfig) -> bool:
    match config.dataset.source:
        case "folder":
            return True
        case "hub":
            return not config.dataset.streaming
        case "parquet":
            return not any(map(is_address, _data_paths(config)))
    return False


def _recolours_nothing(config: ExperimentConfig) -> bool:
    views = views_of(config.dataset.augmentation, config.dataset.augmentation_options)
    return views is not None and not views.recolours


def _shapes_rule(key: str, *splits: str) -> Rule:
    def unread(config: ExperimentConfig) -> bool:
        return not any(_reads_shapes(config)[split] for split in splits)

    return Rule((f"dataset.shapes.{key}",), unread, "is for the embedded shapes, which are not read there")


def _is_one_process(config: ExperimentConfig) -> bool:
    """True where the config says so, whatever the machine."""
    trainer = config.trainer
    devices = 1 if trainer.devices == "auto" and trainer.accelerator == "cpu" else trainer.devices
    return devices == 1 and trainer.num_nodes == 1


def _most_rows(config: ExperimentConfig) -> int:
    """Rows that a tower may get at once: texts and their hard negatives."""
    dataset = config.dataset
    return max(dataset.batch_size, dataset.eval_batch_size or 0) * (1 if dataset.negative_column is None else 2)


def _trains_pretrained(config: ExperimentConfig) -> bool:
    return any(
        (not is_frozen(tower) or tower.unfreeze_last > 0)
        and (tower.checkpoint is not None or not is_from_scratch(modality, tower))
        for modality, _, tower in towers(config)
    )


REFUSED = (
    *tower_rules("image", "vision_encoder"),
    *tower_rules("text", "text_encoder"),
    *tower_rules("audio", "audio_encoder"),
    Rule(
        ("fusion",),
        lambda c: c.decoder is None and FUSED_PAIR not in (c.losses.pairs or ()),
        f"fuses nothing without {FUSED_PAIR} in `losses.pairs` or a `decoder`",
        f"add {FUSED_PAIR} to `losses.pairs`, or leave it at its defaults",
    ),
    Rule(
        ("optimization.lr_fusion",),
        lambda c: c.decoder is None and FUSED_PAIR not in (c.losses.pairs or ()),
        f"does nothing without a `decoder` or {FUSED_PAIR} in `losses.pairs`, which have a fusion",
    ),
    Rule(
        ("optimization.layer_decay",),
        lambda c: not _trains_pretrained(c),
        "does nothing without a pretrained tower that is trained",
    ),
    Rule(
        ("optimization.lr_lora",),
        lambda c: c.decoder is None or not (c.decoder.is_pretrained and c.decoder.use_lora),
        "does nothing without `decoder.use_lora`, for the adapters of towers go by `optimization.lr`",
    ),
    Rule(
        ("dataset.streaming",),
        _streams_nothing,
        "reads data sets of the hub, and no data path names one",
        "name one (hub://ORG/NAME), or leave it out",
    ),
    Rule(
        ("dataset.batch_by_length",),
        lambda c: c.decoder is None,
        "does nothing without a `decoder`: negatives of captions are not chosen by length",
    ),
    Rule(
        ("dataset.augmentation_options",),
        lambda c: c.dataset.augmentation == "none",
        "changes a preset, and `dataset.augmentation` none has no random views",
        "choose clip or strong, or leave it out",
    ),
    Rule(
        ("dataset.augmentation_options.ratio",),
        lambda c: c.dataset.augmentation == "strong" and c.dataset.augmentation_options.scale is None,
        "is of random crops, which strong makes none of without `dataset.augmentation_options.scale`",
        "set that, or leave it out",
    ),
    Rule(("dataset.audio_augmentation",), lambda c: c.audio_encoder is None, "does nothing without an `audio_encoder`"),
    Rule(
        ("fusion.layers",),
        lambda c: c.fusion.strategy != "cross_attention",
        "is for cross_attention, not for {fusion.strategy}",
    ),
    Rule(
        below("fusion", "num_queries", "num_heads"),
        lambda c: c.fusion.strategy == "concat",
        "is for cross_attention and gated, not for concat",
    ),
    Rule(
        below("decoder", *_PRETRAINED_ONLY),
        lambda c: not c.decoder.is_pretrained,
        "is for `decoder.type` qwen and causal_lm, not for trm",
    ),
    Rule(
        below("decoder", *_TRM_ONLY),
        lambda c: c.decoder.is_pretrained,
        "is for `decoder.type` trm, not for {decoder.type}",
    ),
    Rule(
        ("decoder.lora.*",),
        lambda c: c.decoder.is_pretrained and not c.decoder.use_lora,
        "does nothing without `decoder.use_lora`",
        "set that to true or leave it out",
    ),
    Rule(
        ("losses.*", "optimization.lr_logits", "dataset.caption_dropout", "dataset.negative_column"),
        _has_decoder,
        "does nothing with a `decoder`, which learns answers alone",
    ),
    Rule(
        ("optimization.chunk_size",),
        _has_decoder,
        "does nothing with a `decoder`, in whose loss samples do not meet",
        "lower `dataset.batch_size` and raise `trainer.accumulate_grad_batches` in return, which changes nothing there",
    ),
    Rule(
        ("dataset.negative_column",),
        lambda c: c.losses.pairs is not None and "image-text" not in c.losses.pairs,
        "holds captions to tell images from, and `losses.pairs` has no image-text",
        "add that, or leave it out",
    ),
    Rule(
        below("dataset", "max_images", "questions_per_image", "question_column", "answer_column", "kind_column"),
        lambda c: c.decoder is None,
        "does nothing without a `decoder`, which alone is asked",
        "add one or leave it out",
    ),
)
"""Rules for keys that are refused where they have no effect."""
WARNED = (
    Rule(("text_encoder.*",), _has_decoder, "does nothing with a `decoder`, which reads the text itself"),
    Rule(
        below("dataset", "prompt_templates", "class_names"),
        _has_decoder,
        "does nothing with a `decoder`, which classifies nothing",
    ),
    Rule(("vision_encoder.embed_dim", "vision_encoder.use_mrl", "audio_encoder.embed_dim"), _has_decoder, _TOKENS_ONLY),
    Rule(below("vision_encoder", "use_attention_pooling", "pooling"), _pools_nothing, _TOKENS_ONLY),
    Rule(("audio_encoder.use_attention_pooling", "audio_encoder.pooling"), _has_decoder, _TOKENS_ONLY),
    Rule(
        ("vision_encoder.projection",),
        lambda c: c.decoder is not None and c.decoder.prefix == "memory",
        "does nothing here, the decoder reads memory tokens (`decoder.prefix`)",
    ),
    Rule(
        below("vision_encoder", *PERCEIVER),
        lambda c: c.decoder is not None and c.decoder.prefix != "perceiver",
        "does nothing here, the decoder reads no latents; set `decoder.prefix` to perceiver for them",
    ),
    Rule(
        ("decoder.recursion.*",),
        lambda c: c.decoder.is_pretrained and not c.decoder.use_trm_recursion,
        "does nothing for a pretrained model without `decoder.use_trm_recursion`",
    ),
    Rule(
        ("decoder.generation.seed",),
        lambda c: c.decoder.generation.temperature == 0,
        "does nothing at `decoder.generation.temperature` 0, which draws nothing",
    ),
    Rule(
        below("decoder.recursion", "num_cycles", "num_steps", "num_rounds"),
        lambda c: not c.decoder.recursion.recursive,
        "does nothing without `decoder.recursion.recursive`, a plain stack",
    ),
    *switched_off("vision_encoder"),
    *switched_off("text_encoder"),
    *switched_off("audio_encoder"),
    Rule(
        ("vision_encoder.patch_dropout",),
        lambda c: c.dataset.image_size == c.vision_encoder.patch_size,
        "does nothing where `dataset.image_size` is a single patch",
    ),
    Rule(
        ("dataset.augmentation_options.color_jitter_prob",),
        _recolours_nothing,
        "does nothing where brightness, contrast, saturation and hue are 0",
    ),
    Rule(("dataset.val_fraction",), lambda c: c.dataset.val_path is not None, "does nothing beside `dataset.val_path`"),
    Rule(
        below("dataset", *_OF_FILES),
        lambda c: all(_reads_shapes(c).values()),
        "is for data in files, not for the embedded shapes",
    ),
    Rule(
        ("dataset.shard_cache_gib",),
        _copies_nothing,
        "is for copies of shards and of files at an address, and none are made",
    ),
    Rule(
        ("dataset.resize",),
        lambda c: all(_reads_shapes(c).values()) and is_from_scratch("image", c.vision_encoder),
        "changes nothing for the embedded shapes, which are square",
    ),
    Rule(
        ("decoder.tiles",),
        lambda c: all(_reads_shapes(c).values()),
        "changes nothing for the embedded shapes, which are drawn at `dataset.image_size`",
    ),
    Rule(("dataset.label_column",), _has_decoder, "does nothing with a `decoder`, which classifies nothing"),
    Rule(("dataset.audio_column",), lambda c: c.audio_encoder is None, "does nothing without an `audio_encoder`"),
    *(_shapes_rule(f"num_{split}", split) for split in _SPLITS),
    _shapes_rule("seed", *_SPLITS),
    Rule(
        below("dataset", "prefetch_factor", "persistent_workers"),
        lambda c: c.dataset.num_workers == 0,
        "does nothing where `dataset.num_workers` is 0",
    ),
    Rule(
        ("dataset.batch_by_length",),
        lambda c: c.dataset.batch_size == 1 and _is_one_process(c),
        "does nothing where `dataset.batch_size` is 1",
    ),
    Rule(("dataset.pin_memory",), lambda c: c.trainer.accelerator == "cpu", "is for a GPU (`trainer.accelerator`)"),
    Rule(
        below("losses", "mrl_weight", "sample_single_mrl_dim"),
        lambda c: not c.vision_encoder.use_mrl,
        "does nothing without `vision_encoder.use_mrl`",
    ),
    Rule(
        ("losses.sample_single_mrl_dim",),
        lambda c: len(c.vision_encoder.mrl_dimensions) < 2,
        "does nothing where `vision_encoder.mrl_dimensions` has a single one",
    ),
    Rule(("losses.siglip_bias",), lambda c: c.losses.type == "clip", "is for `losses.type` siglip, not for clip"),
    Rule(
        ("losses.max_logit_scale",),
        lambda c: not c.losses.learn_temperature,
        "does nothing without `losses.learn_temperature`",
    ),
    Rule(("losses.gather_distributed",), _is_one_process, "does nothing in one process"),
    Rule(
        ("losses.pairs",),
        lambda c: c.audio_encoder is None,
        "does nothing without an `audio_encoder`: there is one pair",
    ),
    Rule(
        ("optimization.chunk_size",),
        lambda c: (c.optimization.chunk_size or 0) >= _most_rows(c),
        "does nothing where no tower has more rows in a batch (`dataset.batch_size`)",
    ),
    Rule(
        ("optimization.packing",),
        lambda c: c.decoder is None and min(_most_rows(c), c.optimization.chunk_size or 2) == 1,
        "does nothing for one text at a time, which has no padding",
    ),
    Rule(
        ("optimization.lr_pretrained",),
        lambda c: not _trains_pretrained(c),
        "does nothing without a pretrained tower that is trained",
    ),
    Rule(
        ("optimization.lr_memory",),
        lambda c: not c.vision_encoder.memory.enabled or is_frozen(c.vision_encoder),
        "does nothing without memory tokens that are trained (`vision_encoder.memory.enabled`)",
    ),
    Rule(
        ("optimization.lr_logits",),
        lambda c: c.losses.type == "clip" and not c.losses.learn_temperature,
        "does nothing without `losses.learn_temperature`, for clip has no other logits to learn",
    ),
    Rule(("optimization.eps",), lambda c: c.optimization.optimizer == "sgd", "is for adam and its kin, not for sgd"),
    Rule(
        ("optimization.warmup_epochs",),
        lambda c: c.optimization.warmup_steps is not None,
        "does nothing beside `optimization.warmup_steps`",
    ),
    Rule(
        ("optimization.cooldown_epochs",),
        lambda c: c.optimization.scheduler != "const_cooldown",
        "is for `optimization.scheduler` const_cooldown",
    ),
    Rule(
        ("optimization.min_lr",),
        lambda c: c.optimization.scheduler == "constant",
        "does nothing under `optimization.scheduler` constant",
    ),
    Rule(
        ("trainer.max_restarts",),
        _is_one_process,
        "is for several processes: a single one is not started anew",
    ),
    Rule(("trainer.strategy",), lambda c: c.trainer.strategy == "ddp", "is ddp by auto as well"),
    Rule(("trainer.logging.entity",), lambda c: not c.trainer.logging.wandb, "is for `trainer.logging.wandb`"),
    Rule(
        ("trainer.checkpoint.filename",),
        lambda c: c.trainer.checkpoint.save_top_k == 0,
        "does nothing where `trainer.checkpoint.save_top_k` is 0",
    ),
)
"""Rules for keys that are only warned of."""
