"""The model card: a run's README."""

from __future__ import annotations

import shlex
from pathlib import Path

from impresa.config.experiment import ExperimentConfig
from impresa.evaluation.results import Evaluation
from impresa.reports.rendering import render
from impresa.reports.tables import interval_note, make_tables, summary, warnings
from impresa.run_dir.environment import Environment


def model_card(
    config: ExperimentConfig,
    evaluation: Evaluation,
    environment: Environment,
    run_dir: Path,
    num_parameters: int,
    *,
    made: str = "",
) -> str:
    """Markdown that says what the model is, how to use it, how well it does, and how it was made; `made` is a sentence
    in place of that on training it again."""
    labels, git = config.labels, environment.get("git")
    versions = {"impresa": environment.get("impresa"), "torch": environment.get("packages", {}).get("torch")}
    versions["python"] = environment.get("python")
    answers, has_audio = config.decoder is not None, config.audio_encoder is not None
    modalities = ["visual-question-answering" if answers else "image-text", *(["audio"] if has_audio else [])]
    about = f"Images{', texts and sounds' if has_audio else ' and texts'} in one embedding space."
    facts = {
        "Model": labels.model or None,
        "Parameters": f"{num_parameters:,}",
        "Trained on": config.dataset.train_path,
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
        about=labels.description or ("Answers questions about images." if answers else about),
        answers=answers,
        has_audio=has_audio,
        run_dir=repr(str(run_dir)),
        summary=summary(evaluation),
        warnings=warnings(evaluation),
        tables=make_tables(evaluation),
        interval_note=interval_note(make_tables(evaluation)),
        made=made,
        facts={name: fact for name, fact in facts.items() if fact is not None},
    )
