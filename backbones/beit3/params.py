"""How many parameters a configuration has, and where they sit. Nothing is allocated: the model is built on meta tensors."""

from __future__ import annotations

from beit3_bench.backbones.beit3.config import BEiT3Config


def parameter_breakdown(config: BEiT3Config) -> dict[str, int]:
    """Parameter counts by part.

    Returns:
        ``V-FFN``, ``L-FFN``, ``VL-FFN``, ``attention`` count weight matrices only, as the paper's table does (BEiT-3 paper,
        table "parameters of each expert"); ``word embedding``, ``patch embedding``, ``positions``; ``biases and norms`` is the
        rest, and ``total`` is everything in the backbone.
    """
    import torch

    from beit3_bench.backbones.beit3.multiway import BEiT3

    with torch.device("meta"):
        model = BEiT3(config)
    counts = dict.fromkeys(
        ("V-FFN", "L-FFN", "VL-FFN", "attention", "word embedding", "patch embedding", "positions", "biases and norms"),
        0,
    )
    for name, parameter in model.named_parameters():
        if name.startswith("text_embed"):
            part = "word embedding"
        elif "embed_positions" in name:
            part = "positions"
        elif name == "vision_embed.proj.weight":
            part = "patch embedding"
        elif parameter.ndim < 2 or name.startswith("vision_embed"):
            part = "biases and norms"
        elif ".ffn.A." in name:
            part = "V-FFN"
        elif ".ffn.B." in name:
            part = "L-FFN"
        elif ".ffn.VL." in name:
            part = "VL-FFN"
        else:
            part = "attention"
        counts[part] += parameter.numel()
    counts["total"] = sum(counts.values())
    return counts
