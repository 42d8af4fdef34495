"""VLMo as a family: the released files of microsoft/unilm's folder `vlmo`, and what was fine-tuned with that code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beit3_bench.backbones.abilities import Answers, Classifies, Embeds, Patches
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.numerics import Head
from beit3_bench.backbones.released import ReleasedFile
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.vlmo.config import OWN_NAMES


class VLMoFamily(Family):
    """VLMo base, base plus and large: retrieval as a dual encoder, VQAv2 and NLVR2 by classification."""

    name, title = "vlmo", "VLMo"
    tokenizer_files = ("vocab.txt",)
    abilities = (Embeds, Answers, Classifies, Patches)
    specimens: ClassVar = {"flickr30k": "retrieval.pt", "nlvr2": "nlvr2.pt"}

    @dataclass
    class Options:
        """num_heads: attention heads, for a file without relative positions whose width and depth no preset has.
        max_text_length: tokens of a text, special ones included; default: 40, or as many as the file has positions for.
        initial_text_length: texts whose distances the table of relative positions tells apart; 196 in released files.
        """

        num_heads: int | None = None
        max_text_length: int | None = None
        initial_text_length: int | None = None

    def claims(self, source: Source) -> bool:
        return not source.path.is_dir() and any(OWN_NAMES.match(name) for name in source.names)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        from beit3_bench.backbones.vlmo.loading import load_head

        return load_head(source, asked, options)

    def check(self, asked: Asked) -> None:
        from beit3_bench.backbones.vlmo.loading import head_of

        if asked.ability is not Patches:
            head_of(asked)

    def numerics(self) -> Sequence[Head]:
        from beit3_bench.backbones.vlmo.numerics import numerics

        return numerics()

    def write_specimens(self, folder: Path, texts: Sequence[str]) -> None:
        from beit3_bench.backbones.vlmo.specimens import write_specimens

        write_specimens(folder, texts)

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.vlmo.weights import WEIGHTS

        return WEIGHTS
