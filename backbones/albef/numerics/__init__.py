"""Retrieval of a tiny ALBEF, stage by stage, with what the official code (salesforce/ALBEF) made of the same weights.

The files beside this one are made by tools/numerics.py from tests/golden/peers/albef.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.fusion.numerics import RETRIEVAL_WAYS, build_head
from beit3_bench.backbones.numerics import Given, Head, heads_of, read_embedded

if TYPE_CHECKING:
    from torch import nn

FOLDER = files("beit3_bench.backbones.albef.numerics")
WAYS = RETRIEVAL_WAYS


def numerics() -> list[Head]:
    """See `family.Family.numerics`."""
    return heads_of("albef", read_embedded(FOLDER), WAYS, build)


def build(task: str, config: Mapping[str, Any], weights: Given) -> nn.Module:
    """A tiny network."""
    from beit3_bench.backbones.albef.heads import Retrieval

    return build_head("ALBEF", task, config["heads"][task], weights, Retrieval)
