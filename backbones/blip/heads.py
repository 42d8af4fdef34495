"""BLIP (Li et al., 2022; official code: salesforce/BLIP): every layer of its BERT may look at the image.

Alone, a text begins with [CLS] and no layer looks at anything. With an image it begins with [ENC]; what is decoded begins with [DEC].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from beit3_bench.backbones.beam_search import Hypothesis
from beit3_bench.backbones.fusion import heads
from beit3_bench.backbones.fusion.beams import Beams, search
from beit3_bench.backbones.fusion.bert import BertDecoder, Context
from beit3_bench.backbones.fusion.config import FusionConfig


class _Encoding(heads.WithEncoder):
    """Texts with an image begin with [ENC]."""

    def fused_ids(self, token_ids: Tensor) -> Tensor:
        token_ids = token_ids.clone()
        token_ids[:, 0] = self.config.vocab_size - 1
        return token_ids


class Retrieval(_Encoding, heads.Retrieval):
    """The whole encoder reads a text again for every image."""

    def text_states(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.text_encoder(token_ids, padding_mask)

    def unseen(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.text_encoder.embed(self.fused_ids(token_ids))

    @property
    def first_fused(self) -> int:
        return 0


class VisualQuestionAnswering(_Encoding, heads.VisualQuestionAnswering):
    """Ranked by a loss with smoothed labels, also at evaluation (official `med.py`: ``label_smoothing=0.1``); or searched."""

    smoothing = 0.1

    def generated(
        self,
        images: Tensor,
        token_ids: Tensor,
        padding_mask: Tensor | None,
        image_index: Tensor | None,
        end: int,
        beams: Beams,
    ) -> list[Hypothesis]:
        """Searched answers. The official code lets the decoder look at the padding of questions, so that an answer depends on the
        batch; here it does not: these are the answers of questions that are asked one by one.
        """
        context = self.question(images, token_ids, padding_mask, image_index)
        return search(self.text_decoder, context, [self.config.vocab_size - heads.ADDED_TOKENS], end, beams)


class VisualReasoning(_Encoding, heads.VisualReasoning):
    """Every layer looks at both images, each with keys of its own."""


class Entailment(heads.Entailment):
    """SNLI-VE, as LAVIS' `blip_classification.py`: the text keeps its [CLS]."""


class Captioning(heads.FusionModel):
    """A decoder that looks at the image.

    prompt: token ids that every caption begins with, [DEC] first; set with the tokenizer.  end: of the end token.
    beams: how captions are searched where nothing else is said.
    """

    def __init__(self, config: FusionConfig, prompt: Sequence[int], end: int, beams: Beams):
        super().__init__(config)
        assert config.decoder is not None
        self.text_decoder = BertDecoder(config.decoder)
        self.prompt, self.end, self.beams = tuple(prompt), end, beams

    def context(self, images: Tensor) -> Context:
        return self.text_decoder.bert.keys_of(self.visual_encoder(images))

    def hypotheses(self, images: Tensor, beams: Beams | None = None) -> list[Hypothesis]:
        """images float32 (B, 3, S, S), normalised; the best caption of each."""
        return search(self.text_decoder, self.context(images), self.prompt, self.end, beams or self.beams)

    def generate(
        self,
        images: Tensor,
        num_beams: int | None = None,
        max_length: int | None = None,
        length_penalty: float | None = None,
        min_length: int | None = None,
        repetition_penalty: float | None = None,
    ) -> list[list[int]]:
        """Token ids of the best caption of each image: [DEC], prompt, words, and [SEP] where it was reached. None = `beams`.

        Raises:
            BenchError: a value that cannot be; see `beams.Beams`.
        """
        b = self.beams
        asked = Beams(
            b.num_beams if num_beams is None else num_beams,
            b.max_length if max_length is None else max_length,
            b.min_length if min_length is None else min_length,
            b.length_penalty if length_penalty is None else length_penalty,
            b.repetition_penalty if repetition_penalty is None else repetition_penalty,
        )
        asked.check(len(self.prompt), self.text_decoder.bert.config.positions)
        return [hypothesis.ids for hypothesis in self.hypotheses(images, asked)]

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Logits (B, L, vocabulary) of the next word behind each of ``token_ids`` (B, L), [DEC] first."""
        return self.text_decoder.logits(self.text_decoder.states(token_ids, self.context(images)))
