"""WordPiece over a ``vocab.txt``, as the `BertTokenizer` (lower-casing) of transformers 4 that VLMo, ALBEF and BLIP were trained with.

Words are split here as that class splits them: the normaliser of the library `tokenizers` follows another version of Unicode, and
the two differ on marks, punctuation and ideographs that are newer than it. Pieces are the library's.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited

if TYPE_CHECKING:
    from torch import Tensor

    from beit3_bench.backbones.released import ReleasedFile

VOCABULARY_FILE = "vocab.txt"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
"""Of bert-base-uncased's."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; a longer word is [UNK]
_JOINED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
_LARGEST = 2**26  # bytes of a vocabulary; bert-base-uncased's has 232 kB
_SPLIT_SPECIAL = re.compile("(" + "|".join(re.escape(token) for token in SPECIAL) + ")")
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@cache
def _cleaned(character: str) -> str:
    """A character with lower case, spaced where it is a word of its own; empty where it is dropped (`BasicTokenizer._clean_text`)."""
    category, code = unicodedata.category(character), ord(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if category.startswith("C") or code == 0xFFFD:
        return ""
    if any(first <= code <= last for first, last in _IDEOGRAPHS):
        return f" {character} "
    return character.lower()


@cache
def _is_punctuation(character: str) -> bool:
    """`_is_punctuation` of transformers: all of ASCII that is no letter, digit or space, and Unicode's class P."""
    return (character.isascii() and not character.isalnum()) or unicodedata.category(character).startswith("P")


def basic_words(text: str) -> list[str]:
    """Words and marks of a text without special tokens: `BasicTokenizer.tokenize` with lower-casing and stripped accents."""
    words: list[str] = []
    for word in "".join(map(_cleaned, text)).split():
        bare = word.lower()
        if not bare.isascii():
            bare = "".join(c for c in unicodedata.normalize("NFD", bare) if unicodedata.category(c) != "Mn")
        words += "".join(f" {c} " if _is_punctuation(c) else c for c in bare).split()
    return words


class WordPiece:
    """Text -> ids.

    max_tokens: longer texts are cut, [CLS] and [SEP] included.
    fingerprint: SHA-256 of the entries, one a line; of the released file, whatever its ends of lines.  size: number of entries.
    """

    def __init__(self, content: bytes, source: str, max_tokens: int):
        from tokenizers import Tokenizer, models

        try:
            lines = content.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise BenchError(f"{source}: is no text in UTF-8; give the vocab.txt of bert-base-uncased") from error
        entries = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
        vocabulary = {entry: number for number, entry in enumerate(entries)}
        absent = [token for token in SPECIAL if token not in vocabulary]
        if absent:
            raise BenchError(
                f"{source}: is no WordPiece vocabulary, it has no entry {', '.join(absent)}; give the vocab.txt of bert-base-uncased"
            )
        if max_tokens < 3:
            raise BenchError(f"max_text_length is {max_tokens}; [CLS], one token and [SEP] need 3")
        self.max_tokens, self.size = max_tokens, len(entries)
        self.fingerprint = hashlib.sha256("".join(f"{entry}\n" for entry in entries).encode()).hexdigest()
        self.special = {token: vocabulary[token] for token in SPECIAL}
        self._entries = entries
        model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
        self._pieces = Tokenizer(model)

    @classmethod
    def load(cls, path: str | Path, max_tokens: int) -> WordPiece:
        """Read a ``vocab.txt``, an entry a line.

        Raises:
            BenchError: not readable, or no WordPiece vocabulary.
        """
        try:
            content = read_limited(Path(path), _LARGEST)
        except OSError as error:
            raise BenchError(
                f"{path}: tokenizer not readable ({error.strerror}); give the vocab.txt of bert-base-uncased with --tokenizer"
            ) from error
        if not content:
            raise BenchError(f"{path}: empty file; get the vocab.txt of bert-base-uncased again")
        return cls(content, str(path), max_tokens)

    def encode(self, text: str, source: str = "text") -> list[int]:
        """[CLS] ids [SEP], cut to ``max_tokens``; a text without words has the two alone.

        Raises:
            BenchError: as `pieces`.
        """
        ids = self.pieces(text, source)
        return [self.special["[CLS]"], *ids[: self.max_tokens - 2], self.special["[SEP]"]]

    def pieces(self, text: str, source: str = "text") -> list[int]:
        """Ids of a text, uncut and with nothing around them. Special tokens that are written out are taken as such.

        Raises:
            BenchError: not a string; begins with ``source``.
        """
        if not isinstance(text, str):
            raise BenchError(
                f"{source}: a text is a {type(text).__name__} ({text!r:.80}) where a string is expected; "
                "mend the file that it comes from"
            )
        ids: list[int] = []
        for part in _SPLIT_SPECIAL.split(text) if "[" in text else (text,):
            if part in self.special:
                ids.append(self.special[part])
            elif words := basic_words(part):
                ids += self._pieces.encode(words, is_pretokenized=True, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and ids beyond the vocabulary left out, with the spaces before marks that transformers removes
        (`clean_up_tokenization`).
        """
        special = set(self.special.values())
        tokens = [self._entries[i] for i in ids if i < self.size and i not in special]
        text = " ".join(tokens).replace(" ##", "").strip()
        for spaced, joined in _JOINED:
            text = text.replace(spaced, joined)
        return text

    def pad(self, sequences: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
        """See `reading.pad_ids`."""
        # It brings numpy, which the records of released files need not wait for.
        from beit3_bench.backbones.reading import pad_ids

        return pad_ids(sequences, self.special["[PAD]"], multiple, self.max_tokens)


def find_vocabulary(task: str, given: Path | None, folder: Path, max_tokens: int) -> tuple[WordPiece, Path]:
    """The vocabulary named, or ``vocab.txt`` in a checkpoint's folder.

    Raises:
        BenchError: none is there; names the place.
    """
    path = given or folder / VOCABULARY_FILE
    if given is None and not path.is_file():
        raise BenchError(
            f"task {task} needs the tokenizer and there is no {path}; put the {VOCABULARY_FILE} of bert-base-uncased there or give "
            "it with --tokenizer FILE"
        )
    return WordPiece.load(path, max_tokens), path


def compare_vocabulary(
    tokenizer: WordPiece, file: Path, rows: int, checkpoint: Path, released: ReleasedFile | None, added: int = 0
) -> list[str]:
    """Compare a vocabulary with the one that a checkpoint was trained with, as far as anything tells.

    Args:
        rows: token embeddings of the checkpoint.  released: its record, where its authors released it.
        added: how many of the rows are for tokens that the family puts behind those of the file.

    Returns:
        Notes for a result: what could not be known.

    Raises:
        BenchError: it has another number of entries; or it is not that of bert-base-uncased, for a released file.
    """
    if tokenizer.size + added != rows:
        behind = f", and {added} stand behind them" if added else ""
        raise BenchError(
            f"{checkpoint}: has {rows:,} token embeddings, but {file} has {tokenizer.size:,} entries{behind}; give the vocab.txt of "
            "this checkpoint with --tokenizer"
        )
    if tokenizer.fingerprint == VOCABULARY_SHA256:
        return []
    if released is not None:
        raise BenchError(
            f"{file}: is not the vocabulary of bert-base-uncased, with which {checkpoint.name} was trained; get it with: "
            "beit3-bench download bert-base-uncased"
        )
    return [f"the checkpoint does not say which vocabulary it was trained with; {file.name} has as many entries"]


def vocabulary(texts: Sequence[str]) -> list[str]:
    """WordPiece entries: BERT's special ones, letters and digits by which every word can be spelt, and all words, commonest first."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    return list(dict.fromkeys([*pieces, *(word for word, _ in words.most_common())]))
