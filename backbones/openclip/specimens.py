"""A CLIP with random towers, in the form in which open_clip's models are kept."""

from __future__ import annotations

import json
from pathlib import Path

from beit3_bench.backbones.openclip.library import open_clip
from beit3_bench.backbones.openclip.sources import CONFIG, PREFERRED
from beit3_bench.files import make_folder, replacing, write_atomic

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def write_specimens(folder: Path) -> None:
    """See `family.Family.write_specimens`."""
    library = open_clip("a tiny CLIP")
    import torch
    from safetensors.torch import save

    make_folder(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = library.CLIP(**MODEL)
        with torch.no_grad():
            for parameter in model.parameters():  # the usual initialisation is so small that all outputs are alike
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with replacing(folder / PREFERRED[0]) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    write_atomic(folder / CONFIG, json.dumps({"model_cfg": MODEL, "preprocess_cfg": PIXELS}).encode())
