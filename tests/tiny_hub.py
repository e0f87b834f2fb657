"""Small models with random weights, saved as the hub would hold them: weights, config and preprocessing in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = (
    "a", "the", "red", "blue", "green", "circle", "square", "triangle",
    "left", "right", "of", "and", "dog", "barks", "piano", "loud",
)  # fmt: skip


def save(folder: Path, model: Any, *preprocessing: Any) -> Path:
    """Write a model with weights far from their start, so that no part of it is silent."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.02, std=0.2)
    for part in (model, *preprocessing):
        part.save_pretrained(folder)
    return folder


def word_tokenizer(*, end: str, pad: str, max_len: int, start: str | None = None) -> Any:
    """One token per word, after a start token if there is one, before an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    specials = list(dict.fromkeys([pad, *([start] if start else []), end, "[UNK]"]))
    words = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start or ''} $A {end}".strip(),
        special_tokens=[(token, words[token]) for token in (start, end) if token],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad, unk_token="[UNK]",
        model_max_length=max_len,
    )  # fmt: skip


def clip(folder: Path) -> Path:
    """CLIP with a joint space of 20 dimensions."""
    tokenizer = word_tokenizer(start="<start>", end="<end>", pad="<end>", max_len=12)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, transformers.CLIPModel(config), tokenizer, processor)


def siglip(folder: Path) -> Path:
    """SigLIP, whose texts have 16 positions."""
    tokenizer = word_tokenizer(end="</s>", pad="</s>", max_len=16)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "hidden_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, transformers.SiglipModel(config), tokenizer, processor)


def dinov2(folder: Path, *, num_registers: int = 0) -> Path:
    """DINOv2, with registers or without."""
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=num_registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION))
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32},
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    return save(folder, model, processor)


def bert(folder: Path) -> Path:
    """BERT as its pretraining left it: with the head that fills in masked words and without a pooler."""
    tokenizer = word_tokenizer(start="[CLS]", end="[SEP]", pad="[PAD]", max_len=14)
    config = transformers.BertConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=14)
    return save(folder, transformers.BertForMaskedLM(config), tokenizer)


def whisper(folder: Path) -> Path:
    """Whisper for clips of one second."""
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=20, num_mel_bins=8, max_source_positions=50,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    return save(folder, transformers.WhisperForConditionalGeneration(config), extractor)


def clap(folder: Path, *, fused: bool = False) -> Path:
    """CLAP for clips of one second, with fusion of crops or without."""
    audio = {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "window_size": 2}
    audio |= {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    audio |= {"enable_fusion": fused, "num_hidden_layers": 2, "aff_block_r": 2}
    text = TEXT | {"vocab_size": 30, "max_position_embeddings": 20}
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=12)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    )  # fmt: skip
    return save(folder, transformers.ClapModel(config), extractor)


def ast(folder: Path) -> Path:
    """AST for clips of 0.4 seconds, with the head of its fine-tuning."""
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8,
        frequency_stride=6, time_stride=5, max_length=40, num_mel_bins=20,
    )  # fmt: skip
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=20, max_length=40)
    return save(folder, transformers.ASTForAudioClassification(config), extractor)


def one_of_each(root: Path) -> dict[str, Path]:
    """A small model of every family, by name."""
    return {make.__name__: make(root / make.__name__) for make in (clip, siglip, dinov2, bert, whisper, clap, ast)}
