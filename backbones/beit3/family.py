"""BEiT-3 as a family: the model that this project knows best, and the one that it fine-tunes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from beit3_bench.backbones.abilities import Answers, Captions, Classifies, Detects, Embeds, Patches, Segments
from beit3_bench.backbones.benchmark import Benchmark
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.numerics import Head
from beit3_bench.backbones.recipe import resolve_section
from beit3_bench.backbones.released import ReleasedFile
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.training import EngineRequest, Training, TrainingEngine, TrainingOptions

DENSE = ("backbone.net.", "decode_head.", "roi_heads.")
"""Names of detectron2's detectors and mmsegmentation's segmentors around a BEiT-3."""

RECIPES = files("beit3_bench.backbones.beit3.recipes")
"""A TOML file per task, a section per recipe."""


class BEiT3Family(Family):
    """Released and fine-tuned BEiT-3 files, detectron2's detectors and mmsegmentation's segmentors around one."""

    name, title = "beit3", "BEiT-3"
    tokenizer_files = ("beit3.spm",)
    abilities = (Embeds, Answers, Classifies, Captions, Detects, Segments, Patches)
    engines = (Segments,)
    scratch_presets = ("tiny",)

    @dataclass
    class Options:
        """num_heads: attention heads, for a file of a width that no preset has and that does not say it."""

        num_heads: int | None = None

    def check(self, asked: Asked) -> None:
        if asked.ability is Captions:
            from beit3_bench.backbones.beit3.native import decoding_of

            decoding_of(asked.values)
        elif asked.ability is Detects:
            from beit3_bench.backbones.beit3.detection.options import DetectorOptions

            DetectorOptions.of(asked.values).check(asked.task)
        elif asked.ability is Segments:
            import beit3_bench.backbones.beit3.mmseg_adapter  # noqa: F401  (says what to install)

    def claims(self, source: Source) -> bool:
        if source.path.is_dir():
            return False
        return any("beit3." in name or name.startswith(DENSE) for name in source.names)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        if asked.ability is Detects:
            from beit3_bench.backbones.beit3.detection.ability import load_detection

            return load_detection(source, asked, options)
        if asked.ability is Segments:
            from beit3_bench.backbones.beit3.mmseg_adapter.ability import load_segmentation

            return load_segmentation(source, asked, options)
        from beit3_bench.backbones.beit3.loading import load_native

        return load_native(source, asked, options)

    def presets(self) -> tuple[str, ...]:
        from beit3_bench.backbones.beit3.config import PRESETS

        return tuple(PRESETS)

    def parameters(self) -> Mapping[str, Mapping[str, int]]:
        from beit3_bench.backbones.beit3.config import BEiT3Config
        from beit3_bench.backbones.beit3.params import parameter_breakdown

        return {preset: parameter_breakdown(BEiT3Config.preset(preset)) for preset in self.presets()}

    def problem(self, package: str) -> str | None:
        if package != "detectron2":
            return None
        from beit3_bench.backbones.beit3 import detectron2_adapter

        return detectron2_adapter.problem()

    def benchmark(self) -> Benchmark:
        from beit3_bench.backbones.beit3.bench import BEiT3Benchmark

        return BEiT3Benchmark()

    def numerics(self) -> Sequence[Head]:
        from beit3_bench.backbones.beit3.numerics import numerics

        return numerics()

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.beit3.weights import WEIGHTS

        return WEIGHTS

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def recipe(self, asked: Asked, name: str) -> Mapping[str, Any] | None:
        sections = _sections(asked.task)
        return resolve_section(sections, name, f"recipes/{asked.task}.toml") if name in sections else None

    def recipe_names(self, task: str) -> tuple[str, ...]:
        return tuple(_sections(task))

    def recipe_tasks(self) -> tuple[str, ...]:
        return tuple(sorted(f.name.removesuffix(".toml") for f in RECIPES.iterdir() if f.name.endswith(".toml")))

    def preset_of(self, source: Source) -> str | None:
        from beit3_bench.backbones.beit3.training.start import preset_of_source

        return preset_of_source(source)

    def start_training(self, asked: Asked, options: TrainingOptions) -> Training:
        if asked.ability is Detects:
            from beit3_bench.backbones.beit3.training.detection import DetectionTraining

            return DetectionTraining(asked, options)
        from beit3_bench.backbones.beit3.training.native import start_native

        return start_native(asked, options)

    def training_engine(self, asked: Asked, request: EngineRequest) -> TrainingEngine:
        from beit3_bench.backbones.beit3.mmseg_adapter.engine import SegmentationEngine

        return SegmentationEngine(asked, request)


def _sections(task: str) -> dict[str, Any]:
    """Sections of a task's recipe file; none where there is no file."""
    file = RECIPES / f"{task}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
