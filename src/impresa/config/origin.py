"""Each tower of an experiment in words: where it comes from, its sizes, and what is trained of it."""

from __future__ import annotations

from impresa.config.encoder import TRANSFORMERS, EncoderConfig, Modality, is_from_scratch, is_frozen
from impresa.config.experiment import ExperimentConfig, towers


def towers_in_words(config: ExperimentConfig) -> dict[str, str]:
    """By key (`vision_encoder`) a line for each tower of a prepared experiment."""
    return {part: _in_words(config, modality, tower) for modality, part, tower in towers(config)}


def _in_words(config: ExperimentConfig, modality: Modality, tower: EncoderConfig) -> str:
    is_ours = is_from_scratch(modality, tower)
    words = [tower.backbone if is_ours else f"pretrained {tower.backbone}"]
    if is_ours:
        words.append(f"width {tower.dim}")
    if tower.backbone in TRANSFORMERS:
        words.append(f"{tower.depth} block{'s' * (tower.depth > 1)}")
    if modality == "image":
        words += [f"patches of {tower.patch_size} px"] if tower.backbone == "vit" else []
        words.append(f"images of {config.dataset.image_size} px")
    if tower.checkpoint is not None:
        words.append(f"of the run {tower.checkpoint}")
    if is_frozen(tower):
        words.append("frozen" if not tower.unfreeze_last else f"frozen but for its last blocks ({tower.unfreeze_last})")
    else:
        words.append("trained here from scratch" if is_ours and tower.checkpoint is None else "trained on")
    return ", ".join(words)
