"""What open_clip can build as a family: CLIP, OpenCLIP, SigLIP, EVA-CLIP, MetaCLIP, DFN, PE-Core, CoCa (which captions, too).

The networks, image transforms and tokenizers are open_clip's own (github.com/mlfoundations/open_clip), an optional package. Files are
read here, as data, and no connection is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beit3_bench.backbones.abilities import Captions, Embeds, Patches
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model, Prompts
from beit3_bench.backbones.released import ReleasedFile, find_released
from beit3_bench.backbones.sources import Source

CLIP_PROMPTS = "CLIP's: OpenAI's 1,000 class names in its 80 templates"


class OpenClipFamily(Family):
    """SOURCE is ``ARCHITECTURE/FILE``, a folder with ``open_clip_config.json`` (``local-dir:FOLDER`` is the same), or a file in one."""

    name, title = "openclip", "open_clip"
    tokenizer_files = (
        "tokenizer.json",
        "spiece.model",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "vocab.json",
    )
    abilities = (Embeds, Captions, Patches)
    specimens: ClassVar = {"flickr30k": ".", "imagenet": "."}

    @dataclass
    class Options:
        """tag: open_clip's name of the pretrained weights in the file (``laion2b_s32b_b82k``), where neither the file's name nor a
        config beside it says which they are: pixels and activation are then those that they were trained with.
        num_beam_groups: of a CoCa's captions, groups that the beams are searched in; default: 3.
        min_length: shortest caption, tokens with the start token; default: 5.
        repetition_penalty: of captions; default: 1.0, none.
        diversity_penalty: that keeps groups of beams apart; default: 0.0, as in open_clip.
        """

        tag: str | None = None
        num_beam_groups: int | None = None
        min_length: int | None = None
        repetition_penalty: float | None = None
        diversity_penalty: float | None = None

    def locate(self, text: str) -> Path:
        from beit3_bench.backbones.file_kinds import checkpoint_file
        from beit3_bench.backbones.openclip.sources import place_of

        return checkpoint_file(place_of(text).weights)

    def check(self, asked: Asked) -> None:
        from beit3_bench.backbones.openclip.library import open_clip

        open_clip(f"task {asked.task} with a checkpoint of open_clip")
        if asked.ability is Captions:
            from beit3_bench.backbones.openclip.captions import check_values

            check_values(asked.values)

    def claims(self, source: Source) -> bool:
        from beit3_bench.backbones.openclip.sources import CONFIG

        released = find_released(source.path)
        return (released is not None and released.family == self.name) or (source.path.parent / CONFIG).is_file()

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        from beit3_bench.backbones.openclip.loading import load

        return load(source, asked, options)

    def prompts(self, task: str) -> Prompts | None:
        """CLIP's class names and templates for ImageNet, as all of these models were evaluated (`open_clip.zero_shot_metadata`)."""
        if task != "imagenet":
            return None
        from beit3_bench.backbones.openclip.library import open_clip

        library = open_clip(f"task {task} with a checkpoint of open_clip")
        templates = tuple(template("{}") for template in library.OPENAI_IMAGENET_TEMPLATES)
        return Prompts(CLIP_PROMPTS, tuple(library.IMAGENET_CLASSNAMES), templates)

    def presets(self) -> tuple[str, ...]:
        return ()

    def write_specimens(self, folder: Path, texts: Sequence[str]) -> None:
        from beit3_bench.backbones.openclip.specimens import write_specimens

        write_specimens(folder)

    def released(self) -> Sequence[ReleasedFile]:
        from beit3_bench.backbones.openclip.weights import WEIGHTS

        return WEIGHTS
