"""ALBEF as a family: the released files of salesforce/ALBEF, LAVIS' own trainings, and what was fine-tuned with either code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beit3_bench.backbones.abilities import Answers, Classifies, Embeds, Matches, Patches
from beit3_bench.backbones.benchmark import Benchmark
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.numerics import Head
from beit3_bench.backbones.released import ReleasedFile
from beit3_bench.backbones.sources import Source


class AlbefFamily(Family):
    """Retrieval with re-ranking, VQAv2 by ranking answers, NLVR2, SNLI-VE."""

    name, title = "albef", "ALBEF"
    tokenizer_files = ("vocab.txt",)
    abilities = (Embeds, Matches, Answers, Classifies, Patches)

    specimens: ClassVar = {"flickr30k": "retrieval.pth", "snli-ve": "entailment.pth", "sugarcrepe": "retrieval.pth"}

    @dataclass
    class Options:
        """num_heads: attention heads of the vision transformer; default: one per 64 of its width.
        text_heads: attention heads of the text side; default: one per 64 of its width.
        answer_candidates: answers of a question that are scored, of those with the likeliest first tokens; default: 128.
        """

        num_heads: int | None = None
        text_heads: int | None = None
        answer_candidates: int | None = None

    def claims(self, source: Source) -> bool:
        from beit3_bench.backbones.fusion.files import family_of

        return not source.path.is_dir() and family_of(source.names) == self.name

    def check(self, asked: Asked) -> None:
        from beit3_bench.backbones.albef.loading import SYSTEM
        from beit3_bench.backbones.fusion.loading import head_of

        if asked.ability is not Patches:
            head_of(asked, SYSTEM)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        from beit3_bench.backbones.albef.loading import SYSTEM, load_head
        from beit3_bench.backbones.fusion.loading import load_patches

        if asked.ability is Patches:
            return load_patches(SYSTEM, source, asked, options)
        return load_head(source, asked, options)

    def benchmark(self) -> Benchmark:
        from beit3_bench.backbones.fusion.benchmark import FusionBenchmark

        return FusionBenchmark(self.name)

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.albef.weights import WEIGHTS

        return WEIGHTS

    def numerics(self) -> Sequence[Head]:
        from beit3_bench.backbones.albef.numerics import numerics

        return numerics()

    def write_specimens(self, folder: Path, texts: Sequence[str]) -> None:
        from beit3_bench.backbones.albef import heads
        from beit3_bench.backbones.fusion.loading import ENTAILMENT
        from beit3_bench.backbones.fusion.specimens import text_config, write_specimens

        write_specimens(
            folder,
            texts,
            0,
            lambda words: text_config(words, 1, 2),
            {
                "retrieval.pth": heads.Retrieval,
                "entailment.pth": lambda config: heads.Entailment(config, len(ENTAILMENT)),
            },
        )
