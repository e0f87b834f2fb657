"""Comparing generated texts with right ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from impresa.evaluation.results import AnswerScores

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces: how SQuAD (Rajpurkar et al. 2016) compares."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether two texts are the same once normalised."""
    return normalized(answer) == normalized(expected)


def token_f1(answer: str, expected: str) -> float:
    """F1 of the words of a text with those of the right one, normalised; 1 when both have none."""
    ours, theirs = normalized(answer).split(), normalized(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def score(answers: Sequence[str], expected: Sequence[str]) -> AnswerScores:
    """Means over pairs of an answer and the right one; there is at least one."""
    pairs = list(zip(answers, expected, strict=True))
    return AnswerScores(
        num_questions=len(pairs),
        exact_match=sum(exact_match(a, e) for a, e in pairs) / len(pairs),
        token_f1=sum(token_f1(a, e) for a, e in pairs) / len(pairs),
    )


def bleu(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Corpus BLEU (Papineni et al. 2002) of up to four words, by torchmetrics; texts of one word score 0."""
    from torchmetrics.functional.text import bleu_score

    return float(bleu_score([a.lower() for a in answers], [[e.lower()] for e in expected]))


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence (Lin 2004), by torchmetrics."""
    from torchmetrics.functional.text import rouge_score

    return float(rouge_score(list(answers), list(expected), rouge_keys="rougeL")["rougeL_fmeasure"])
