"""Tiny random models of other families for the smoke run: ``python tests/smoke_peers.py WORLD FOLDER`` writes

    FOLDER/openclip/    open_clip_config.json and open_clip_model.safetensors, the form in which open_clip's models are kept
    FOLDER/vlmo/        retrieval.pt, nlvr2.pt and vocab.txt

Their towers have learned nothing: what they score is what chance scores, give or take what random features tell apart.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def write_openclip(folder: Path) -> None:
    """A CLIP with random towers."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP)
    with torch.no_grad():
        for parameter in model.parameters():  # the usual initialisation is so small that all outputs are alike
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": HALF}))


def write_vlmo(world: Path, folder: Path) -> None:
    """A VLMo with random towers, and the words of the world's captions as its vocabulary."""
    import torch

    from beit3_bench.backbones.vlmo.config import VLMoConfig
    from beit3_bench.backbones.vlmo.loading import official_state_dict, random_model

    folder.mkdir(parents=True)
    captions = json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())
    words = Counter(w for i in captions["images"] for s in i["sentences"] for w in re.findall(r"\w+", s["raw"].lower()))
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), *map(str, range(10))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary += [word for word, _ in words.most_common() if word not in vocabulary]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary))
    torch.manual_seed(0)
    for head, types in (("retrieval", 2), ("nlvr2", 3)):
        config = VLMoConfig(
            image_size=64,
            embed_dim=64,
            depth=3,
            num_heads=4,
            ffn_dim=256,
            vl_start=2,
            vocab_size=len(vocabulary),
            token_types=types,
        )
        torch.save({"module": official_state_dict(random_model(head, config, outputs=2))}, folder / f"{head}.pt")


def main(world: Path, folder: Path) -> None:
    write_vlmo(world, folder / "vlmo")
    if importlib.util.find_spec("open_clip") is not None:
        write_openclip(folder / "openclip")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
