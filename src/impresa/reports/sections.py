"""The sections of the report. Each takes plain results and returns markup, empty where there is nothing to show."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.evaluation.results import (
    Answer,
    DirectionMetrics,
    Evaluation,
    Example,
    Gallery,
    ZeroShotMetrics,
    direction_title,
)
from impresa.reports.charts import line_chart, matrix_png
from impresa.reports.history import Curve
from impresa.reports.markup import Markup, fill, join

NOTHING = Markup("")
MAX_TABLE_CLASSES = 20
MAX_LISTED = 20
COLUMNS = ("R@1", "R@5", "R@10", "median rank", "mean rank")
CHARTS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Validation R@1": {
        "val_image_to_text_recall_at_1": "image → text",
        "val_text_to_image_recall_at_1": "text → image",
    },
    "Validation exact match": {"val_exact_match": "greedy answers"},
    "Learning rate": {"lr": "learning rate"},
}


def header(name: str, config: ExperimentConfig | None, environment: Mapping[str, Any]) -> Markup:
    """Name and description of the run, and when it started."""
    labels = config.labels if config else None
    facts = [labels.version, *labels.tags] if labels else []
    started = str(environment.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    return fill(
        '<header><p class="eyebrow">Impresa run report</p><h1>{name}</h1>'
        '<p class="soft">{description}</p><p class="soft small">{facts}</p></header>',
        name=name,
        description=labels.description if labels else "",
        facts=" · ".join(fact for fact in (started, *facts) if fact),
    )


def no_evaluation(run_dir: Path) -> Markup:
    """What to do when the run has no figures yet."""
    return fill(
        '<section class="grid"><div class="card">This run has not been evaluated yet. <code>impresa eval {run}</code> '
        "does it and fills in this page.</div></section>",
        run=shlex.quote(str(run_dir)),
    )


def headline(evaluation: Evaluation) -> Markup:
    """One card for each headline figure, with the baselines as bars under it."""
    cards = []
    if evaluation.retrieval:
        rows = {"model": evaluation.retrieval, **evaluation.baselines}
        image_to_text = {name: metrics.image_to_text.recall_at[1] for name, metrics in rows.items()}
        text_to_image = {name: metrics.text_to_image.recall_at[1] for name, metrics in rows.items()}
        cards += [
            _headline_card("Image → text, R@1", image_to_text),
            _headline_card("Text → image, R@1", text_to_image),
        ]
    if answers := evaluation.answers:
        rows_of_answers = answers.rows()
        exact = {name: scores.exact_match for name, scores in rows_of_answers.items()}
        cards.append(_headline_card("Exact match", exact))
        cards.append(_headline_card("Token F1", {name: scores.token_f1 for name, scores in rows_of_answers.items()}))
    if scores := evaluation.zero_shot:
        bars = {"model": scores.accuracy, "most frequent class": scores.majority, "chance": scores.chance}
        cards.append(_headline_card("Zero-shot accuracy", bars))
    return fill('<section class="grid">{cards}</section>', cards=join(cards))


def _headline_card(title: str, bars: Mapping[str, float]) -> Markup:
    rows = [
        fill(
            '<div class="{kind}"><span>{name}</span><i><b style="width:{share}"></b></i>'
            '<span class="number">{share}</span></div>',
            kind="model" if name == "model" else "baseline",
            name=name,
            share=percent(value),
        )
        for name, value in bars.items()
    ]
    return fill(
        '<div class="card"><p class="eyebrow">{title}</p><div class="headline number">{value}</div>'
        '<div class="bars">{rows}</div></div>',
        title=title,
        value=percent(bars["model"]),
        rows=join(rows),
    )


def results(evaluation: Evaluation) -> Markup:
    """The table of all retrieval figures, baselines included."""
    if evaluation.retrieval is None:
        return NOTHING
    rows = [
        fill(
            '<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>',
            kind="model" if name == "model" else "baseline",
            name=name,
            cells=join([*_cells(metrics.image_to_text), *_cells(metrics.text_to_image)]),
        )
        for name, metrics in evaluation.retrieval_rows().items()
    ]
    return fill(
        '<section><h2>Retrieval</h2><p class="soft small">{data}: {images} images, {texts} captions ({distinct} '
        "distinct). R@k: share of queries with a right answer among the first k. Ties count against the "
        "model; captions that read the same are one text, right for each of its images.</p>"
        '<div class="card scroll"><table><thead><tr><th></th>'
        '<th class="group" colspan="5">Image → text</th><th class="group" colspan="5">Text → image</th></tr>'
        "<tr><th></th>{columns}</tr></thead><tbody>{rows}</tbody></table></div></section>",
        data=evaluation.data,
        images=f"{evaluation.num_images:,}",
        texts=f"{evaluation.num_texts:,}",
        distinct=f"{evaluation.num_distinct_texts:,}",
        columns=join(fill("<th>{name}</th>", name=name) for name in COLUMNS * 2),
        rows=join(rows),
    )


def sound(evaluation: Evaluation) -> Markup:
    """The table of retrieval between sounds and the other modalities."""
    if not evaluation.sound:
        return NOTHING
    rows = [
        fill(
            '<tr class="{kind}"><th scope="row">{direction}, {name}</th>{cells}</tr>',
            kind="model" if name == "model" else "baseline",
            direction=direction_title(direction),
            name=name,
            cells=join(_cells(metrics)),
        )
        for direction, found in evaluation.sound.items()
        for name, metrics in found.items()
    ]
    return fill(
        '<section><h2>Retrieval with sound</h2><p class="soft small">{sounds} samples have a sound. Each pair is '
        "judged on the samples that have both; sounds that are equal are one.</p>"
        '<div class="card scroll"><table><thead><tr><th></th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</section>",
        sounds=f"{evaluation.num_sounds:,}",
        columns=join(fill("<th>{name}</th>", name=name) for name in COLUMNS),
        rows=join(rows),
    )


def _cells(metrics: DirectionMetrics) -> list[Markup]:
    values = [percent(metrics.recall_at[k]) for k in (1, 5, 10)]
    values += [f"{metrics.median_rank:g}", f"{metrics.mean_rank:.1f}"]
    return [fill("<td>{value}</td>", value=value) for value in values]


def curves(history: Mapping[str, Curve]) -> Markup:
    """Losses, validation retrieval and learning rate over the optimizer steps, as far as they were recorded."""
    cards = []
    for title, columns in CHARTS.items():
        found = {name: history[column] for column, name in columns.items() if column in history}
        if found:
            chart = Markup(line_chart(title, found))
            cards.append(fill('<div class="card"><h3>{title}</h3>{chart}</div>', title=title, chart=chart))
    if not cards:
        return NOTHING
    return fill('<section><h2>Training</h2><div class="grid">{cards}</div></section>', cards=join(cards))


def examples(gallery: Gallery) -> Markup:
    """Retrieval examples in both directions, right answers in green and wrong ones in red."""
    if not gallery.image_queries:
        return NOTHING
    return fill(
        '<section><h2>What an image finds</h2><p class="soft small">The five nearest captions for a few images, taken '
        "at even distances through the data and not picked by hand. The number is the cosine similarity.</p>"
        '<div class="grid wide">{images}</div></section>'
        '<section><h2>What a text finds</h2><p class="soft small">The five nearest images for a few captions.</p>'
        '<div class="grid wide">{texts}</div></section>',
        images=join(_image_query(example) for example in gallery.image_queries),
        texts=join(_text_query(example) for example in gallery.text_queries),
    )


def _image_query(example: Example) -> Markup:
    rows = [
        fill(
            '<li><span class="mark {kind}">{mark}</span><span class="caption" title="{caption}">{caption}</span>'
            '<span class="score">{score}</span></li>',
            kind=_kind(answer),
            mark=_mark(answer),
            caption=answer.caption or "",
            score=f"{answer.score:.2f}",
        )
        for answer in example.answers
    ]
    expected = NOTHING
    if not any(answer.right for answer in example.answers):
        expected = fill('<div class="expected">Right: {caption}</div>', caption=example.captions[0])
    return fill(
        '<div class="card query">{image}<div class="found"><ol class="texts">{rows}</ol>{expected}</div></div>',
        image=_picture(example.image, example.captions[0]),
        rows=join(rows),
        expected=expected,
    )


def _text_query(example: Example) -> Markup:
    rows = [
        fill(
            '<li class="{kind}">{image}<span class="{kind}">{mark}</span> <span class="score">{score}</span></li>',
            kind=_kind(answer),
            image=_picture(answer.image, f"{_kind(answer)} answer"),
            mark=_mark(answer),
            score=f"{answer.score:.2f}",
        )
        for answer in example.answers
    ]
    return fill(
        '<div class="card"><h3 class="caption" title="{caption}">{caption}</h3><ol class="pictures">{rows}</ol></div>',
        caption=example.captions[0],
        rows=join(rows),
    )


def _picture(uri: str | None, description: str) -> Markup:
    # Small pictures are enlarged without blur. A data URI holds no character that would end the attribute.
    kind = "picture pixels" if uri and uri.startswith("data:image/png") else "picture"
    return fill(
        '<img class="{kind}" src="{uri}" alt="{text}" loading="lazy">', kind=kind, uri=uri or "", text=description
    )


def _kind(answer: Answer) -> str:
    return "right" if answer.right else "wrong"


def _mark(answer: Answer) -> str:
    return "✓" if answer.right else "✗"


def similarity(gallery: Gallery) -> Markup:
    """Heat map of the cosines of a small sample of images with its captions."""
    if not gallery.similarity:
        return NOTHING
    scores = [score for row in gallery.similarity for score in row]
    return fill(
        '<section><h2>Similarity</h2><p class="soft small">Cosine similarity of {n} images (rows) with their captions '
        "(columns), a sample at even distances. A good model has a bright diagonal on a dark ground.</p>"
        '<div class="card beside"><div class="heat"><img class="pixels" src="{heat}" alt="similarity of {n} images '
        'with {n} captions"><div class="scale number"><span>{low}</span><i></i><span>{high}</span></div></div>'
        '<ol class="small soft">{captions}</ol></div></section>',
        n=len(gallery.similarity),
        heat=matrix_png(gallery.similarity),
        low=f"{min(scores):.2f}",
        high=f"{max(scores):.2f}",
        captions=join(fill("<li>{caption}</li>", caption=caption) for caption in gallery.similarity_captions),
    )


def zero_shot(scores: ZeroShotMetrics | None) -> Markup:
    """Confusion matrix of zero-shot classification; for many classes a picture and the most frequent confusions."""
    if scores is None:
        return NOTHING
    many = len(scores.classes) > MAX_TABLE_CLASSES
    return fill(
        '<section><h2>Zero-shot classification</h2><p class="soft small">{right} of {total} images are named right by '
        "the nearest of {classes} class names, each the mean of {prompts} prompt{plural} ({templates}). Rows are the "
        "true classes, columns the names given.</p>{matrix}</section>",
        right=f"{round(scores.accuracy * scores.num_samples):,}",
        total=f"{scores.num_samples:,}",
        classes=len(scores.classes),
        prompts=len(scores.templates),
        plural="" if len(scores.templates) == 1 else "s",
        templates=", ".join(f"“{template}”" for template in scores.templates),
        matrix=_confusion_picture(scores) if many else _confusion_table(scores),
    )


def _confusion_table(scores: ZeroShotMetrics) -> Markup:
    lines = []
    for i, (name, row) in enumerate(zip(scores.classes, scores.confusion, strict=True)):
        total = max(sum(row), 1)
        cells = [
            fill(
                '<td class="{kind}" style="--share:{share}">{count}</td>',
                kind="same" if i == j and count else "other" if count else "none",
                share=f"{count / total:.3f}",
                count=count,
            )
            for j, count in enumerate(row)
        ]
        accuracy = scores.per_class_accuracy.get(name)
        lines.append(
            fill(
                '<tr><th scope="row">{name}</th>{cells}<th>{accuracy}</th></tr>',
                name=name,
                cells=join(cells),
                accuracy="" if accuracy is None else percent(accuracy),
            )
        )
    return fill(
        '<div class="card scroll"><table class="confusion"><thead><tr><th></th>{names}<th>accuracy</th></tr></thead>'
        "<tbody>{lines}</tbody></table></div>",
        names=join(fill("<th>{name}</th>", name=name) for name in scores.classes),
        lines=join(lines),
    )


def _confusion_picture(scores: ZeroShotMetrics) -> Markup:
    pairs = {
        (true, named): count
        for true, row in zip(scores.classes, scores.confusion, strict=True)
        for named, count in zip(scores.classes, row, strict=True)
        if true != named and count
    }
    items = [
        fill("<li><b>{true}</b> named <b>{named}</b>: {count}</li>", count=count, true=true, named=named)
        for (true, named), count in Counter(pairs).most_common(MAX_LISTED)
    ]
    shares = [[count / max(sum(row), 1) for count in row] for row in scores.confusion]
    return fill(
        '<div class="card beside"><div class="heat"><img class="pixels" src="{heat}" alt="confusion matrix"></div>'
        '<div><h3>Most frequent confusions</h3><ul class="plain">{items}</ul></div></div>',
        heat=matrix_png(shares),
        items=join(items) or "none",
    )


def bad_samples(evaluation: Evaluation | None, in_training: Sequence[Mapping[str, Any]]) -> Markup:
    """How many samples could not be used, and the first of them with the reason."""
    found = [("evaluation", note.id, note.reason) for note in evaluation.bad_samples] if evaluation else []
    found = [*((str(row.get("split", "")), row.get("id", ""), row.get("reason", "")) for row in in_training), *found]
    if not found:
        return fill(
            '<section><h2>Bad samples</h2><p class="soft small">None: every sample could be used.</p></section>'
        )
    counts = ", ".join(f"{count:,} in {split}" for split, count in Counter(split for split, _, _ in found).items())
    items = [fill("<li><b>{id}</b> {reason}</li>", id=id, reason=reason) for _, id, reason in found[:MAX_LISTED]]
    return fill(
        '<section><h2>Bad samples</h2><p class="soft small">{counts}; they were skipped.</p><div class="card">'
        "<details><summary>The first {n}</summary><ul class='plain'>{items}</ul></details></div></section>",
        counts=counts,
        n=len(items),
        items=join(items),
    )


def reproduce(config: ExperimentConfig | None, environment: Mapping[str, Any], config_text: str | None) -> Markup:
    """Command, seed, versions and machine, and the whole config."""
    packages = environment.get("packages") or {}
    versions = {"impresa": environment.get("impresa"), "python": environment.get("python"), **packages}
    git = environment.get("git") or {}
    facts = {
        "Seed": environment.get("seed", config.seed if config else None),
        "Versions": ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        "Commit": git and f"{git.get('commit', '')}{' with changes' if git.get('has_changes') else ''}",
        "Machine": environment.get("platform"),
        "Threads": environment.get("threads"),
        "GPUs": ", ".join(environment.get("gpus") or []),
    }
    rows = [fill("<dt>{key}</dt><dd>{value}</dd>", key=k, value=v) for k, v in facts.items() if v not in (None, "", {})]
    parts = [fill('<div class="card"><dl>{rows}</dl></div>', rows=join(rows))] if rows else []
    if command := environment.get("command"):
        parts.insert(0, fill('<pre class="wrap">{command}</pre>', command=shlex.join(map(str, command))))
    if config_text:
        parts.append(
            fill(
                '<div class="card"><details><summary>The whole config</summary><pre>{text}</pre></details></div>',
                text=config_text,
            )
        )
    if not parts:
        return NOTHING
    return fill('<section class="stack"><h2>How it was made</h2>{parts}</section>', parts=join(parts))


def percent(share: float) -> str:
    """A share of 0 to 1 as a percentage with one digit."""
    return f"{share:.1%}"
