"""ViLT as a family: the released files of dandelin/ViLT, and what was fine-tuned with that code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beit3_bench.backbones.abilities import Answers, Classifies, Matches, Patches
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.released import ReleasedFile
from beit3_bench.backbones.sources import Source

OWN_NAMES = frozenset({"transformer.patch_embed.proj.weight", "transformer.blocks.0.mlp.fc1.weight"})
"""Beside which stand BERT's text embeddings; VLMo's blocks have experts in place of one feed-forward."""


class ViLTFamily(Family):
    """VQAv2 and NLVR2 by classification, retrieval by comparing all pairs; images in their aspect."""

    name, title = "vilt", "ViLT"
    tokenizer_files = ("vocab.txt",)
    abilities = (Answers, Classifies, Matches, Patches)

    @dataclass
    class Options:
        """num_heads: attention heads; default: one per 64 of the width."""

        num_heads: int | None = None

    def claims(self, source: Source) -> bool:
        return (
            not source.path.is_dir()
            and source.names >= OWN_NAMES
            and "text_embeddings.word_embeddings.weight" in source.names
        )

    def check(self, asked: Asked) -> None:
        from beit3_bench.backbones.vilt.loading import head_of

        if asked.ability is not Patches:
            head_of(asked)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        from beit3_bench.backbones.vilt.loading import load_head

        return load_head(source, asked, options)

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.vilt.weights import WEIGHTS

        return WEIGHTS
