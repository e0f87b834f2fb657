"""Comparing generated texts with right ones.

Texts are normalised as SQuAD does (Rajpurkar et al. 2016): lower case, without punctuation and articles. That is made
for English phrases; answers of numbers, signs and other scripts would be confused by it, so here

- punctuation is what Unicode calls so, in every script, and equal characters are equal however they are composed;
- a number keeps its sign, its point, and what else joins its digits ("1.5" is not "15", "3-5" not "35"), but neither a
  plus nor commas between thousands;
- symbols that carry meaning stay ("c+", "$5");
- where nothing would remain, what was there stays ("+", "-", "...", and the choice "A").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from impresa.evaluation.results import AnswerScores

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"((?:(?<!\w)[-+]?\.?)?\d+(?:[.,:/-]\d+)*)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NO_WORD = re.compile(r"[\W_]+")
_PLAIN = str.maketrans({"\u2212": "-", "\u02bc": "'"})
"""Unicode's minus, and the apostrophe that it calls a letter."""
_BLEU_WORDS = 4


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces; the module says how it differs from SQuAD's."""
    text = unicodedata.normalize("NFC", text).lower().translate(_PLAIN)
    for shorter in (_without_punctuation(text), _ARTICLES.sub(" ", _without_punctuation(text))):
        text = shorter if shorter.strip() else text
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    pieces = _NUMBER.split(text)  # what is no number and numbers, in turn
    pieces[::2] = ["".join(filter(_is_kept, piece)) for piece in pieces[::2]]
    pieces[1::2] = [_THOUSANDS.sub("", number.removeprefix("+")) for number in pieces[1::2]]
    return "".join(pieces)


def _is_kept(character: str) -> bool:
    """False for punctuation, and for accents that stand alone, such as the back quote."""
    category = unicodedata.category(character)
    return not category.startswith("P") and category != "Sk"


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
