"""The shape of a VLMo, and reading it off the tensors of a file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor

INITIAL_TEXT_LENGTH = 196
"""Texts that the relative positions of the released files tell apart (official ``max_text_len_of_initckpt``)."""
MAX_TEXT_LENGTH = 40
"""Tokens of a text, [CLS] and [SEP] included, in all official configurations."""
CLS_ROWS = 3  # of an image and of a text: CLS to others, others to CLS, CLS to itself
BIAS_TABLE = "relative_position_bias_table"
IMAGE_POSITIONS = "transformer.pos_embed"
TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
PATCHES = "transformer.patch_embed.proj.weight"
WORDS = "text_embeddings.word_embeddings.weight"
IMAGE_INDEX = "relative_position_index"

_LAYER = re.compile(r"transformer\.blocks\.(\d+)\.(\w+)")
OWN_NAMES = re.compile(r"transformer\.blocks\.\d+\.(?:norm2|mlp)_(?:text|imag|vl)\.")
"""Names that only a VLMo's tensors have."""

PRESETS: dict[str, dict[str, Any]] = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "vl_start": 10, "relative": True, "layer_scale": True},
    "base_plus": {"embed_dim": 544, "depth": 24, "num_heads": 16, "vl_start": 21, "relative": False, "layer_scale": False},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "vl_start": 21, "relative": True, "layer_scale": True},
}  # fmt: skip
"""Architectures of the official code (`multiway_transformer.py`); all with patches of 16 pixels and a feed-forward of four widths."""


@dataclass(frozen=True)
class VLMoConfig:
    """image_size, patch_size: pixels.  embed_dim: width.  ffn_dim: width between the two layers of an expert.
    vl_start: first layer with a vision-language expert.  vocab_size: token embeddings.
    max_text_length: tokens of a text, special ones included.  text_rows: of the table of text positions.
    relative: relative position biases, and no absolute positions; else the other way round.
    initial_text_length: texts whose distances the bias table tells apart.
    layer_scale: a learned factor per channel behind attention and expert.  token_types: two, or three for pairs of images.
    """

    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    vl_start: int = 10
    vocab_size: int = 30522
    max_text_length: int = MAX_TEXT_LENGTH
    text_rows: int = MAX_TEXT_LENGTH
    relative: bool = True
    initial_text_length: int = INITIAL_TEXT_LENGTH
    layer_scale: bool = True
    token_types: int = 2

    @classmethod
    def preset(cls, name: str, **changes: Any) -> VLMoConfig:
        """An official architecture."""
        return cls(**{**PRESETS[name], "ffn_dim": 4 * PRESETS[name]["embed_dim"], **changes})

    @property
    def preset_name(self) -> str | None:
        """The official architecture that this is, whatever its image size and vocabulary."""
        if self.patch_size != 16 or self.ffn_dim != 4 * self.embed_dim:
            return None
        return next((name for name, p in PRESETS.items() if all(getattr(self, k) == v for k, v in p.items())), None)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """CLS and patches."""
        return self.grid**2 + 1

    @property
    def bias_rows(self) -> int:
        """Rows of the bias table."""
        return image_rows(self.grid) + text_rows(self.initial_text_length)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def image_rows(grid: int) -> int:
    """Rows of the bias table for distances between patches and for an image's CLS."""
    return (2 * grid - 1) ** 2 + CLS_ROWS


def text_rows(length: int) -> int:
    """Rows for text to image, image to text, 2 L - 3 distances between words of texts of length L, and a text's CLS."""
    return 2 + 2 * length - 3 + CLS_ROWS


# ---- from a file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a user says of a file; None = as the file shows, or as the released files are. Names as in `VLMoConfig`."""

    preset: str | None = None
    image_size: int | None = None
    num_heads: int | None = None
    max_text_length: int | None = None
    initial_text_length: int | None = None


@dataclass(frozen=True)
class FileShape:
    """config: of the network to build.  grid: patches along a side that the file's own tables are for.
    notes: what was taken to be so without a proof.
    """

    config: VLMoConfig
    grid: int
    notes: tuple[str, ...] = ()


