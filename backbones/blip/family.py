"""BLIP as a family: the released files of salesforce/BLIP, LAVIS' own trainings, and what was fine-tuned with either code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beit3_bench.backbones.abilities import Answers, Captions, Classifies, Embeds, Matches, Patches
from beit3_bench.backbones.benchmark import Benchmark
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.numerics import Head
from beit3_bench.backbones.released import ReleasedFile
from beit3_bench.backbones.sources import Source


class BlipFamily(Family):
    """Retrieval with re-ranking, VQAv2 by ranking answers or searching them, NLVR2, captions, SNLI-VE."""

    name, title = "blip", "BLIP"
    tokenizer_files = ("vocab.txt",)
    abilities = (Embeds, Matches, Answers, Classifies, Captions, Patches)

    specimens: ClassVar = {"flickr30k": "retrieval.pth"}

    @dataclass
    class Options:
        """num_heads: attention heads of the vision transformer; default: one per 64 of its width.
        text_heads: attention heads of the text side; default: one per 64 of its width.
        answer_candidates: answers of a question that are scored, of those with the likeliest first tokens; default: 128.
        answer_mode: rank (a list of answers) or generate (beam search); default: rank, which gave the published numbers.
        min_length: shortest caption, prompt included; default: 5.
        repetition_penalty: of captions; default: 1.0, and 1.1 on nocaps.
        """

        num_heads: int | None = None
        text_heads: int | None = None
        answer_candidates: int | None = None
        answer_mode: str | None = None
        min_length: int | None = None
        repetition_penalty: float | None = None

    def claims(self, source: Source) -> bool:
        from beit3_bench.backbones.fusion.files import family_of

        return not source.path.is_dir() and family_of(source.names) == self.name

    def check(self, asked: Asked) -> None:
        from beit3_bench.backbones.blip.loading import check_values

        if asked.ability is not Patches:
            check_values(asked)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        from beit3_bench.backbones.blip.loading import SYSTEM, load_head
        from beit3_bench.backbones.fusion.loading import load_patches

        if asked.ability is Patches:
            return load_patches(SYSTEM, source, asked, options)
        return load_head(source, asked, options)

    def benchmark(self) -> Benchmark:
        from beit3_bench.backbones.fusion.benchmark import FusionBenchmark

        return FusionBenchmark(self.name)

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.blip.weights import WEIGHTS

        return WEIGHTS

    def numerics(self) -> Sequence[Head]:
        from beit3_bench.backbones.blip.numerics import numerics

        return numerics()

    def write_specimens(self, folder: Path, texts: Sequence[str]) -> None:
        from beit3_bench.backbones.blip import heads
        from beit3_bench.backbones.fusion.heads import ADDED_TOKENS
        from beit3_bench.backbones.fusion.specimens import text_config, write_specimens

        write_specimens(
            folder,
            texts,
            ADDED_TOKENS,
            lambda words: text_config(words, 0, 0),
            {"retrieval.pth": heads.Retrieval},
        )
