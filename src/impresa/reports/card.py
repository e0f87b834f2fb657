"""The model card: a run's README."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

from impresa.config.experiment import ExperimentConfig
from impresa.config.origin import towers_in_words
from impresa.data.dialogue import CAPTION
from impresa.data.image_files import image_suffixes
from impresa.evaluation.preview import DataPreview, TrainingSample
from impresa.evaluation.results import Evaluation
from impresa.foreign_text import printable
from impresa.reports.rendering import render
from impresa.reports.tables import interval_note, make_tables, summary, warnings
from impresa.run_dir.environment import Environment

MOST_CHARACTERS = 80
"""Of a text in the card's code."""


def model_card(
    config: ExperimentConfig,
    evaluation: Evaluation,
    environment: Environment,
    run_dir: Path,
    num_parameters: int,
    *,
    preview: DataPreview | None = None,
    made: str = "",
) -> str:
    """Markdown that says what the model is, how to use it, how well it does, and how it was made.

    Captions, questions and kinds of files in its code are those of the run's own data, as far as `preview` has them.
    `made` is a sentence in place of that on training it again.
    """
    labels, git = config.labels, environment.get("git")
    versions = {"impresa": environment.get("impresa"), "torch": environment.get("packages", {}).get("torch")}
    versions["python"] = environment.get("python")
    answers, has_audio = config.decoder is not None, config.audio_encoder is not None
    modalities = ["visual-question-answering" if answers else "image-text", *(["audio"] if has_audio else [])]
    sees, hears = bool(evaluation.num_images) or not evaluation.num_sounds, bool(evaluation.num_sounds)
    asked = " and ".join(name for name, is_there in (("images", sees), ("sounds", hears)) if is_there)
    about = f"Images{', texts and sounds' if has_audio else ' and texts'} in one embedding space."
    samples = preview.samples if preview is not None else ()
    splits = {} if preview is None else preview.splits
    facts = {
        "Model": labels.model or None,
        **_encoders(config),
        "Parameters": f"{num_parameters:,}",
        "Trained on": config.dataset.train_path,
        "Rows": ", ".join(f"{split} {number:,}" for split, number in splits.items()) or None,
        "Started": environment.get("started"),
        "Command": shlex.join(environment.get("command", ())) or None,
        "Seed": environment.get("seed", config.seed),
        "Versions": ", ".join(f"{name} {found}" for name, found in versions.items() if found) or None,
        "Commit": git and git["commit"] + (" with changes" if git["has_changes"] else ""),
    }
    return render(
        "card.md.j2",
        tags=["impresa", *modalities, *labels.tags],
        title=" ".join(filter(None, (config.name, labels.version))),
        about=labels.description or (f"Answers questions about {asked}." if answers else about),
        answers=answers,
        sees=sees,
        has_audio=has_audio,
        has_captions=evaluation.answers is not None and CAPTION in evaluation.answers.kinds,
        images=_image_names(samples),
        texts=_texts(samples, answers=answers),
        run_dir=repr(str(run_dir)),
        summary=summary(evaluation),
        warnings=warnings(evaluation),
        tables=make_tables(evaluation),
        interval_note=interval_note(make_tables(evaluation)),
        made=made,
        facts={name: fact for name, fact in facts.items() if fact is not None},
    )


def _encoders(config: ExperimentConfig) -> dict[str, str]:
    """The encoders that a decoder stands on, with the run that each comes from."""
    return towers_in_words(config) if config.decoder is not None else {}


def _image_names(samples: Sequence[TrainingSample]) -> list[str]:
    """Two names of images as Python writes them, with the suffix that most of the data's own files have."""
    suffixes = [suffix for sample in samples if (suffix := PurePath(sample.id).suffix.lower()) in image_suffixes()]
    suffix = max(suffixes, key=suffixes.count, default=".jpg")
    return [_python(f"{name}{suffix}") for name in "ab"]


def _texts(samples: Sequence[TrainingSample], *, answers: bool) -> list[str]:
    """Two different captions, or a question, as Python writes them."""
    if answers:
        found = [question for sample in samples for question, _ in sample.questions] or ["what is in the picture?"]
    else:
        found = [caption for sample in samples for caption in sample.captions] or ["a text", "another text"]
    return list(map(_python, dict.fromkeys(found)))[:2]


def _python(text: str) -> str:
    """A literal on one line that neither ends its block of code nor steers a terminal."""
    short = text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
    return printable(json.dumps(short, ensure_ascii=False).replace("```", "\\x60\\x60\\x60"))
