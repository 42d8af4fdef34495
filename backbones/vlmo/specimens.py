"""VLMos with random towers, in the form of the released files, and a vocabulary of given words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from beit3_bench.backbones.vlmo.config import VLMoConfig
from beit3_bench.backbones.vlmo.family import VLMoFamily
from beit3_bench.backbones.vlmo.loading import HEADS, official_state_dict, random_model
from beit3_bench.backbones.wordpiece import vocabulary
from beit3_bench.files import make_folder, save_atomic, write_atomic


def write_specimens(folder: Path, texts: Sequence[str]) -> None:
    """See `family.Family.write_specimens`."""
    make_folder(folder)
    pieces = vocabulary(texts)
    write_atomic(folder / VLMoFamily.tokenizer_files[0], "".join(f"{piece}\n" for piece in pieces).encode())
    for file in VLMoFamily.specimens.values():
        name = Path(file).stem
        config = VLMoConfig(
            image_size=64,
            embed_dim=64,
            depth=3,
            num_heads=4,
            ffn_dim=256,
            vl_start=2,
            vocab_size=len(pieces),
            token_types=HEADS[name].token_types,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = random_model(name, config, outputs=2)
        save_atomic(folder / file, {"module": official_state_dict(model)})
