"""Captions of an open_clip CoCa: what is searched for, the ability, and what it is read as."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import NOT_FINITE, Batch, Caption, Captions
from beit3_bench.backbones.openclip.coca import CoCaCaptioning, GroupedBeams, supports
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from beit3_bench.backbones.exact_rows import ExactRows
    from beit3_bench.backbones.family import Asked
    from beit3_bench.backbones.openclip.pixels import OpenClipPixels
    from beit3_bench.backbones.openclip.texts import OpenClipReader, Texts

START, END = "<start_of_text>", "<end_of_text>"
OPTIONS = ("num_beam_groups", "min_length", "repetition_penalty", "diversity_penalty")
"""Of the family's own, which captions alone have."""
_OF_THE_TASK = ("num_beams", "max_length", "length_penalty")


class OpenClipCaptioner(Captions):
    """A searched caption, read as open_clip's README and CLIP_benchmark read it: up to the end token, without the start token.

    texts: the tokenizer.  pixels: normalises images on the device.
    """

    module: Any  # torch types every attribute of a Module as "Tensor | Module"
    reader: OpenClipReader

    def __init__(self, module: CoCaCaptioning, reader: OpenClipReader, pixels: OpenClipPixels, texts: Texts):
        super().__init__(module, reader)
        self.pixels, self.texts = pixels, texts
        self.exact: ExactRows | None = None

    def predict(self, batch: Batch) -> list[Caption]:
        """Raises: BenchError: a score is not finite."""
        with self.exact.entered() if self.exact is not None else nullcontext():
            hypotheses = self.module.hypotheses(self.pixels.normalise(batch["images"]))
        if not all(math.isfinite(hypothesis.score) for hypothesis in hypotheses):
            raise BenchError(f"{self.reader.checkpoint}: {NOT_FINITE.format('the score of a text is NaN or infinity')}")
        return [Caption(self.text(hypothesis.ids), tuple(hypothesis.ids)) for hypothesis in hypotheses]

    def text(self, ids: list[int]) -> str:
        """Of token ids, start and maybe end token included."""
        return self.texts.tokenize.decode(ids).split(END)[0].replace(START, "").strip()

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a CPU weights are laid out once for its product kernels (see `backbones.packing` and `backbones.exact_rows`)."""
        from beit3_bench.backbones.exact_rows import ExactRows
        from beit3_bench.backbones.packing import pack_weights

        if device.type == "cpu" and not compiled:
            pack_weights(self.module)
            self.exact = ExactRows(self.module)

    def compile(self) -> None:
        """The image tower; words are read a few rows at a time."""
        self.module.coca.visual.compile()


def check_values(values: Mapping[str, Any]) -> None:
    """See `family.Family.check`."""
    if values.get("decoder") is not None:
        raise BenchError(
            f"decoder={values['decoder']}: is an option of BEiT-3's captions; CoCa has one search, leave it out"
        )


def beams_of(asked: Asked, given: Any) -> GroupedBeams:
    """How captions are searched: options of task and family, and else open_clip's own.

    given: options of the family's own; None = none.
    """
    family = {name: vars(given)[name] for name in OPTIONS} if given is not None else {}
    return GroupedBeams().with_values(**family, **{name: asked.values.get(name) for name in _OF_THE_TASK})


def refuse_options(given: Any, path: Path) -> None:
    """Raise for options of captions where embeddings are asked for.

    Raises:
        BenchError: names the option.
    """
    named = next((name for name in OPTIONS if given is not None and vars(given)[name] is not None), None)
    if named is not None:
        raise BenchError(f"{path}: -o {named} is an option of captions; this task asks for embeddings, leave it out")


def check_architecture(config: Mapping[str, Any], name: str, path: Path) -> None:
    """Raise for an architecture that cannot caption, before it is built.

    Raises:
        BenchError: says what it lacks.
    """
    decoder = config.get("multimodal_cfg")
    if not isinstance(decoder, dict):
        raise BenchError(
            f"{path}: {name} has no decoder of texts, so that it cannot caption; give a CoCa "
            "(openclip:coca_ViT-L-14/FILE), or ask it for retrieval"
        )
    text, vision = config["text_cfg"], config["vision_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise BenchError(
            f"{path}: {name} reads texts by Hugging Face's models; captions are made of a CoCa with open_clip's own text tower"
        )
    width = decoder.get("width", 512)
    seen = config["embed_dim"] if vision.get("attentional_pool") else vision.get("width", 768)
    if width != seen or width != text.get("width", 512):
        raise BenchError(
            f"{path}: {name} has a decoder of width {width} for image tokens of width {seen} and a text tower of width "
            f"{text.get('width', 512)}, which cannot caption; the three are the same in a CoCa"
        )


def captioning(
    coca: nn.Module, texts: Texts, beams: GroupedBeams, vocabulary: int, name: str, path: Path
) -> CoCaCaptioning:
    """The network that captions.

    Args:
        vocabulary: rows of the token table.

    Raises:
        BenchError: other blocks than CoCa's, or options that its positions do not allow.
    """
    if not supports(coca):
        raise BenchError(
            f"{path}: {name} is built of other text blocks than CoCa's (coca_ViT-B-32, coca_ViT-L-14); it cannot be asked for captions"
        )
    tokenizer = texts.tokenize
    if vocabulary < tokenizer.vocab_size:
        raise BenchError(
            f"{path}: has {vocabulary} token embeddings, but open_clip's tokenizer has {tokenizer.vocab_size} ids; captions cannot be read"
        )
    module = CoCaCaptioning(coca, tokenizer.sot_token_id, tokenizer.eot_token_id, tokenizer.vocab_size, beams)
    beams.check(module.positions)
    return module.eval()
