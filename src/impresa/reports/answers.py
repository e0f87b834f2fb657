"""The sections of the report that a vision-language model has: how it answers, and a few of its answers."""

from __future__ import annotations

from impresa.evaluation.results import AnsweredQuestion, AnswerMetrics, AnswerScores, Evaluation, Gallery
from impresa.reports.markup import Markup, fill, join
from impresa.reports.sections import NOTHING, percent

COLUMNS = ("questions", "exact match", "token F1")
KIND_COLUMNS = {"model": "model", "shuffled": "other images", "blind": "most frequent answer"}


def results(evaluation: Evaluation) -> Markup:
    """The tables of all figures: with the right images, with others, without any, and by type of question."""
    answers = evaluation.answers
    if answers is None:
        return NOTHING
    rows = [
        fill(
            '<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>',
            kind="model" if name == "model" else "baseline",
            name=name,
            cells=join(_cells(scores)),
        )
        for name, scores in answers.rows().items()
    ]
    return fill(
        '<section><h2>Answers</h2>{warning}<p class="soft small">{data}: {texts} questions about {images} images. '
        "Exact match and F1 of words compare lower case without punctuation and articles. With “other images” each "
        "question is asked about another image of the data; the most frequent answer is that to the same question in "
        "training, or to its type. Loss {loss}, perplexity {perplexity}, {bleu}ROUGE-L {rouge}.</p>"
        '<div class="card scroll"><table><thead><tr><th></th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
        "{kinds}</section>",
        warning=NOTHING if answers.looks_at_images else _not_looking(),
        data=evaluation.data,
        texts=f"{evaluation.num_texts:,}",
        images=f"{evaluation.num_images:,}",
        loss=f"{answers.loss:.3f}",
        perplexity=f"{answers.perplexity:.2f}",
        bleu="" if answers.bleu is None else f"BLEU {answers.bleu:.3f}, ",
        rouge=f"{answers.rouge_l:.3f}",
        columns=join(fill("<th>{name}</th>", name=name) for name in COLUMNS),
        rows=join(rows),
        kinds=_kinds(answers),
    )


def examples(gallery: Gallery) -> Markup:
    """Questions with the model's answers, right ones in green and wrong ones in red."""
    if not gallery.questions:
        return NOTHING
    return fill(
        '<section><h2>What it answers</h2><p class="soft small">Questions at even distances through the data, not '
        'picked by hand.</p><div class="grid wide">{cards}</div></section>',
        cards=join(_example(question) for question in gallery.questions),
    )


def _not_looking() -> Markup:
    return fill(
        '<div class="card"><p><b>The model is not looking.</b> Asked about other images it answers as well: what it '
        "knows comes from the words of the questions alone.</p></div>"
    )


def _cells(scores: AnswerScores) -> list[Markup]:
    values = (f"{scores.num_questions:,}", percent(scores.exact_match), percent(scores.token_f1))
    return [fill("<td>{value}</td>", value=value) for value in values]


def _kinds(answers: AnswerMetrics) -> Markup:
    if not answers.kinds:
        return NOTHING
    names = [
        name
        for name in KIND_COLUMNS
        if all(name in scores for scores in answers.kinds.values())
        and any(scores[name].num_questions for scores in answers.kinds.values())
    ]
    rows = [
        fill(
            '<tr><th scope="row">{kind}</th><td>{num}</td>{cells}</tr>',
            kind=kind,
            num=f"{scores['model'].num_questions:,}",
            cells=join(fill("<td>{value}</td>", value=_exact_match(scores[name])) for name in names),
        )
        for kind, scores in answers.kinds.items()
    ]
    return fill(
        '<h3>Exact match by type of question</h3><div class="card scroll"><table><thead><tr><th></th><th>questions</th>'
        "{columns}</tr></thead><tbody>{rows}</tbody></table></div>",
        columns=join(fill("<th>{name}</th>", name=KIND_COLUMNS[name]) for name in names),
        rows=join(rows),
    )


def _exact_match(scores: AnswerScores) -> str:
    return percent(scores.exact_match) if scores.num_questions else "-"


def _example(found: AnsweredQuestion) -> Markup:
    picture = NOTHING
    if found.image is not None:
        kind = "picture pixels" if found.image.startswith("data:image/png") else "picture"
        picture = fill('<img class="{kind}" src="{uri}" alt="asked about" loading="lazy">', kind=kind, uri=found.image)
    return fill(
        '<div class="card query">{picture}<div class="found"><h3 class="caption" title="{question}">{question}</h3>'
        '<p><span class="mark {verdict}">{mark}</span> {answer}</p>{expected}</div></div>',
        picture=picture,
        question=found.question,
        verdict="right" if found.right else "wrong",
        mark="✓" if found.right else "✗",
        answer=found.answer or "(nothing)",
        expected=NOTHING if found.right else fill('<div class="expected">Right: {answer}</div>', answer=found.expected),
    )
