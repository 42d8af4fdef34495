"""ALBEFs and BLIPs with random weights, in the form of the released files, and a vocabulary of given words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from beit3_bench.backbones.fusion.config import FusionConfig, TextConfig, VisionConfig
from beit3_bench.backbones.strict_loading import initialise
from beit3_bench.backbones.wordpiece import VOCABULARY_FILE, vocabulary
from beit3_bench.files import make_folder, save_atomic, write_atomic

WIDTH = 64
VISION = VisionConfig(image_size=64, patch_size=16, width=WIDTH, depth=2, heads=1, ffn=128)


def write_specimens(
    folder: Path,
    texts: Sequence[str],
    added: int,
    text: Callable[[int], TextConfig],
    heads: Mapping[str, Callable[[FusionConfig], nn.Module]],
) -> None:
    """See `family.Family.write_specimens`.

    Args:
        added: tokens behind those of the vocabulary.  text: the text side, of so many tokens.
        heads: file -> network.
    """
    make_folder(folder)
    pieces = vocabulary(texts)
    write_atomic(folder / VOCABULARY_FILE, "".join(f"{piece}\n" for piece in pieces).encode())
    config = FusionConfig(VISION, text(len(pieces) + added), embed_dim=32)
    for file, head in heads.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = head(config)
            initialise(model)
        save_atomic(folder / file, {"model": model.state_dict()})


def text_config(vocab_size: int, first_cross: int, token_types: int) -> TextConfig:
    """Two layers."""
    return TextConfig(WIDTH, 2, 1, 128, vocab_size, 40, token_types, first_cross, WIDTH)
