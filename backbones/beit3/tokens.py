"""Which tokenizer belongs to a checkpoint: finding it, and comparing it as far as anything tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_bench.backbones.beit3.config import RELEASED_VOCABULARY, BEiT3Config
from beit3_bench.backbones.beit3.tokenizer import MAX_TOKENS, Tokenizer
from beit3_bench.backbones.beit3.weights import TOKENIZER_FILE
from beit3_bench.backbones.pins import read_pins
from beit3_bench.errors import BenchError


def find_tokenizer(task: str, given: Path | None, folder: Path, max_tokens: int = MAX_TOKENS) -> tuple[Tokenizer, Path]:
    """The tokenizer named, or the one in a checkpoint's folder.

    Raises:
        BenchError: none is there, or it is no SentencePiece model.
    """
    path = given or folder / TOKENIZER_FILE
    if given is None and not path.is_file():
        raise BenchError(
            f"task {task} needs the tokenizer and there is no {path}; put {TOKENIZER_FILE} there or give --tokenizer FILE"
        )
    return Tokenizer.load(path, max_tokens), path


def compare_tokenizer(
    tokenizer: Tokenizer, file: Path, config: BEiT3Config, metadata: Mapping[str, Any], checkpoint: Path
) -> list[str]:
    """Compare a tokenizer with the one that a checkpoint was trained with, as far as anything tells.

    Args:
        file: that the tokenizer was read from.
        metadata: what the checkpoint carries beside its weights; ``tokenizer`` is the fingerprint of its own.

    Returns:
        Notes for a result: what could not be known.

    Raises:
        BenchError: it is another one: by the fingerprint in the checkpoint, by the number of pieces that its token table is
            for, or by the hash that was pinned when the released tokenizer was downloaded.
    """
    trained = metadata.get("tokenizer")
    trained = trained.get("fingerprint") if isinstance(trained, Mapping) else trained
    if trained:
        if trained != tokenizer.fingerprint:
            raise BenchError(
                f"{checkpoint}: was fine-tuned with another tokenizer (sha256 {str(trained)[:12]}..., "
                f"given {tokenizer.fingerprint[:12]}...); "
                "give the right one with --tokenizer"
            )
        return []
    if tokenizer.num_pieces != config.num_pieces:
        assert config.num_pieces is not None
        specials = tokenizer.num_pieces - tokenizer.spm.get_piece_size()
        raise BenchError(
            f"{checkpoint}: has {config.vocab_size:,} token embeddings, for a tokenizer of {config.num_pieces - specials:,} "
            f"pieces, but {file} has {tokenizer.num_pieces - specials:,}; give the tokenizer of this checkpoint with --tokenizer"
        )
    if config.vocab_size != RELEASED_VOCABULARY:
        return [f"the checkpoint does not say which tokenizer it was trained with; {file.name} has as many pieces"]
    pin = read_pins().get(TOKENIZER_FILE)
    if pin is None:
        return [f"{file.name} was not compared with the released {TOKENIZER_FILE}, which was never downloaded here"]
    if pin != tokenizer.fingerprint:
        raise BenchError(
            f"{file}: sha256 {tokenizer.fingerprint[:12]}... is not that of the released {TOKENIZER_FILE} ({pin[:12]}..., "
            "pinned when it was downloaded); give the released one with --tokenizer"
        )
    return []