def shape_of_file(tensors: Mapping[str, Tensor], origin: str, settings: Settings) -> FileShape:
    """What a set of official tensors was made with.

    Raises:
        BenchError: not a VLMo, something that does not show and was not said, or was said and contradicts the file.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise BenchError(_missing(tensors, origin, repr(name)))
        if tensors[name].ndim != dimensions:
            raise BenchError(f"{origin}: tensor {name!r} has {tensors[name].ndim} dimensions instead of {dimensions}")
        return tuple(tensors[name].shape)

    parts = [(int(m[1]), m[2]) for name in tensors if (m := _LAYER.match(name))]
    dim, _, _, patch = shape(PATCHES, 4)
    if dim < 1 or patch < 1:
        raise BenchError(f"{origin}: tensor {PATCHES!r} is empty; get this file again")
    depth = _depth(parts)
    ffn = shape("transformer.blocks.0.mlp_imag.fc1.weight", 2)[0]
    relative = BIAS_TABLE in tensors
    rows = shape(TEXT_POSITIONS, 2)[0]
    length = _text_length(origin, settings, rows, relative)
    notes: tuple[str, ...] = ()
    initial = INITIAL_TEXT_LENGTH
    if not relative and IMAGE_POSITIONS not in tensors:
        raise BenchError(_missing(tensors, origin, f"{BIAS_TABLE!r} or {IMAGE_POSITIONS!r}"))
    if relative:
        table = shape(BIAS_TABLE, 2)
        heads = _heads_of_table(origin, settings, table[1], depth)
        grid, initial, notes = _grid_of_table(tensors, origin, settings, table[0], length, patch)
    else:
        positions = shape(IMAGE_POSITIONS, 3)[1]
        grid = math.isqrt(max(positions - 1, 0))
        if grid < 1 or grid**2 + 1 != positions:
            raise BenchError(
                f"{origin}: {IMAGE_POSITIONS!r} has {positions} rows, which are not those of a square image"
            )
        heads = _heads(origin, settings, dim, depth)
    if heads < 1 or dim % heads:
        raise BenchError(f"{origin}: a width of {dim} does not divide into {heads} heads; give another num_heads")
    size = settings.image_size or grid * patch
    if relative and size != grid * patch and grid < 3:
        raise BenchError(
            f"{origin}: a table of {grid}x{grid} patches is too small to be resized; leave --image-size out"
        )
    if size % patch or size < patch:
        raise BenchError(
            f"{origin}: an image of {size} pixels does not divide into patches of {patch}; give a multiple"
        )
    config = VLMoConfig(
        image_size=size,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        ffn_dim=ffn,
        vl_start=_vl_start(parts, depth, origin),
        vocab_size=shape(WORDS, 2)[0],
        max_text_length=length,
        text_rows=rows if relative else length,
        relative=relative,
        initial_text_length=initial,
        layer_scale=any(part == "gamma_1" for _, part in parts),
        token_types=shape("token_type_embeddings.weight", 2)[0],
    )
    if settings.preset is not None and config.preset_name != settings.preset:
        raise BenchError(
            f"{origin}: is not a VLMo {settings.preset}: {depth} layers of width {dim}, the first vision-language expert in layer "
            f"{config.vl_start}; leave --preset out"
        )
    return FileShape(config, grid, notes)


def _depth(parts: Sequence[tuple[int, str]]) -> int:
    """Layers from the first on that have half as many tensors as it or more: a stray name makes no layer."""
    sizes = Counter(index for index, _ in parts)
    depth = 0
    while sizes[depth] and 2 * sizes[depth] >= sizes[0]:
        depth += 1
    return depth


def _vl_start(parts: Sequence[tuple[int, str]], depth: int, origin: str) -> int:
    """The first of the layers at the end that have a vision-language expert."""
    having = {index for index, part in parts if part.endswith("_vl")}
    start = depth
    while start - 1 in having:
        start -= 1
    if start == depth:
        raise BenchError(f"{origin}: has no vision-language expert in its last layer ('mlp_vl'); get this file again")
    return start


def _missing(tensors: Mapping[str, Tensor], origin: str, what: str) -> str:
    """Of a file of this family, the tensor; of another one, how its names begin."""
    if any(OWN_NAMES.match(name) for name in tensors):
        return f"{origin}: tensor {what} is missing; get this file again, or write it again with all tensors"
    first = ", ".join(sorted(tensors)[:3])
    return f"{origin}: tensor {what} is missing; this is no VLMo checkpoint with official names (it has {first}, ...)"


def _text_length(origin: str, settings: Settings, rows: int, relative: bool) -> int:
    length = min(rows, MAX_TEXT_LENGTH) if settings.max_text_length is None else settings.max_text_length
    if length < 3 or (length > rows and not relative):
        raise BenchError(
            f"{origin}: has positions for texts of {rows} tokens, not of {length}; give a max_text_length of 3 to {rows}"
        )
    return length


def _heads_of_table(origin: str, settings: Settings, columns: int, depth: int) -> int:
    heads = columns // max(depth, 1)
    if heads < 1 or heads * depth != columns:
        raise BenchError(
            f"{origin}: {BIAS_TABLE!r} has {columns} columns, which are not those of {depth} layers; "
            "is a layer missing in this file?"
        )
    if settings.num_heads not in (None, heads):
        raise BenchError(
            f"{origin}: {BIAS_TABLE!r} is for {heads} heads, not {settings.num_heads}; leave num_heads out"
        )
    return heads


def _heads(origin: str, settings: Settings, dim: int, depth: int) -> int:
    if settings.num_heads is not None:
        return settings.num_heads
    known = next((p["num_heads"] for p in PRESETS.values() if (p["embed_dim"], p["depth"]) == (dim, depth)), None)
    if known is None:
        raise BenchError(
            f"{origin}: the number of attention heads does not show in a file of width {dim} without relative positions; "
            "give num_heads (-o num_heads=N)"
        )
    return known


def _grid_of_table(
    tensors: Mapping[str, Tensor], origin: str, settings: Settings, rows: int, length: int, patch: int
) -> tuple[int, int, tuple[str, ...]]:
    """(patches along a side, longest text, notes) of a bias table of so many rows, which hold the two of them as a sum.

    The file's index of image positions tells them apart; a table for texts of `INITIAL_TEXT_LENGTH` needs none.
    """
    fits = {grid: (rows - image_rows(grid) - 2) // 2 for grid in range(1, math.isqrt(rows) // 2 + 2)}
    fits = {grid: initial for grid, initial in fits.items() if grid > 0 and initial >= length and rows % 2 == 0}
    if settings.initial_text_length is not None:
        chosen = next((g for g, initial in fits.items() if initial == settings.initial_text_length), None)
        if chosen is None:
            raise BenchError(
                f"{origin}: {BIAS_TABLE!r} has {rows} rows, which are not those of a square image and of texts of "
                f"{settings.initial_text_length} tokens; give another initial_text_length"
            )
        return chosen, settings.initial_text_length, ()
    index = tensors.get(IMAGE_INDEX)
    if index is not None and index.ndim == 2 and math.isqrt(max(len(index) - 1, 0)) in fits:
        grid = math.isqrt(len(index) - 1)
        return grid, fits[grid], ()
    released = next((g for g, initial in fits.items() if initial == INITIAL_TEXT_LENGTH), None)
    if released is not None:
        return released, INITIAL_TEXT_LENGTH, ()
    if not fits:
        raise BenchError(
            f"{origin}: {BIAS_TABLE!r} has {rows} rows, which are not those of a square image and of texts of {length} tokens or "
            "more; is this a VLMo checkpoint?"
        )
    grid = max(fits)
    if settings.image_size == grid * patch:
        return grid, fits[grid], ()
    note = (
        f"the file does not say its image size: its bias table was taken to be for {grid}x{grid} patches and texts of "
        f"{fits[grid]} tokens (to read it otherwise, give initial_text_length)"
    )
    return grid, fits[grid], (note,)
