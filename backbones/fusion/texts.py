"""From texts to token ids as ALBEF and BLIP take them: cleaning, special tokens and lengths.

Cleaning is part of the weights: ALBEF (`dataset/utils.py`) deletes more marks than BLIP (`data/utils.py`) and splits words at ``-``
and ``/``; both clean captions and questions differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from beit3_bench.backbones.reading import pad_ids
from beit3_bench.backbones.wordpiece import WordPiece

if TYPE_CHECKING:
    from torch import Tensor

QUESTION_WORDS = 50
_ALBEF_MARKS = re.compile(r"([,.'!?\"()*#:;~])")
_BLIP_MARKS = re.compile(r"([.!\"()*#:;~])")
_SPACES = re.compile(r"\s{2,}")


def albef_caption(text: str, words: int) -> str:
    """Official ALBEF `pre_caption`."""
    text = _ALBEF_MARKS.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return first_words(_SPACES.sub(" ", text).rstrip("\n").strip(" "), words)


def albef_question(text: str, words: int) -> str:
    """Official ALBEF `pre_question`: runs of spaces stay."""
    text = _ALBEF_MARKS.sub("", text.lower()).replace("-", " ").replace("/", " ")
    return first_words(text.rstrip(" "), words)


def blip_caption(text: str, words: int) -> str:
    """Official BLIP `pre_caption`: marks become spaces; comma, apostrophe, ``?``, ``-`` and ``/`` stay."""
    text = _SPACES.sub(" ", _BLIP_MARKS.sub(" ", text.lower()))
    return first_words(text.rstrip("\n").strip(" "), words)


def blip_question(text: str, words: int) -> str:
    """Official BLIP `pre_question`: marks are deleted; runs of spaces stay."""
    return first_words(_BLIP_MARKS.sub("", text.lower()).rstrip(" "), words)


def first_words(text: str, words: int) -> str:
    """Words between single spaces; empty ones count."""
    return " ".join(text.split(" ")[:words])


@dataclass(frozen=True)
class Wording:
    """How the texts of a task become token ids.

    clean: text and number of words -> text.  words: kept of a text.
    max_tokens: special tokens included; None = no text is cut (but by the positions of the model).
    ends: whether [SEP] stands behind a text; ALBEF's own tokenizer puts none behind a single one.
    multiple: texts are padded to a multiple of so many tokens (see `reading.NativeReader`).
    """

    clean: Callable[[str, int], str]
    words: int
    max_tokens: int | None
    ends: bool
    multiple: int = 8

    def facts(self) -> dict[str, object]:
        """Plain values, for the model's identity."""
        return {"cleaning": self.clean.__name__, "words": self.words, "max_tokens": self.max_tokens, "ends": self.ends}


class Texts:
    """A vocabulary with a `Wording`: the `reading.TextTokenizer` of a model.

    positions: of the model; no text is longer.
    """

    def __init__(self, pieces: WordPiece, wording: Wording, positions: int):
        self.pieces, self.wording = pieces, wording
        self.max_tokens = min(wording.max_tokens or positions, positions)

    def encode(self, text: str, source: str = "text") -> list[int]:
        """[CLS] ids, and [SEP] where texts end with it. Raises: BenchError: not a string; begins with ``source``."""
        words = self.wording.clean(text, self.wording.words) if isinstance(text, str) else text
        ids = self.pieces.pieces(words, source)
        special = self.pieces.special
        if not self.wording.ends:
            return [special["[CLS]"], *ids][: self.max_tokens]
        return [special["[CLS]"], *ids[: self.max_tokens - 2], special["[SEP]"]]

    def pad(self, sequences: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
        """See `reading.pad_ids`."""
        return pad_ids(sequences, self.pieces.special["[PAD]"], multiple, self.max_tokens)

    def answers(self, answers: Sequence[str], positions: int) -> list[list[int]]:
        """Token ids of answers, [SEP] behind them and nothing before; empty for an answer without a token, or one that a decoder of
        so many positions cannot take.
        """
        end = self.pieces.special["[SEP]"]
        ids = [self.pieces.pieces(answer, "answer") for answer in answers]
        return [[*one, end] if 0 < len(one) < positions else [] for one in ids]
