"""The shape of a BEiT-3: one frozen dataclass, and the presets of the paper and of the release."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.plain import fill
from beit3_bench.spelling import did_you_mean

RELEASED_VOCABULARY = 64010
RELEASED_PIECES = 64002
MAX_TEXT_ROWS = (
    1024  # rows of the text position table; the first two are never used, so the longest text has 1022 tokens
)
POSITION_OFFSET = 2  # fairseq's offset: index i reads row i + 2, in both tables


@dataclass(frozen=True)
class BEiT3Config:
    """Everything that decides the shapes of a BEiT-3.

    image_size, patch_size: pixels; images are square for the native tasks.
    shared_attention: True for the paper's form (one self-attention for both modalities), False for the released
        base and large (attention weights of their own per modality, "decoupled Multiway").
    vl_layers: how many of the top layers carry a vision-language expert (paper: 3; released models: none).
    num_pieces: ids at or above it have no piece in the tokenizer and are never generated; None = 64,002 of the
        released 64,010, else the whole vocabulary.
    drop_path_rate: stochastic depth of the last layer; grows linearly from 0 at the first (training only).
    """

    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    num_heads: int = 12
    ffn_dim: int = 3072
    depth: int = 12
    vocab_size: int = RELEASED_VOCABULARY
    num_pieces: int | None = None
    cls_token_id: int = 0
    pad_token_id: int = 1
    sep_token_id: int = 2
    unk_token_id: int = 3
    mask_token_id: int | None = None
    shared_attention: bool = False
    vl_layers: int = 0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "num_heads", "ffn_dim", "depth", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BenchError(f"{name} is {value!r}; give a whole number from 1 on")
        if self.num_pieces is None:
            pieces = RELEASED_PIECES if self.vocab_size == RELEASED_VOCABULARY else self.vocab_size
            object.__setattr__(self, "num_pieces", pieces)
        if self.mask_token_id is None:
            # XLM-R's layout: the mask is the last id that has a piece.
            object.__setattr__(self, "mask_token_id", self.num_pieces - 1)  # type: ignore[operator]
        if not 1 <= self.num_pieces <= self.vocab_size:  # type: ignore[operator]
            raise BenchError(f"num_pieces {self.num_pieces} is not between 1 and vocab_size {self.vocab_size}")
        for name in ("cls_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "mask_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise BenchError(f"{name} {getattr(self, name)} is not below vocab_size {self.vocab_size}")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise BenchError(f"drop_path_rate {self.drop_path_rate} is not in [0, 1)")
        if self.embed_dim % self.num_heads:
            raise BenchError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise BenchError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"the nearest that is: {max(round(self.image_size / self.patch_size), 1) * self.patch_size}"
            )
        if not 0 <= self.vl_layers <= self.depth:
            raise BenchError(f"vl_layers {self.vl_layers} is not between 0 and depth {self.depth}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def replace(self, **changes: Any) -> BEiT3Config:
        """A copy with some fields changed; with another ``vocab_size``, piece count and mask id that were defaults follow it."""
        if "vocab_size" in changes:
            default = BEiT3Config(vocab_size=self.vocab_size)
            if self.num_pieces == default.num_pieces:
                changes.setdefault("num_pieces", None)
                if self.mask_token_id == default.mask_token_id:
                    changes.setdefault("mask_token_id", None)
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> BEiT3Config:
        """``"tiny"`` (for the tiny world), ``"base"``, ``"large"`` (as released), ``"giant"`` (as in the paper).

        Raises:
            BenchError: unknown preset, with the nearest known one.
        """
        if name not in PRESETS:
            raise BenchError(f"no preset {name!r}; {did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str = "BEiT-3 configuration") -> BEiT3Config:
        """The inverse of `to_dict`.

        Raises:
            BenchError: a field that does not exist or holds another kind of value, beginning with ``origin``; or values
                that contradict each other.
        """
        return fill(cls, values, origin, "{owner}: no field {key!r}; {known}")


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 64, "patch_size": 16, "embed_dim": 96, "num_heads": 4, "ffn_dim": 384, "depth": 4, "vocab_size": 512,
    },
    "base": {"embed_dim": 768, "num_heads": 12, "ffn_dim": 3072, "depth": 12},
    "large": {"embed_dim": 1024, "num_heads": 16, "ffn_dim": 4096, "depth": 24},
    # BEiT-3 paper, section 2.1 and table "model configuration": ViT-giant's layout, shared attention, VL experts on top.
    "giant": {
        "patch_size": 14, "embed_dim": 1408, "num_heads": 16, "ffn_dim": 6144, "depth": 40, "shared_attention": True, "vl_layers": 3,
    },
}  # fmt: skip
