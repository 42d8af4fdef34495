"""Tiny random models of four kinds that open_clip builds, and a tiny tokenizer in SigLIP's form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
TIMM = {"image_size": 32, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_proj": "none"}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "context_length": 77}},
    "tiny-clip-quickgelu": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "context_length": 77},
    },
    "tiny-custom": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**VISION, "image_size": 48},
        "text_cfg": {**TEXT, "context_length": 32},
    },
    "tiny-siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_pool": "map", "image_size": 64},
        "text_cfg": {
            "context_length": 64,
            "vocab_size": 400,
            "hf_tokenizer_name": "nobody/tiny-siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "tiny-coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 32, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "context_length": 32, "attn_pooler_heads": 2},
    },
}
SIGLIP_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
KINDS = ("tiny-clip", "tiny-custom", "tiny-siglip", "tiny-coca")


@dataclass(frozen=True)
class Zoo:
    """weights: ``<kind>/open_clip_model.safetensors``; only tiny-siglip's folder holds a config and a tokenizer beside it."""

    folder: Path

    def weights(self, kind: str) -> Path:
        return self.folder / kind / "open_clip_model.safetensors"

    def source(self, kind: str) -> str:
        return f"openclip:{kind}/{self.weights(kind)}"

    def reference(self, kind: str) -> tuple[Any, Any, Any]:
        """open_clip's own network with these weights, image transform and tokenizer."""
        import open_clip

        if kind == "tiny-siglip":
            name = f"local-dir:{self.folder / kind}"
            model, _, transform = open_clip.create_model_and_transforms(name)
            return model.eval(), transform, open_clip.get_tokenizer(name)
        model, _, transform = open_clip.create_model_and_transforms(kind, pretrained=str(self.weights(kind)))
        return model.eval(), transform, open_clip.get_tokenizer(kind)


def make_zoo(folder: Path) -> Zoo:
    """Register the architectures and write a random file of each."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    configs = folder / "configs"
    configs.mkdir()
    for name, config in CONFIGS.items():
        (configs / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(configs)
    torch.manual_seed(0)
    for kind in KINDS:
        place = folder / kind
        place.mkdir()
        module = open_clip.create_model(kind, load_weights=False)
        with torch.no_grad():
            if kind == "tiny-coca":
                module.text_decoder.text_projection.zero_()  # which open_clip leaves as memory was
            for parameter in module.parameters():  # the usual initialisation is so small that all outputs are alike
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_file({n: t.contiguous() for n, t in module.state_dict().items()}, place / "open_clip_model.safetensors")
    content = {"model_cfg": CONFIGS["tiny-siglip"], "preprocess_cfg": SIGLIP_PIXELS}
    (folder / "tiny-siglip" / "open_clip_config.json").write_text(json.dumps(content))
    write_tokenizer(folder / "tiny-siglip")
    return Zoo(folder)


def write_tokenizer(folder: Path) -> None:
    """A unigram tokenizer as SigLIP's files are: end of text behind every text, padded with id 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["</s>", "<pad>", "<unk>", "▁", *(f"▁{w}" for w in ("a", "photo", "of", "red", "blue", "the"))]
    pieces += list("abcdefghijklmnopqrstuvwxyz0123456789")
    vocabulary = [(piece, -float(n)) for n, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "padding_side": "right",
                "model_max_length": 64,
            }
        )
    )
