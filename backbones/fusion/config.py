"""The shape of a vision transformer with a BERT that looks at it (ALBEF, BLIP), and reading it off the tensors of a file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor

HEAD_WIDTH = 64  # of all released files
VISION, TEXT, DECODER = "visual_encoder.", "text_encoder.", "text_decoder.bert."
POSITIONS = f"{VISION}pos_embed"

_VISION_PRESETS = {(768, 12): "base", (1024, 24): "large"}
_VISION_LAYER = re.compile(r"visual_encoder\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class VisionConfig:
    """image_size, patch_size: pixels.  ffn: width between the two layers of a feed-forward."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    ffn: int

    @property
    def tokens(self) -> int:
        """CLS and patches."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class TextConfig:
    """positions: rows of the position table, the longest text.  token_types: rows of that table; 0 = there is none.
    first_cross: first layer with cross-attention; ``depth`` = none.  context_width: of what is looked at.
    first_merge: first layer that merges two images by a learned layer instead of their mean; None = no layer takes two.
    """

    width: int
    depth: int
    heads: int
    ffn: int
    vocab_size: int
    positions: int
    token_types: int = 0
    first_cross: int = 0
    context_width: int = 0
    first_merge: int | None = None


@dataclass(frozen=True)
class FusionConfig:
    """text: the encoder; None for a captioner.  decoder: None for heads without one.  embed_dim: of images and texts alone; 0 = none.
    shared_pairs: whether layers with cross-attention share keys and values two by two, each for one of two images.
    """

    vision: VisionConfig
    text: TextConfig | None = None
    decoder: TextConfig | None = None
    embed_dim: int = 0
    shared_pairs: bool = False

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def reading(self) -> TextConfig:
        """The part that reads a text first."""
        config = self.text or self.decoder
        assert config is not None
        return config

    @property
    def vocab_size(self) -> int:
        return self.reading.vocab_size

    @property
    def preset_name(self) -> str | None:
        """As the authors name the vision transformer; the text side is always of base size."""
        known = self.vision.patch_size == 16 and self.reading.width == 768
        return _VISION_PRESETS.get((self.vision.width, self.vision.depth)) if known else None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Settings:
    """What a user says of a file; None = as the file shows, or as the released files are.

    num_heads: attention heads of the vision transformer.  text_heads: of the text side.
    """

    preset: str | None = None
    image_size: int | None = None
    num_heads: int | None = None
    text_heads: int | None = None


class Shapes:
    """Sizes of a file's tensors, by name.

    origin: what messages begin with.  title: of the family, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], origin: str, title: str):
        self.tensors, self.origin, self.title = tensors, origin, title

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Raises: BenchError: it is missing, empty or has other dimensions."""
        if name not in self.tensors:
            raise BenchError(
                f"{self.origin}: tensor {name!r} is missing; this is no {self.title} checkpoint of this task with official names"
            )
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise BenchError(f"{self.origin}: tensor {name!r} is of shape {shape}, not of {dimensions} sizes above 0")
        return shape

    def has(self, name: str) -> bool:
        return name in self.tensors


def depth_of(names: Iterable[str], layer: re.Pattern[str]) -> int:
    """Layers 0, 1, 2, ... of which any tensor is there; a stray name behind a gap makes no layer."""
    having = {int(match[1]) for name in names if (match := layer.match(name))}
    return next(n for n in range(len(having) + 1) if n not in having)


def network_shape(
    shapes: Shapes, head: str, settings: Settings, shared_pairs: bool = False
) -> tuple[FusionConfig, int]:
    """The network of a head (``"retrieval"``, or the task), and the patches along a side that the file's positions are for.

    Raises:
        BenchError: as `vision_shape`.
    """
    vision, grid = vision_shape(shapes, settings)
    config = FusionConfig(
        vision,
        text_shape(shapes, TEXT, settings) if head != "coco-caption" else None,
        text_shape(shapes, DECODER, settings) if head in ("vqav2", "coco-caption") else None,
        shapes.of("vision_proj.weight", 2)[0] if head == "retrieval" else 0,
        shared_pairs,
    )
    return config, grid


def vision_shape(shapes: Shapes, settings: Settings) -> tuple[VisionConfig, int]:
    """The vision transformer to build, and the patches along a side that the file's positions are for.

    Raises:
        BenchError: a tensor is missing, or something does not show and was not said.
    """
    origin = shapes.origin
    width, _, _, patch = shapes.of(f"{VISION}patch_embed.proj.weight", 4)
    rows = shapes.of(POSITIONS, 3)[1]
    grid = math.isqrt(rows - 1)
    if grid < 1 or grid**2 + 1 != rows:
        raise BenchError(f"{origin}: {POSITIONS!r} has {rows} rows, which are not those of a square image")
    size = settings.image_size or grid * patch
    if size % patch:
        raise BenchError(
            f"{origin}: an image of {size} pixels does not divide into patches of {patch}; give a multiple"
        )
    heads = heads_of(origin, width, settings.num_heads, "num_heads", "vision transformer")
    depth = depth_of(shapes.tensors, _VISION_LAYER)
    ffn = shapes.of(f"{VISION}blocks.0.mlp.fc1.weight", 2)[0]
    return VisionConfig(size, patch, width, depth, heads, ffn), grid


def text_shape(shapes: Shapes, prefix: str, settings: Settings) -> TextConfig:
    """A BERT whose names begin with ``prefix``.

    Raises:
        BenchError: as `vision_shape`.
    """
    words = shapes.of(f"{prefix}embeddings.word_embeddings.weight", 2)
    layers = re.compile(re.escape(f"{prefix}encoder.layer.") + r"(\d+)\.")
    depth = depth_of(shapes.tensors, layers)
    layer = f"{prefix}encoder.layer."
    crossing = [n for n in range(depth) if _crosses(shapes, f"{layer}{n}.crossattention.")]
    first_cross = min(crossing, default=depth)
    twin = shapes.has(f"{layer}{first_cross}.crossattention.self0.key.weight")
    context = 0
    if first_cross < depth:
        context = shapes.of(f"{layer}{first_cross}.crossattention.{'self0' if twin else 'self'}.key.weight", 2)[1]
    merging = [n for n in range(depth) if shapes.has(f"{layer}{n}.crossattention.output.merge_layer.weight")]
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    return TextConfig(
        width=words[1],
        depth=depth,
        heads=heads_of(shapes.origin, words[1], settings.text_heads, "text_heads", "text side"),
        ffn=shapes.of(f"{layer}0.intermediate.dense.weight", 2)[0],
        vocab_size=words[0],
        positions=shapes.of(f"{prefix}embeddings.position_embeddings.weight", 2)[0],
        token_types=shapes.of(types, 2)[0] if shapes.has(types) else 0,
        first_cross=first_cross,
        context_width=context,
        first_merge=min(merging, default=depth) if twin else None,
    )


def _crosses(shapes: Shapes, prefix: str) -> bool:
    return any(shapes.has(f"{prefix}{part}.query.weight") for part in ("self", "self0"))


def heads_of(origin: str, width: int, given: int | None, option: str, what: str) -> int:
    """Attention heads: as given, else of `HEAD_WIDTH` each.

    Raises:
        BenchError: they do not divide the width, or do not show.
    """
    heads = given
    if heads is None:
        if width % HEAD_WIDTH:
            raise BenchError(
                f"{origin}: the number of attention heads does not show in a {what} of width {width}; give {option} "
                f"(-o {option}=N)"
            )
        heads = width // HEAD_WIDTH
    if heads < 1 or width % heads:
        raise BenchError(f"{origin}: a width of {width} does not divide into {heads} heads; give another {option}")
    return heads


def check_preset(config: FusionConfig, settings: Settings, origin: str, title: str) -> None:
    """Raise for a ``--preset`` that a file is not of."""
    if settings.preset is not None and settings.preset != config.preset_name:
        raise BenchError(
            f"{origin}: is not a {title} {settings.preset}: its vision transformer has {config.vision.depth} layers of width "
            f"{config.vision.width}; leave --preset out"
        )
