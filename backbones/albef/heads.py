"""ALBEF (Li et al., 2021; official code: salesforce/ALBEF): the first layers of its BERT read the text alone, the others look at the
image.
"""

from __future__ import annotations

from torch import Tensor

from beit3_bench.backbones.fusion import heads
from beit3_bench.backbones.fusion.bert import seen
from beit3_bench.backbones.fusion.config import FusionConfig


class Retrieval(heads.Retrieval):
    """A text's states behind the first layers serve its embedding, and are what looks at images: they are computed once."""

    keeps_texts = True

    def text_states(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        encoder = self.text_encoder
        return encoder.run(encoder.embed(token_ids), seen(padding_mask), stop=encoder.config.first_cross)

    def unseen(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.text_states(token_ids, padding_mask)

    @property
    def first_fused(self) -> int:
        return self.text_encoder.config.first_cross


class VisualQuestionAnswering(heads.VisualQuestionAnswering):
    """The first token of an answer counts twice (official `rank_answer`)."""

    first_twice = True


class LavisQuestionAnswering(heads.VisualQuestionAnswering):
    """As LAVIS ranks: every token once, labels smoothed by a tenth (`med.py`: also at evaluation)."""

    smoothing = 0.1


class VisualReasoning(heads.VisualReasoning):
    """Layers look at the two images in turn; each two of them share keys and values, of which a file has both names, and the later
    one counts (official `share_cross_attention`).
    """

    alternate = True

    def __init__(self, config: FusionConfig, outputs: int):
        super().__init__(config, outputs)
        layers = self.text_encoder.encoder.layer[self.text_encoder.config.first_cross :]
        for first, second in zip(layers[0::2], layers[1::2], strict=False):
            first.crossattention.self.key = second.crossattention.self.key
            first.crossattention.self.value = second.crossattention.self.value


class Entailment(heads.Entailment):
    """SNLI-VE, as `model_ve.py`."""
