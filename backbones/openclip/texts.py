"""open_clip's own tokenizers: the BPE that it ships, or the files of a Hugging Face tokenizer beside the checkpoint.

Cleaning (SigLIP: lower case, no punctuation) and padding to the full length are theirs, and part of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.abilities import Batch, Item, Reader
from beit3_bench.backbones.family import digest
from beit3_bench.backbones.openclip.library import offline
from beit3_bench.backbones.pins import sha256_of
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor

    from beit3_bench.backbones.openclip.pixels import OpenClipPixels

VOCABULARIES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
"""Files of which a Hugging Face tokenizer has one."""
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "config.json")
CANARY = ("A Photo, of 2 cats.", "naïve café", "")
_DEFAULT_LENGTH = 77


@dataclass(frozen=True)
class Texts:
    """A tokenizer.

    tokenize: list of texts -> int64 (n, L), L always the same.  length: L.
    fingerprint: SHA-256 of all that token ids depend on.  file: of its vocabulary; None for the one that open_clip ships.
    """

    tokenize: Any
    length: int
    fingerprint: str
    file: Path | None = None


def texts_of(text_config: dict[str, Any], name: str, folder: Path, given: Path | None) -> Texts:
    """The tokenizer that ``text_cfg`` of an architecture asks for.

    Args:
        name: of the architecture, for messages.
        folder: of the checkpoint.
        given: tokenizer file or folder of the user's; None = beside the checkpoint.

    Raises:
        BenchError: files of a Hugging Face tokenizer are missing or cannot be read; names them.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe

    length = text_config.get("context_length") or _DEFAULT_LENGTH
    kwargs = dict(text_config.get("tokenizer_kwargs") or {})
    hub = text_config.get("hf_tokenizer_name") or ""
    facts: dict[str, Any] = {"length": length, "settings": kwargs}
    if not hub:
        if given is not None:
            raise BenchError(f"{given}: {name} reads texts by open_clip's own tokenizer; leave --tokenizer out")
        tokenizer = SimpleTokenizer(context_length=length, **kwargs)
        facts["files"] = {"bpe": sha256_of(default_bpe())}
        return Texts(tokenizer, length, _fingerprint(tokenizer, facts))
    place = folder if given is None else given if given.is_dir() else given.parent
    if given is not None and not given.exists():
        raise BenchError(f"{given}: tokenizer not found; give the folder of {hub}'s tokenizer, or one of its files")
    file = next((place / n for n in VOCABULARIES if (place / n).is_file()), None)
    if file is None:
        raise BenchError(
            f"{place / VOCABULARIES[0]}: not found; {name} reads texts by the tokenizer of {hub}: put its tokenizer.json and "
            "tokenizer_config.json there, or name their folder with --tokenizer"
        )
    mode = text_config.get("tokenizer_mode")
    try:
        with offline():
            tokenizer = HFTokenizer(
                str(place),
                context_length=length,
                tokenizer_mode=mode,
                **kwargs,
                local_files_only=True,
                trust_remote_code=False,
            )
            facts["files"] = {n: sha256_of(place / n) for n in (*VOCABULARIES, *COMPANIONS) if (place / n).is_file()}
            return Texts(tokenizer, length, _fingerprint(tokenizer, {**facts, "mode": mode}), file)
    except BenchError:
        raise
    except ImportError as error:
        raise BenchError(
            f"the tokenizer of {hub} needs transformers ({error}); install it with: pip install transformers"
        ) from error
    except Exception as error:  # transformers raises errors of many kinds on files that are missing or damaged
        absent = "" if (place / COMPANIONS[0]).is_file() else f" ({COMPANIONS[0]} is missing there)"
        line = " ".join(str(error).split())[:120] or type(error).__name__
        raise BenchError(
            f"{file}: is no tokenizer that transformers reads{absent}: {line}; copy the files of {hub} again"
        ) from error


def _fingerprint(tokenizer: Any, facts: dict[str, Any]) -> str:
    return digest({**facts, "kind": type(tokenizer).__name__, "canary": tokenizer(list(CANARY)).tolist()})


class OpenClipReader(Reader):
    """One image, or one text, per item.

    vocabulary: rows of the token table; ``checkpoint`` is named where the tokenizer emits more.
    """

    def __init__(self, transform: OpenClipPixels, texts: Texts | None, vocabulary: int | None, checkpoint: Path):
        self.transform = transform
        self.texts, self.vocabulary, self.checkpoint = texts, vocabulary, checkpoint
        self._ids: dict[str, np.ndarray] = {}

    def prepare(self, items: Sequence[Item]) -> None:
        """Tokenise every distinct text once.

        Raises:
            BenchError: ids beyond the checkpoint's table.
        """
        self._tokenize(list(dict.fromkeys(item.text for item in items if item.text is not None)))

    def ids(self, item: Item) -> np.ndarray:
        """Token ids of an item's text: int32 (L,)."""
        assert item.text is not None
        if item.text not in self._ids:
            self._tokenize([item.text])
        return self._ids[item.text]

    def _tokenize(self, texts: Sequence[str]) -> None:
        new = [text for text in texts if text not in self._ids]
        if not new or self.texts is None:
            return
        ids = self.texts.tokenize([text.encode("utf-8", "replace").decode() for text in new]).numpy().astype(np.int32)
        if self.vocabulary is not None and ids.max() >= self.vocabulary:
            raise BenchError(
                f"{self.checkpoint}: has {self.vocabulary} token embeddings, but the tokenizer emits id {ids.max()}; "
                "give the tokenizer of this checkpoint"
            )
        self._ids.update(zip(new, ids, strict=True))

    def length(self, item: Item) -> int:
        return 0 if item.text is None or self.texts is None else self.texts.length

    def text_key(self, item: Item) -> bytes | None:
        return None if item.text is None else hashlib.sha256(self.ids(item).astype("<i8").tobytes()).digest()

    def pixels(self, image: Any) -> Tensor:
        """A file or a PIL image -> uint8 (3, S, S)."""
        assert self.transform is not None
        return self.transform.load(image) if isinstance(image, (str, Path)) else self.transform.pixels(image)

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images`` uint8 (n, 3, S, S), or ``token_ids`` int64 (n, L)."""
        import torch

        if items[0].images:
            return {"images": torch.stack([self.pixels(item.images[0]) for item in items])}
        return {"token_ids": torch.from_numpy(np.stack([self.ids(item) for item in items]).astype(np.int64))}
