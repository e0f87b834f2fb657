"""The figures that a run of an experiment will have, by the names of `impresa.evaluation.figures`."""

from __future__ import annotations

from collections.abc import Iterator

from impresa.config.describe import did_you_mean, listed
from impresa.config.experiment import ExperimentConfig
from impresa.config.losses import FUSED_PAIR
from impresa.config.paths import EMBEDDED
from impresa.evaluation.results import RECALL_AT

_SCORES = ("exact_match", "vqa_accuracy", "anls", "token_f1")
_OF_ANSWERS = (*_SCORES, "bleu", "rouge_l", "answer_loss", "perplexity")
_BY_KIND = tuple(f"{name}:" for name in _SCORES)
_SHARES = (*(f"recall_at_{k}" for k in RECALL_AT), "mrr", "map", "ndcg")
_RANKS = ("mean_rank", "median_rank")
_OF_SPACE = ("effective_rank", "uniformity")


def default_metric(config: ExperimentConfig) -> str:
    """The judge of a study that names none, so that nobody chooses it by looking."""
    return "exact_match" if config.decoder is not None else "recall_at_1"


def fault_of_metric(name: str, config: ExperimentConfig) -> str | None:
    """Why a run of this experiment has no such figure, with the fix; None where it may have it.

    The types of questions, how many right answers they have, and the labels of data in files are not known before.
    """
    known = list(_names(config))
    of_kind = config.decoder is not None and name.startswith(_BY_KIND) and not name.endswith(":")
    if name in known or of_kind:
        return None
    base, at, _ = name.partition("@")
    if at and base in _of_retrieval():
        vision = config.vision_encoder
        if config.decoder is None and vision.use_mrl:
            return f"{name} is at no Matryoshka dimension; there are {listed(vision.mrl_dimensions, 'and')}"
        fix = "losses.mrl_weight=0 beside it measures there without training there"
        return f"{name} needs vision_encoder.use_mrl and no decoder; {fix}"
    whole = [other for other in known if "@" not in other]
    return f"{name} is no figure of this experiment; {did_you_mean(name, known)}there are {listed(whole, 'and')}"


def _names(config: ExperimentConfig) -> Iterator[str]:
    if config.decoder is not None:
        yield from _OF_ANSWERS
        return
    vision, data = config.vision_encoder, config.dataset
    retrieval, modalities = _of_retrieval(), ["image", "text"]
    if config.audio_encoder is not None:
        fused = ("image+audio_to_text", "text_to_image+audio") if FUSED_PAIR in (config.losses.pairs or ()) else ()
        heard = ("audio_to_text", "text_to_audio", "audio_to_image", "image_to_audio")
        retrieval += [name for direction in (*heard, *fused) for name in _of_direction(direction)]
        modalities.append("audio")
    yield from retrieval
    yield from (f"{name}@{dim}" for name in retrieval for dim in (vision.mrl_dimensions if vision.use_mrl else ()))
    yield from ("alignment", "modality_gap", *(f"{one}_{name}" for one in modalities for name in _OF_SPACE))
    if (data.test_path or data.train_path) != EMBEDDED:  # the scenes have no labels
        yield "zero_shot_accuracy"


def _of_retrieval() -> list[str]:
    return [*_SHARES, *_of_direction("image_to_text"), *_of_direction("text_to_image")]


def _of_direction(direction: str) -> list[str]:
    return [f"{direction}_{name}" for name in (*_SHARES, *_RANKS)]
