"""The model card: a run's README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.evaluation.results import AnswerMetrics, DirectionMetrics, Evaluation

NUM_EXAMPLE_SENTENCES = 2


def model_card(
    config: ExperimentConfig, evaluation: Evaluation, environment: dict[str, Any], run_dir: Path, num_parameters: int
) -> str:
    """Markdown that says what the model is, how to use it, how well it does, and how it was made."""
    sections = (
        _head(config),
        _use(config, run_dir),
        _figures(evaluation),
        _making(config, environment, num_parameters),
    )
    return "\n\n".join(sections) + "\n"


def _head(config: ExperimentConfig) -> str:
    labels = config.labels
    hears = config.audio_encoder is not None
    modalities = [
        "image-text" if config.decoder is None else "visual-question-answering",
        *(["audio"] if hears else []),
    ]
    tags = ["tags:", *(f"- {json.dumps(tag, ensure_ascii=False)}" for tag in ("impresa", *modalities, *labels.tags))]
    title = f"# {config.name}" + (f" {labels.version}" if labels.version else "")
    what = "Images, texts and sounds" if hears else "Images and texts"
    about = labels.description or f"{what} in one embedding space."
    if config.decoder is not None:
        about = labels.description or "Answers questions about images."
    return "\n".join(["---", "library_name: impresa", *tags, "---", "", title, "", about])


def _use(config: ExperimentConfig, run_dir: Path) -> str:
    hears = config.audio_encoder is not None
    if config.decoder is not None:
        sounds = ', sounds=["a.wav"]' if hears else ""
        return f"""## Use

```python
import impresa

model = impresa.load({str(run_dir)!r})
print(model.ask("a.jpg", "how many shapes are there?"{sounds}))
print(model.caption(["a.jpg", "b.jpg"]))
```"""
    sounds = '\nsounds = model.encode_audio(["a.wav", "b.mp3"])' if hears else ""
    return f"""## Use

```python
import impresa

model = impresa.load({str(run_dir)!r})
images = model.encode_image(["a.jpg", "b.jpg"])
texts = model.encode_text(["a red circle", "two dogs"]){sounds}
print(model.similarity(images, texts))
```"""


def _figures(evaluation: Evaluation) -> str:
    if evaluation.answers is not None:
        return _answers(evaluation, evaluation.answers)
    lines = [
        "## Evaluation",
        "",
        f"On {evaluation.data}: {evaluation.num_images} images, {evaluation.num_texts} captions "
        f"({evaluation.num_distinct_texts} distinct).",
    ]
    if evaluation.retrieval is not None:
        lines += ["", "| | R@1 | R@5 | R@10 | mean rank | median rank |", "|---|---|---|---|---|---|"]
        rows = {"": evaluation.retrieval, **{f" ({name})": found for name, found in evaluation.baselines.items()}}
        for which, found in rows.items():
            lines.append(_row(f"image to text{which}", found.image_to_text))
            lines.append(_row(f"text to image{which}", found.text_to_image))
    if evaluation.sound:
        lines += ["", "| | R@1 | R@5 | R@10 | mean rank | median rank |", "|---|---|---|---|---|---|"]
        for direction, by_name in evaluation.sound.items():
            for name, metrics in by_name.items():
                lines.append(_row(direction.replace("_", " ") + ("" if name == "model" else f" ({name})"), metrics))
    if evaluation.zero_shot is not None:
        shot = evaluation.zero_shot
        lines += [
            "",
            f"Zero-shot classification: {shot.accuracy:.1%} of {shot.num_samples} images are named right "
            f"({len(shot.classes)} classes; chance {shot.chance:.1%}, most frequent class {shot.majority:.1%}).",
        ]
    return "\n".join(lines)


def _answers(evaluation: Evaluation, answers: AnswerMetrics) -> str:
    rows = [
        f"| {name} | {scores.num_questions} | {scores.exact_match:.1%} | {scores.token_f1:.1%} |"
        for name, scores in (
            *answers.rows().items(),
            *((f"of type {kind}", by_name["model"]) for kind, by_name in answers.kinds.items()),
        )
    ]
    lines = [
        "## Evaluation",
        "",
        f"On {evaluation.data}: {evaluation.num_texts} questions about {evaluation.num_images} images.",
        "",
        "| | questions | exact match | token F1 |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Perplexity of the right answers: {answers.perplexity:.2f}.",
    ]
    if not answers.looks_at_images:
        lines += ["", "The model is not looking: other images give the same answers."]
    return "\n".join(lines)


def _row(name: str, found: DirectionMetrics) -> str:
    recalls = " | ".join(f"{found.recall_at[k]:.1%}" for k in (1, 5, 10))
    return f"| {name} | {recalls} | {found.mean_rank:.1f} | {found.median_rank:.1f} |"


def _making(config: ExperimentConfig, environment: dict[str, Any], num_parameters: int) -> str:
    git = environment["git"]
    facts = {
        "Model": config.labels.model or None,
        "Parameters": f"{num_parameters:,}",
        "Trained on": config.dataset.train_path,
        "Started": environment["started"],
        "Command": f"`{' '.join(environment['command'])}`",
        "Seed": environment["seed"],
        "Versions": f"impresa {environment['impresa']}, torch {environment['packages']['torch']}, "
        f"python {environment['python']}",
        "Commit": git and git["commit"] + (" with changes" if git["has_changes"] else ""),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return "\n".join(
        [
            "## How it was made",
            "",
            *lines,
            "",
            "`config.yaml` holds every setting; training it again "
            "gives the same model. `report.html` shows curves and examples.",
        ]
    )
