"""Character sets of the PTB lexer: which characters of the basic plane it takes for letters, digits and symbols.

They are those of the lexer of Stanford CoreNLP 3.4.1, checked for every character against its behaviour: letters as of
Unicode 6.1, combining marks of several scripts counted as letters, most symbols as tokens of their own.
Characters in no set (most of what lies outside of the basic plane, control characters, newer scripts) are dropped from
the text.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable

# Letters of today's Unicode that the lexer does not know.
_NEWER_LETTERS = """
37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 cdd d04 d54-d56 d5f e86 e89
e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1c8a
1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7dc
a7f1-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9ef a9fa-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69 ab70-abbf
"""
_LETTERS_ONCE = "1885-1886"
_NEWER_DIGITS = "de6-def a9f0-a9f9"
_CHEROKEE = "13a0-13f4"

# Marks and signs that may stand inside a word.
_WORD_MARKS = """
ad 237-24f 2c2-2c5 2d2-2df 2e5-37d 384-385 3cf 3f6 3fc-3ff 483-487 4cf 4f6-4ff 510-525 55a-55f 591-5bd 5bf 5c1-5c2
5c4-5c5 5c7 615-61a 63b-63f 64b-65e 670 6d6-6ef 6fa-6ff 70f 711 730-77f 7a6-7b1 7ca-7f5 7fa 900-903 93c 93e-94e 951-955
962-963 981-983 9bc-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc-acf b82 bbe-bc2 bc6-bc8 bca-bcd
c01-c03 c3e-c56 d3e-d44 d46-d48 e30-e3a e47-e4e eb1-ebc ec8-ecd
"""

# Signs that are a token each: punctuation of other scripts, mathematics, arrows, shapes, full-width forms.
_SYMBOLS = """
25-26 2b 5c 5e 7c 7e a6-a9 ac ae-b4 b5-ba d7 f7 387 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60a 60c 614 61b 61e 66a 66d
703-70d 7f6-7f8 964-965 e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 2044 207a-207f 208a-208e 2100-214f
2190-2bff 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65
"""
_SENTENCE_MARKS = "2e a1 bf 37e 589 61f 6d4 700-702 7fa 3002"


def _member(ranges: str) -> Callable[[str], bool]:
    spans = sorted(tuple(int(x, 16) for x in (span + "-" + span).split("-")[:2]) for span in ranges.split())
    starts = [first for first, _ in spans]

    def accepts(character: str) -> bool:
        at = bisect_right(starts, ord(character)) - 1
        return at >= 0 and ord(character) <= spans[at][1]

    return accepts


_newer_letter, _letter_once, _newer_digit = _member(_NEWER_LETTERS), _member(_LETTERS_ONCE), _member(_NEWER_DIGITS)
_cherokee, _word_mark = _member(_CHEROKEE), _member(_WORD_MARKS)
symbol = _member(_SYMBOLS)
sentence_mark = _member(_SENTENCE_MARKS)


def letter(character: str) -> bool:
    """A letter by Unicode category."""
    return (character.isalpha() and not _newer_letter(character)) or _letter_once(character)


def word_letter(character: str) -> bool:
    """What a word may be made of, digits aside: letters, marks, the soft hyphen."""
    return letter(character) or _word_mark(character)


def digit(character: str) -> bool:
    """A decimal digit of any script."""
    return unicodedata.category(character) == "Nd" and not _newer_digit(character)


def number_digit(character: str) -> bool:
    """A decimal digit where numbers are read: NKo digits too."""
    return digit(character) or "\u07c0" <= character <= "\u07c9"


def uppercase(character: str) -> bool:
    """An upper-case character; Cherokee had one case only at the time."""
    return character.isupper() and not _newer_letter(character) and not _cherokee(character)


def anything(character: str) -> bool:
    """Any character at all, line ends included."""
    return True
