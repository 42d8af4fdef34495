"""Penn Treebank tokenisation of captions, equal to the Java program behind the COCO caption scores, without Java.

Reference: `pycocoevalcap.tokenizer.ptbtokenizer.PTBTokenizer`, i.e. PTBTokenizer of Stanford CoreNLP 3.4.1 with
``-preserveLines -lowerCase``, then the punctuation list removed.

Two things about the reference are worth knowing.

* It reads one file with a caption per line, and looks past the end of a line: ``... Main St.`` before a line that
  starts with a capital ends a sentence (``st.``, ``.``); as the last line, it does too. Scores are therefore defined
  for captions *in file order*, which is what `tokenize` computes; ``isolated=True`` takes every caption for itself
  instead.
* A caption that holds a line separator (CR, VT, FF, U+2028, U+2029) becomes several lines there, and every later
  caption is scored against the wrong image. So does a quoted tag attribute that runs over a line end. Here a caption
  never touches its neighbours: separators count as white space inside of their caption, and no token reaches over its
  end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.lazy_dfa import Hopeless
from beit3_bench.tasks.metrics.ptb_grammar import RULES, Grammar, grammar

PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""Removed from captions. Output is in lower case, so that the four bracket names remove nothing: ``-lrb-`` stays."""

LINE_SEPARATORS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
"""What ends a line for the Java program; inside of a caption it counts as white space here."""

IN_LINE = 64
"""Characters of a token that are scanned in line; longer ones start again with `Automaton.longest`."""

# Words that any context leaves whole: letters up to a space. The lexer splits the six listed; nothing else starts with
# a letter and reaches over a space. White space of other kinds behind the space would belong to the same token. Not
# more than some at a time: of those behind one that is split, none is taken.
_PLAIN_WORDS = re.compile(r"(?:[A-Za-z]+ +){1,32}(?=[!-~])")
_SPLIT_WORDS = frozenset({"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"})


def tokenize(texts: Sequence[str], isolated: bool = False) -> list[list[str]]:
    """Tokenise captions: lower-case tokens without punctuation, one list per caption.

    Args:
        texts: captions in file order; a line feed counts as a space.
        isolated: take every caption for itself, as if it were the only line of the file; the result then does
            not depend on the order of the captions, and differs from the official one for about 1 in 1,000.

    Returns:
        One list per caption, empty for a caption without words. A token can hold U+00A0 (``2 1/2``, phone numbers,
        tags).

    Raises:
        BenchError: a caption that is not a string.
    """
    return [[token for token in line if token not in PUNCTUATION] for line in tokenize_lines(texts, isolated)]


