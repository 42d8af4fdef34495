"""Which family and which head a file's tensor names are of, and filling a network from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from beit3_bench.backbones.fusion.config import POSITIONS, VisionConfig
from beit3_bench.backbones.patches import resize_positions

MOMENTUM = (
    "visual_encoder_m.*", "text_encoder_m.*", "text_decoder_m.*", "vision_proj_m.*", "text_proj_m.*", "combine_*_proj_m.*",
    "cls_head_m.*", "image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue", "temp",
    "*.embeddings.position_ids",
)  # fmt: skip
"""Of training: copies with momentum, queues, a temperature; and counting buffers. Never read at evaluation."""
PRETRAINING = ("text_encoder.cls.*", "text_encoder.pooler.*")
"""Heads of pre-training that no task asks."""

_CROSSING = re.compile(r"text_(?:encoder|decoder)\.(?:bert\.)?encoder\.layer\.(\d+)\.crossattention\.")


def family_of(names: Iterable[str]) -> str | None:
    """``"albef"``: the first layers of the text encoder look at nothing. ``"blip"``: every layer looks at the image. None: neither."""
    names = set(names)
    if not any(name.startswith("visual_encoder.blocks.0.") for name in names):
        return None
    prefix = "text_encoder." if any(name.startswith("text_encoder.") for name in names) else "text_decoder."
    crossing = {int(m[1]) for name in names if name.startswith(prefix) and (m := _CROSSING.match(name))}
    if not crossing:
        return None
    return "blip" if 0 in crossing else "albef"


def bare_text_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the text encoder without the ``bert.`` of pre-training (official `Retrieval.py`); the decoder keeps its own."""
    bare = {}
    for name, value in tensors.items():
        wrapped = name.startswith(("text_encoder.bert.", "text_encoder_m.bert."))
        bare[name.replace(".bert.", ".", 1) if wrapped else name] = value
    return bare


def held_heads(tensors: Mapping[str, Tensor], family: str) -> tuple[str, ...]:
    """The heads that a file can be asked for, by our names of tasks; several for a pre-trained file."""
    parts = {name.split(".", 1)[0] for name in tensors}
    decodes, reads = "text_decoder" in parts, "text_encoder" in parts
    output = tensors.get("cls_head.2.weight")
    if "cls_head" in parts:
        two = any(".crossattention.self0." in name for name in tensors)
        if family == "albef":
            two = output is not None and output.ndim == 2 and len(output) == 2
        return ("nlvr2",) if two else ("snli-ve",)
    if decodes and "itm_head" in parts and family == "blip":
        return ("retrieval", "coco-caption")
    if decodes:
        return ("vqav2",) if reads else ("coco-caption",)
    return ("retrieval",) if "itm_head" in parts else ()


def resized(tensors: Mapping[str, Tensor], config: VisionConfig, grid: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors with image positions of the size of ``config``, and what was resized: name -> "14x14 -> 24x24"."""
    wanted = config.image_size // config.patch_size
    if wanted == grid:
        return dict(tensors), {}
    table = resize_positions(tensors[POSITIONS], grid, wanted)
    return {**tensors, POSITIONS: table}, {POSITIONS: f"{grid}x{grid} -> {wanted}x{wanted}"}
