"""From image files and texts to what networks of images and token ids take; runs in decoding processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from beit3_bench.backbones.abilities import Batch, Item, PixelTransform, Reader
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor


class TextTokenizer(Protocol):
    """From texts to token ids.

    max_tokens: longer texts are cut, special tokens included.
    """

    max_tokens: int

    def encode(self, text: str, source: str = "text") -> list[int]:
        """Ids with special tokens, cut. Raises: BenchError: a text that cannot be taken; begins with ``source``."""

    def pad(self, sequences: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor | None]:
        """See `pad_ids`; never longer than ``max_tokens``."""


def padded_length(length: int, multiple: int, most: int) -> int:
    """``length`` rounded up to a multiple; not beyond ``most``, the longest that the network takes."""
    return max(length, min(-(-length // multiple) * multiple, most))


def pad_ids(sequences: Sequence[Sequence[int]], pad_id: int, multiple: int, most: int) -> tuple[Tensor, Tensor | None]:
    """Token ids int64 (n, L), L the `padded_length` of the longest, and padding_mask bool (n, L), True = padding; None if nothing is
    padded.
    """
    import torch

    lengths = torch.tensor([len(s) for s in sequences])
    longest = padded_length(max((len(s) for s in sequences), default=0), multiple, most)
    padding = torch.arange(longest).unsqueeze(0) >= lengths.unsqueeze(1)
    token_ids = torch.full(padding.shape, pad_id, dtype=torch.long)
    token_ids[~padding] = torch.tensor([i for s in sequences for i in s], dtype=torch.long)
    return token_ids, padding if padding.any() else None


class NativeReader(Reader):
    """Images squared to one size; texts tokenised once and padded.

    Args:
        transform: of an image to a square; None in a subclass that reads images otherwise.
        multiple: texts are padded to a multiple of this many tokens, whatever stands beside them, and texts of one padded length
            stand in a batch: a value is then the same at any batch size. 1: equal lengths, no padding at all.
        vocab_size: rows of the token table; ``checkpoint`` is named where the tokenizer emits more.
    """

    def __init__(
        self,
        transform: PixelTransform | None,
        tokenizer: TextTokenizer | None = None,
        multiple: int = 8,
        vocab_size: int | None = None,
        checkpoint: Path | None = None,
    ):
        self.transform = transform
        self.tokenizer, self.multiple = tokenizer, multiple
        self.vocab_size, self.checkpoint = vocab_size, checkpoint
        self._ids: dict[str, list[int]] = {}

    # ---- texts ----------------------------------------------------------------------------------------------------

    def prepare(self, items: Sequence[Item]) -> None:
        """Tokenise every distinct text once.

        Raises:
            BenchError: a text without a token, or ids beyond the checkpoint's table.
        """
        for item in items:
            if item.text is not None:
                self.ids(item)
        largest = max((max(ids) for ids in self._ids.values()), default=0)
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise BenchError(
                f"{self.checkpoint}: has {self.vocab_size} token embeddings, but the tokenizer emits id {largest}; "
                "give the tokenizer of this checkpoint"
            )

    def ids(self, item: Item) -> list[int]:
        """Token ids of an item's text, CLS and SEP included; empty without text."""
        return [] if item.text is None or self.tokenizer is None else self.ids_of(item.text, item.id)

    def ids_of(self, text: str, name: str) -> list[int]:
        """Token ids of a text. name: of its item, for messages."""
        assert self.tokenizer is not None
        known = self._ids.get(text)
        if known is None:
            source = f"example {name}" if name else "text"
            known = self._ids[text] = self.tokenizer.encode(text, source=source)
        return known

    def length(self, item: Item) -> int:
        most = 0 if self.tokenizer is None else self.tokenizer.max_tokens
        return padded_length(len(self.ids(item)), self.multiple, most)

    def text_key(self, item: Item) -> bytes | None:
        ids = self.ids(item)
        return hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).digest() if ids else None

    def pad(self, items: Sequence[Item], multiple: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Token ids (n, L) int64 and padding_mask (n, L) bool, True = padding; None where nothing is padded."""
        assert self.tokenizer is not None
        return self.tokenizer.pad([self.ids(item) for item in items], self.multiple if multiple is None else multiple)

    # ---- images ---------------------------------------------------------------------------------------------------

    def pixels(self, image: Any) -> Tensor:
        """A file or a PIL image -> uint8 (3, S, S), not yet normalised."""
        assert self.transform is not None
        if isinstance(image, (str, Path)):
            return self.transform.load(image)
        return self.transform.pixels(image if image.mode == "RGB" else image.convert("RGB"))

    def distinct(self, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Decode each distinct image once: uint8 (u, 3, S, S), and int64 (n,) the index of each image's pixels."""
        import torch

        first: dict[Any, int] = {}
        for image in images:
            first.setdefault(_name(image), len(first))
        chosen = {_name(image): image for image in images}
        pixels = torch.stack([self.pixels(chosen[name]) for name in first])
        return pixels, torch.tensor([first[_name(image)] for image in images])

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images`` uint8, with a text or in pairs each distinct one once and ``image_index`` (items x images,) beside them;
        ``token_ids`` and ``padding_mask``.
        """
        import torch

        batch: Batch = {}
        shared = items[0].text is not None or len(items[0].images) > 1
        if items[0].images and shared:
            batch["images"], batch["image_index"] = self.distinct([image for item in items for image in item.images])
        elif items[0].images:
            batch["images"] = torch.stack([self.pixels(item.images[0]) for item in items])
        if items[0].text is not None:
            batch["token_ids"], batch["padding_mask"] = self.pad(items)
        return batch


def _name(image: Any) -> Any:
    return str(image) if isinstance(image, (str, Path)) else id(image)
