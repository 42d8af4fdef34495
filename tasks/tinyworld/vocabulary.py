"""The SentencePiece model of the tiny world, ``beit3.spm``, trained on its own text."""

from __future__ import annotations

import io
import re
import string
from collections.abc import Sequence
from pathlib import Path

MOST_SENTENCES = 12000


def write_spm(path: Path, text: Sequence[str], pieces: int) -> int:
    """Train a unigram model of at most ``pieces`` pieces; returns how many it has.

    Ids are sentencepiece's own (0 = unk, 1 = <s>, 2 = </s>), as in the released beit3.spm. One thread and a fixed
    order: the same text gives the same bytes. Every printable ASCII character has a piece: any English text can be
    spelled.
    """
    import sentencepiece

    # An even sample decides the same pieces, sooner. A word becomes a candidate piece if it is met in two surroundings.
    sample = list(text[:: max(1, -(-len(text) // MOST_SENTENCES))])
    words = sorted({word for sentence in text for word in re.findall(r"[^\W\d_]+", sentence)})
    sample += [f"{word} {word}, {word}." for word in words]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return processor.get_piece_size()
