"""Equality of answers: texts brought to one form before they are compared.

It is that of SQuAD (Rajpurkar et al. 2016): lower case, without punctuation and articles. SQuAD's is made for English
phrases; answers of numbers, signs and other scripts would be confused by it, so here

- punctuation is what Unicode calls so, in every script; equal characters are equal however they are composed and
  however wide they are, a digit is its value in every script, and what has no width is not there;
- a number keeps its sign, its point, and all that joins its digits ("1.5" is not "15", "3-5" not "35", "5'10" not
  "510"), whichever dash or minus it is written with; it keeps no plus;
- what separates complete groups of thousands goes ("1,000", "1'000", "12,34,567", a no-break or thin space), and
  nothing else: "1,2" is not "12". (The script of the VQA challenge, Antol et al. 2015, drops each comma between
  digits.) A point stays, for "1.000" may be one;
- symbols that carry meaning stay ("c+", "$5");
- where nothing would remain, what was there stays ("+", "-", "...", and the choice "A").
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain

_ARTICLES = ("a", "an", "the")
_NUMBER = re.compile(r"((?:(?<!\w)[-+]?\.?)?\d+(?:(?:[^\w\s]|_)+\d+)*)")
_SEPARATOR = r"[,'\u00a0\u2007\u2009\u202f]"
_GROUPS = rf"[1-9]\d{{0,2}}({_SEPARATOR})\d{{3}}(?:\1\d{{3}})*|[1-9]\d?(?:,\d\d)+,\d{{3}}"
"""Of three digits; or, as India has them, of two before the last three."""
_THOUSANDS = re.compile(rf"(?<!\d)(?<!\d[.,'])(?:{_GROUPS})(?!{_SEPARATOR}?\d)")
_NO_DIGIT = re.compile(r"\D")

_SAME = {"-": "−˗➖⁃⁓", "'": "ʼ‘’′", '"': "“”″", "/": "⁄∕", ":": "∶", ".": "٫", ",": "٬،"}  # noqa: RUF001
"""Signs, and others that count as the same; so do, as a hyphen, all that Unicode calls a dash."""
_FOLDED = {character: sign for sign, others in _SAME.items() for character in others}
_UNSEEN = frozenset(
    map(chr, chain((0x034F, 0x115F, 0x1160, 0x180F, 0x3164, 0xFFA0), range(0x180B, 0x180E), range(0xFE00, 0xFE10)))
)
"""Characters without width that are not of the category of the others: joiners, fillers, variation selectors."""
_FLAGS = range(0xE0020, 0xE0080)
"""They have no width either, but tell the flags of regions apart."""


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces; the module says how it differs from SQuAD's."""
    text = unicodedata.normalize("NFC", text.translate(_COUNTS_AS).lower())
    text = _THOUSANDS.sub(lambda number: _NO_DIGIT.sub("", number[0]), text)
    words = _without_punctuation(text).split() or text.split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _without_punctuation(text: str) -> str:
    pieces = _NUMBER.split(text)  # what is no number and numbers, in turn
    pieces[::2] = ["".join(filter(_is_kept, piece)) for piece in pieces[::2]]
    pieces[1::2] = [number.removeprefix("+") for number in pieces[1::2]]
    return "".join(pieces)


def _is_kept(character: str) -> bool:
    """False for punctuation, and for accents that stand alone, such as the back quote."""
    category = unicodedata.category(character)
    return not category.startswith("P") and category != "Sk"


class _CountsAs(dict[int, str]):
    """For `str.translate`: what each character counts as, found when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind, *parts = unicodedata.decomposition(character).split() or [""]
        category = unicodedata.category(character)
        if kind in ("<wide>", "<narrow>", "<small>", "<vertical>"):
            found = "".join(self[int(part, 16)] for part in parts)
        elif category == "Nd":
            found = str(unicodedata.decimal(character))
        elif character in _UNSEEN or (category == "Cf" and code not in _FLAGS):
            found = ""
        else:
            found = "-" if category == "Pd" else _FOLDED.get(character, character)
        self[code] = found
        return found


_COUNTS_AS = _CountsAs()
