"""Comparing generated texts with right ones, see `impresa.evaluation.normalizing` for what counts as the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from impresa.evaluation.normalizing import normalized
from impresa.evaluation.results import AnswerScores

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


def score(pairs: Iterable[tuple[str, str]]) -> AnswerScores:
    """Means over pairs of an answer and the right one; 0 where there are none."""
    pairs = list(pairs)
    num = max(len(pairs), 1)
    return AnswerScores(
        num_questions=len(pairs),
        exact_match=sum(exact_match(a, e) for a, e in pairs) / num,
        token_f1=sum(token_f1(a, e) for a, e in pairs) / num,
    )


def bleu(answers: Sequence[str], expected: Sequence[str]) -> float | None:
    """Corpus BLEU (Papineni et al. 2002) of up to four words, by torchmetrics.

    It is 0 where no four words in a row are right anywhere, and says nothing about shorter texts: None where no right
    one has four words.
    """
    if all(len(text.split()) < _BLEU_WORDS for text in expected):
        return None
    from torchmetrics.functional.text import bleu_score

    return float(bleu_score([a.lower() for a in answers], [[e.lower()] for e in expected]))


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence (Lin 2004), by torchmetrics, of words in any script."""
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(list(answers), list(expected), rouge_keys="rougeL", normalizer=_words)
    return float(scores["rougeL_fmeasure"])


def _words(text: str) -> str:
    """The normalisation that torchmetrics has for ASCII, for every script: its own leaves nothing of the others."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFC", text).lower())
