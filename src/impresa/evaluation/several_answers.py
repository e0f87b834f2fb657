"""Scores of an answer against several right ones: the rule of the VQA challenge, and ANLS.

The VQA challenge (Antol et al. 2015) asks ten people. An answer is compared with each nine of them: it is right if
three or more said the same, and a third right for each one that did; its accuracy is the mean over the ten nines. Texts
are normalised first as the challenge does it. Its script leaves them as they are where all people agree to the letter;
here they are always normalised.

ANLS (Biten et al. 2019) is for answers that are read off, as in DocVQA: one less the edit distance over the length of
the longer text, of the nearest right answer, and 0 below a half.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

_ENOUGH = 3
"""People who said the same make an answer right."""
LEAST_PEOPLE = _ENOUGH + 1
"""With fewer right answers the rule gives nobody full marks."""
ANLS_THRESHOLD = 0.5

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = "zero one two three four five six seven eight nine ten"
_DIGIT_OF = {"none": "0"} | {word: str(digit) for digit, word in enumerate(_DIGITS.split())}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't isn't mightn't
    mightn't've might've mustn't must've needn't not've oughtn't shan't should've shouldn't shouldn't've wasn't weren't
    won't would've wouldn't wouldn't've he'd he'd've he's she'd've it'd it'd've it'll we'd've we've they'd they'd've
    they'll they're they've you'd you'd've you'll you're you've y'all y'all'll y'all'd've somebody'd somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's how'd how'll how's what'll what're what's what've when's where'd where's
    where've who'd who'd've who'll who's who've why'll why're why's ma'am o'clock 'twas
"""
"""Words that are often written with an apostrophe missing; those of which that is no other word, such as its, ill or
well."""


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy of an answer by the rule of the VQA challenge, 0 to 1; the module has the rule."""
    counts, ours = Counter(map(vqa_normalized, references)), vqa_normalized(answer)
    same, others = counts[ours], len(references) - counts[ours]
    # One that said the same leaves one less to agree with; any other leaves all of them.
    right = same * min((same - 1) / _ENOUGH, 1) + others * min(same / _ENOUGH, 1)
    return right / len(references)


def anls(answer: str, references: Sequence[str]) -> float:
    """The similarity of an answer to the nearest of the right ones, 0 to 1; case and width of spaces do not count."""
    return max(_similarity(*(" ".join(text.lower().split()) for text in (answer, right))) for right in references)


def vqa_normalized(text: str) -> str:
    """Lower case, without punctuation and articles, numbers up to ten as digits, apostrophes where they belong."""
    words = (_DIGIT_OF.get(word, word) for word in _without_punctuation(" ".join(text.split())).lower().split())
    return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A sign at the end or start of a word goes, and each sign if a number has commas; one within a word is a space."""
    has_comma = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for sign in _PUNCTUATION:
        goes = has_comma or f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if goes else " ")
    return _POINT.sub("", found)


@cache
def _contractions() -> dict[str, str]:
    return {spelling: word for word in _CONTRACTED.split() for spelling in _spellings(word)}


def _spellings(word: str) -> Iterator[str]:
    """The word with some or all of its apostrophes missing."""
    first, *parts = word.split("'")
    for signs in product(("'", ""), repeat=len(parts)):
        if "" in signs:
            yield first + "".join(f"{sign}{part}" for sign, part in zip(signs, parts, strict=True))


def _similarity(ours: str, theirs: str) -> float:
    longest = max(len(ours), len(theirs))
    if not longest:
        return 1.0
    similarity = 1 - edit_distance(ours, theirs) / longest
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def edit_distance(first: str, second: str) -> int:
    """Characters that must be put in, taken out or replaced to make one text of another (Levenshtein)."""
    before = list(range(len(second) + 1))
    for row, ours in enumerate(first, start=1):
        now = [row]
        for column, theirs in enumerate(second, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (ours != theirs)))
        before = now
    return before[-1]
