"""beit3.spm through SentencePiece, with XLM-R's id layout.

<s> 0, <pad> 1, </s> 2, <unk> 3; piece i of the SentencePiece model (i >= 3) has id i + 1; <mask> comes after the last piece.
The released model has 64,000 pieces, so <mask> is 64,001 and ids 64,002..64,009 of the embedding have no piece.
Behaves as the slow XLMRobertaTokenizer of transformers 4, which the official code uses (`get_sentencepiece_model_for_beit3`). The
one of transformers 5 is another program; it differs on control characters, zero-width characters and combining marks.
Decoding leaves the spaces of the pieces as they are (transformers before 4.45 then removed those before punctuation).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_bench.backbones.reading import pad_ids
from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited

if TYPE_CHECKING:
    from torch import Tensor

CLS, PAD, SEP, UNK = 0, 1, 2, 3
OFFSET = 1
MAX_TOKENS = 64  # the official num_max_bpe_tokens, CLS and SEP included
_LARGEST = 2**28  # bytes of a model file; the released one has 1.4 MB
_SPECIAL = re.compile(r"(<s>|</s>|<unk>|<pad>|\s*<mask>)")


class Tokenizer:
    """Text -> ids and back.

    max_tokens: longer texts are cut, CLS and SEP included.
    fingerprint: SHA-256 of the model file.
    """

    def __init__(self, model_proto: bytes, source: str, max_tokens: int = MAX_TOKENS):
        import sentencepiece

        try:
            self.spm = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise BenchError(f"{source}: not a SentencePiece model; give the official beit3.spm") from error
        layout = (self.spm.unk_id(), self.spm.bos_id(), self.spm.eos_id())
        if layout != (0, 1, 2):
            raise BenchError(
                f"{source}: its unknown, start and end pieces are {layout} instead of (0, 1, 2), so ids would be shifted; "
                "give the official beit3.spm, or train with SentencePiece's default ids"
            )
        if max_tokens < 3:
            raise BenchError(f"max_tokens is {max_tokens}; CLS, one token and SEP need 3")
        self.max_tokens = max_tokens
        self.fingerprint = hashlib.sha256(model_proto).hexdigest()
        self.mask_token_id = self.spm.get_piece_size() + OFFSET
        self.num_pieces = self.mask_token_id + 1
        self._special = {"<s>": CLS, "<pad>": PAD, "</s>": SEP, "<unk>": UNK, "<mask>": self.mask_token_id}

    @classmethod
    def load(cls, path: str | Path, max_tokens: int = MAX_TOKENS) -> Tokenizer:
        """Read a SentencePiece model file.

        Raises:
            BenchError: missing file, or not a SentencePiece model.
        """
        path = Path(path)
        try:
            proto = read_limited(path, _LARGEST)
        except OSError as error:
            raise BenchError(
                f"{path}: tokenizer not readable ({error.strerror}); download beit3.spm and pass it with --tokenizer"
            ) from error
        if not proto:
            raise BenchError(f"{path}: empty file; download beit3.spm again")
        return cls(proto, str(path), max_tokens)

    def ids(self, text: str) -> list[int]:
        """Ids of a text without CLS and SEP, not cut. Written-out special tokens (``<mask>``) are taken as such.

        Raises:
            BenchError: not a string, or one with lone surrogates.
        """
        if not isinstance(text, str):
            raise BenchError(
                f"a text is a {type(text).__name__} ({text!r:.80}) where a string is expected; mend the file that it comes from"
            )
        if "<" not in text:
            return self._pieces(text)
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            special = self._special.get(part.strip())
            if special is not None:
                ids.append(special)
            elif part:
                ids.extend(self._pieces(part))
        return ids

    def _pieces(self, text: str) -> list[int]:
        try:
            pieces = self.spm.encode(text, out_type=int)
        except (RuntimeError, UnicodeError) as error:
            raise BenchError(
                f"the text {text!r:.80} is not Unicode (lone surrogates); mend the file that it comes from"
            ) from error
        return [i + OFFSET if i else UNK for i in pieces]

    def encode(self, text: str, source: str = "text") -> list[int]:
        """[CLS] ids [SEP], cut to ``max_tokens`` (official `_get_text_segment`).

        Raises:
            BenchError: a text without a single token, or one that `ids` refuses; begins with ``source``.
        """
        try:
            ids = self.ids(text)[: self.max_tokens - 2]
        except BenchError as error:
            raise BenchError(f"{source}: {error}") from error
        if not ids:
            raise BenchError(f"{source}: the text {text!r:.80} has no tokens; give it at least one word")
        return [CLS, *ids, SEP]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text; special tokens and ids without a piece are skipped."""
        pieces = [i - OFFSET for i in ids if UNK < i < self.mask_token_id]
        return self.spm.decode(pieces).strip()

    def pad(self, sequences: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
        """Token ids int64 (n, L), L the longest of these rounded up to a multiple, and padding_mask bool (n, L), True =
        padding; None if nothing is padded.
        """
        return pad_ids(sequences, PAD, multiple, self.max_tokens)
