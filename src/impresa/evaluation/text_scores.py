"""Comparing generated texts with right ones, see `impresa.evaluation.normalizing` for what counts as the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from impresa.evaluation.bootstrap import Floats, PerQuery, Statistic
from impresa.evaluation.normalizing import normalized
from impresa.evaluation.results import AnswerScores
from impresa.evaluation.several_answers import LEAST_PEOPLE, anls, vqa_accuracy

_NO_WORD = re.compile(r"[\W_]+")
_BLEU_WORDS = 4


def exact_match(answer: str, expected: str) -> bool:
    """True if two texts are the same once normalised."""
    return normalized(answer) == normalized(expected)


def token_f1(answer: str, expected: str) -> float:
    """F1 of the words of a text with those of the right one, normalised and cut at spaces; 1 when both have none."""
    ours, theirs = normalized(answer).split(), normalized(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


Metric = Callable[[str, Sequence[str]], float]
"""Compares an answer with all right ones."""


def is_right(answer: str, references: Sequence[str]) -> bool:
    """True for an exact match with any right answer."""
    return any(exact_match(answer, right) for right in references)


def best_f1(answer: str, references: Sequence[str]) -> float:
    """The F1 with the nearest right answer."""
    return max(token_f1(answer, right) for right in dict.fromkeys(references))


def metrics_for(references: Collection[Sequence[str]], *, are_lists: bool) -> dict[str, Metric]:
    """The metrics of questions with these right answers, by name, the one that decides first after `exact_match`.

    `vqa_accuracy` needs four right answers to each question, `anls` is for data that list the right answers
    (`are_lists`).
    """
    found: dict[str, Metric] = {"exact_match": is_right}
    if references and all(len(right) >= LEAST_PEOPLE for right in references):
        found["vqa_accuracy"] = vqa_accuracy
    if are_lists:
        found["anls"] = anls
    return {**found, "token_f1": best_f1}


def score(
    pairs: Iterable[tuple[str, Sequence[str]]],
    item: Sequence[int] | None = None,
    metrics: Mapping[str, Metric] = MappingProxyType({"exact_match": is_right, "token_f1": best_f1}),
) -> AnswerScores:
    """Means over pairs of an answer and the right ones; 0 where there are none.

    `item` has the number, from 0, of the item that each question is about; without it each is one of its own.
    """
    pairs = list(pairs)
    scores = {name: np.array([metric(a, e) for a, e in pairs], dtype=np.float64) for name, metric in metrics.items()}
    return AnswerScores(
        num_questions=len(pairs),
        **{name: float(found.sum()) / max(len(pairs), 1) for name, found in scores.items()},
        queries=per_question(scores, range(len(pairs)) if item is None else item),
    )


def per_question(scores: dict[str, Floats], item: Sequence[int]) -> PerQuery:
    """Scores (Q,) of questions about the items with these numbers."""
    items = np.asarray(item, dtype=np.int64)
    return PerQuery(scores, items, int(items.max(initial=-1)) + 1)


def answer_statistics(
    answers: Sequence[str], references: Sequence[Sequence[str]], item: Sequence[int]
) -> dict[str, Statistic]:
    """`rouge_l` with the nearest right answer, and `bleu` with all where one has four words, as functions of the
    questions about each item."""
    expected = [tuple(dict.fromkeys(right)) for right in references]
    rouge = np.array([max(rouge_l(a, text) for text in right) for a, right in zip(answers, expected, strict=True)])
    found = {"rouge_l": per_question({"rouge_l": rouge}, item).mean("rouge_l", bounds=(0, 1))}
    if any(len(text.split()) >= _BLEU_WORDS for right in expected for text in right):
        found["bleu"] = bleu_statistic(answers, expected, item)
    return found


def bleu_statistic(answers: Sequence[str], references: Sequence[Sequence[str]], item: Sequence[int]) -> Statistic:
    """Corpus BLEU (Papineni et al. 2002) of up to four words, from the counts of single answers by torchmetrics.

    It is 0 where no four words in a row are right anywhere, and says nothing about shorter texts.
    """
    from torchmetrics.text import BLEUScore

    counts = []
    metric = BLEUScore(n_gram=_BLEU_WORDS)
    for answer, right in zip(answers, references, strict=True):
        metric.reset()
        metric.update([answer.lower()], [[text.lower() for text in right]])
        counts.append([*metric.numerator, metric.preds_len, *metric.denominator, metric.target_len])
    columns = np.array(counts, dtype=np.float64).T
    questions = per_question({str(number): column for number, column in enumerate(columns)}, item)
    sums = tuple(questions.sums(str(number)) for number in range(len(columns)))
    return Statistic(sums[: _BLEU_WORDS + 1], sums[_BLEU_WORDS + 1 :], of_ratios=_bleu_of_ratios, bounds=(0, 1))


def _bleu_of_ratios(ratios: Floats) -> Floats:
    """BLEU from the shares of right n-grams and the length of the answers over that of the right ones."""
    *precisions, length = np.maximum(ratios, 1e-300)
    found: Floats = np.exp(np.log(precisions).mean(axis=0) + np.minimum(0, 1 - 1 / length))
    return np.where(np.min(precisions, axis=0) > 1e-300, found, 0)


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence (Lin 2004), by torchmetrics, of words in any script."""
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(answer, expected, rouge_keys="rougeL", normalizer=_words)
    return float(scores["rougeL_fmeasure"])


def _words(text: str) -> str:
    """The normalisation that torchmetrics has for ASCII, for every script: its own leaves nothing of the others."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFC", text).lower())