def tokenize_lines(texts: Sequence[str], isolated: bool = False) -> list[list[str]]:
    """Like `tokenize`, with punctuation: the lines that the Java program prints."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BenchError(
                f"caption {index}: expected text, found {type(text).__name__} ({str(text)[:40]!r}); mend the file"
            )
    lines = [_code_units(text.replace("\n", " ")) for text in texts]
    compiled = grammar()
    if isolated:
        known = {line: _scan(line, 0, len(line), len(line), compiled) for line in dict.fromkeys(lines)}
        return [list(known[line]) for line in lines]
    whole = "\n".join(lines)
    result = []
    begin = 0
    hopeless: Hopeless = set()
    for line in lines:
        result.append(_scan(whole, begin, begin + len(line), len(whole), compiled, hopeless))
        begin += len(line) + 1
    return result


def _scan(
    text: str, begin: int, end: int, horizon: int, compiled: Grammar, hopeless: Hopeless | None = None
) -> list[str]:
    """Tokens of ``text[begin:end]``; context is looked for up to ``horizon``, ``hopeless`` is of scans up to there."""
    hopeless = set() if hopeless is None else hopeless
    tokens: list[str] = []
    start = compiled.automaton.start
    at = begin
    while at < end:
        plain = _PLAIN_WORDS.match(text, at, end)
        if plain:
            words = plain.group().lower().split(" ")
            if _SPLIT_WORDS.isdisjoint(words):
                tokens.extend(filter(None, words))
                at = plain.end()
                continue
        # The beginning of `Automaton.longest`, in line: this loop is the tokenizer's time.
        state, rule, stop = start, -1, at
        for position in range(at, min(at + IN_LINE, horizon)):
            state = state[text[position]]
            if state.rule >= 0:
                rule, stop = state.rule, position + 1
            if state.dead:
                break
        else:
            rule, stop = compiled.automaton.longest(text, at, horizon, hopeless)
        if rule < 0:  # a character that the lexer does not know
            at += 1
            continue
        if rule in compiled.bodies:
            stop = _body_end(text, at, stop, compiled, rule)
        if stop > end:
            return tokens + _scan(text, at, end, end, compiled)
        stop -= RULES[rule].back
        token, at = _WRITERS[rule](text[at:stop], stop)
        if token:
            tokens.append(token.lower() if token.isascii() else _lower(_text(token)))
    return tokens


def _body_end(text: str, begin: int, stop: int, compiled: Grammar, rule: int) -> int:
    """Where the token ends and its context begins: the longest token whose context ends exactly at ``stop``."""
    for middle in reversed(compiled.bodies[rule].ends(text, begin, stop)):
        if stop in compiled.behinds[rule].ends(text, middle, stop):
            return middle
    raise AssertionError(f"rule {RULES[rule]} matched as a whole but not in parts")


# ---- how tokens are written: (text of the token, its end) -> (what is printed, "" for nothing; where to go on) -----


def _as_is(token: str, end: int) -> tuple[str, int]:
    return token, end


def _skip(token: str, end: int) -> tuple[str, int]:
    return "", end


def _joined(token: str, end: int) -> tuple[str, int]:
    return token.replace(" ", "\u00a0"), end


def _no_soft_hyphen(token: str, end: int) -> tuple[str, int]:
    return token.replace("\u00ad", "") or "-", end


def _plain_ampersand(token: str, end: int) -> tuple[str, int]:
    return re.sub("(?i:&amp;)", "&", token), end


def _brackets(token: str, end: int) -> tuple[str, int]:
    return token.replace("(", "-LRB-").replace(")", "-RRB-"), end


def _phone(token: str, end: int) -> tuple[str, int]:
    return _brackets(token.replace(" ", "\u00a0"), end)


def _hyphens(token: str, end: int) -> tuple[str, int]:
    return ("--" if 3 <= len(token) <= 4 else token), end


_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_CURRENCIES = {"\u00a2": "cents", "\u00a3": "#", "\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}


def _fraction(token: str, end: int) -> tuple[str, int]:
    return _FRACTIONS.get(token, token), end


def _currency(token: str, end: int) -> tuple[str, int]:
    return _CURRENCIES.get(token, token), end


_LATEX = {
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"),
    **dict.fromkeys("\u0094\u201d\u00bb", "''"),
}


def _quote(token: str, single: str) -> str:
    token = token.replace("&apos;", "'").replace("&quot;", '"').replace("'", single).replace('"', 2 * single)
    return token if token.isascii() else "".join(_LATEX.get(c, c) for c in token)


def _opening_quote(token: str, end: int) -> tuple[str, int]:
    return _quote(token, "`"), end


def _closing_quote(token: str, end: int) -> tuple[str, int]:
    return _quote(token, "'"), end


def _period_twice(token: str, end: int) -> tuple[str, int]:
    """The period belongs to the abbreviation and ends the sentence, too."""
    return token, end - 1


def _acronym_before_sentence(token: str, end: int) -> tuple[str, int]:
    """``U.S. The``: the period counts twice; ``I. The``: it only ends the sentence."""
    return (token[:-1] if len(token) == 2 else token), end - 1


Writer = Callable[[str, int], tuple[str, int]]


def _fixed(text: str) -> Writer:
    return lambda token, end: (text, end)


_WRITERS: tuple[Writer, ...] = tuple(
    _fixed(rule.action[1:]) if rule.action.startswith("=") else globals()["_" + rule.action] for rule in RULES
)


# ---- Java's characters ----------------------------------------------------------------------------------------------


def _code_units(text: str) -> str:
    """Characters beyond U+FFFF as surrogate pairs: the lexer sees 16-bit units."""
    if text.isascii() or max(text) <= "\uffff":
        return text
    return "".join(c if c <= "\uffff" else chr(0xD7C0 + (ord(c) >> 10)) + chr(0xDC00 + (ord(c) & 0x3FF)) for c in text)


_SIGMA_WORD = re.compile(r"\w(?:[\w\u00ad\u0300-\u036f]|(?<=[^\W\d])[-.'\u2019](?=[^\W\d])|(?<=\d)[-.'\u2019](?=\d))*")


def _lower(text: str) -> str:
    """Lower case as Java has it: a capital sigma that ends the cased letters of its word is written in final form.

    Digits, and hyphens, periods and apostrophes between two letters or two digits, are part of a word. Words that mix
    capital sigmas with underscores and digits can still differ from Java.
    """
    if "\u03a3" not in text:
        return text.lower()

    def word(match: re.Match[str]) -> str:
        letters = match.group()
        cased = [index for index, letter in enumerate(letters) if letter.lower() != letter.upper()]
        final = len(cased) > 1 and letters[cased[-1]] == "\u03a3"
        lower = [letter.lower() for letter in letters]
        if final:
            lower[cased[-1]] = "\u03c2"
        return "".join(lower)

    return _SIGMA_WORD.sub(word, text).lower()


def _text(token: str) -> str:
    """Surrogate pairs joined again; half a pair is printed as a question mark."""
    if not any("\ud800" <= c <= "\udfff" for c in token):
        return token
    return token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\ufffd", "?")
