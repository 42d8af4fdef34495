"""What ALBEF and BLIP are asked: retrieval with a second look at pairs, answers, pairs of images, entailment.

Families differ in what they put first in a text, in which layers look at the image, and in how answers are scored; their classes
are in `albef.heads` and `blip.heads`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.fusion.answers import AnswerTree, rank_answers
from beit3_bench.backbones.fusion.bert import Bert, BertDecoder, Context, seen
from beit3_bench.backbones.fusion.config import FusionConfig
from beit3_bench.backbones.fusion.layout import TextLayout
from beit3_bench.backbones.fusion.vit import VisionTransformer
from beit3_bench.backbones.precision import exact
from beit3_bench.errors import BenchError

ADDED_TOKENS = 2
"""[DEC] and [ENC], which BLIP puts behind the vocabulary, in this order."""


class FusionModel(nn.Module):
    """A vision transformer, and texts that look at its states.

    output_layer: official name of the weights whose rows are the outputs of a classifier; empty for heads that are none.
    """

    output_layer = ""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config.vision)

    def fused_ids(self, token_ids: Tensor) -> Tensor:
        """Token ids as they are read together with an image; [CLS] in front as it is."""
        return token_ids


class WithEncoder(FusionModel):
    """Those that read a text."""

    def __init__(self, config: FusionConfig):
        super().__init__(config)
        assert config.text is not None
        self.text_encoder = Bert(config.text)

    def look(self, images: Tensor, image_index: Tensor | None = None) -> Context:
        """Keys and values of images (B, 3, S, S); image_index (n,): of a text's image among them."""
        context = self.text_encoder.keys_of(self.visual_encoder(images))
        return context if image_index is None else context.select(image_index)

    def fused_states(self, context: Context, token_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """States (n, L, D) of texts that look at an image each."""
        return self.text_encoder(self.fused_ids(token_ids), padding_mask, context)


class Retrieval(WithEncoder, ABC):
    """Images and texts alone, of unit length; and a score of a text that looks at an image.

    keeps_texts: whether `unseen` is worth being kept for the next image.
    """

    keeps_texts = False

    def __init__(self, config: FusionConfig):
        super().__init__(config)
        assert config.text is not None
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.itm_head = nn.Linear(config.text.width, 2)

    def encode_image(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S), normalised -> (B, D) of unit length."""
        return F.normalize(exact(self.vision_proj, self.visual_encoder(images)[:, 0]), dim=-1)

    def encode_text(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """int64 (N, L), padding_mask (N, L), 1 or True = padding -> (N, D) of unit length."""
        return F.normalize(exact(self.text_proj, self.text_states(token_ids, padding_mask)[:, 0]), dim=-1)

    @abstractmethod
    def text_states(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """States (N, L, D) of texts alone."""

    @abstractmethod
    def unseen(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """States (N, L, D) of texts just before they look at an image: all that is the same for every image."""

    @property
    @abstractmethod
    def first_fused(self) -> int:
        """The first layer of the text encoder that is `fuse`'s."""

    def fuse(self, states: Tensor, texts: Tensor | TextLayout | None, context: Context) -> Tensor:
        """Match scores of texts, whose states `unseen` gave: float32 (texts,), the logit of "match".

        Args:
            states: a text per row (rows, L, D), or all of an image's (images, tokens, D).
            texts: padding_mask (rows, L), 1 or True = padding; or where the texts of an image are.
            context: of as many images as divide the rows; the texts of an image stand together.
        """
        if isinstance(texts, TextLayout):
            return self.matched(texts.first(self.text_encoder.run(states, texts, context, start=self.first_fused)))
        return self.matched(self.text_encoder.run(states, seen(texts), context, start=self.first_fused))

    def match(self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """images (B, 3, S, S), token_ids (B, L) with [CLS] in front -> (B,): the logit of "match" of pair i, cosine not added."""
        return self.fuse(self.unseen(token_ids, padding_mask), padding_mask, self.look(images))

    def matched(self, states: Tensor) -> Tensor:
        """The second output of the matching head on the first token (index 1 = match)."""
        return exact(self.itm_head, states[:, 0])[:, 1]

    def forward(self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images and texts alone."""
        return self.encode_image(images), self.encode_text(token_ids, padding_mask)


def classifier(width: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU (not GELU), Linear."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


class Entailment(WithEncoder):
    """SNLI-VE: what a text says of an image, from the first token."""

    output_layer = "cls_head.2.weight"

    def __init__(self, config: FusionConfig, outputs: int):
        super().__init__(config)
        assert config.text is not None
        self.cls_head = classifier(config.text.width, outputs)

    def forward(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """(n, outputs) logits; ``image_index`` (n,) where several texts share a row of ``images``."""
        states = self.fused_states(self.look(images, image_index), token_ids, padding_mask)
        return exact(self.cls_head, states[:, 0])


class VisualReasoning(WithEncoder):
    """NLVR2: a text that looks at two images in one pass.

    alternate: layers look at the first and the second image in turn; else every layer at both.
    """

    output_layer = "cls_head.2.weight"
    alternate = False

    def __init__(self, config: FusionConfig, outputs: int):
        super().__init__(config)
        assert config.text is not None
        self.cls_head = classifier(config.text.width, outputs)

    def forward(self, left: Tensor, right: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """left, right (B, 3, S, S); (B, outputs) logits, index 1 is True."""
        states = self.visual_encoder(torch.cat([left, right])).chunk(2)
        context = self.text_encoder.keys_of(*states, alternate=self.alternate)
        return exact(self.cls_head, self.fused_states(context, token_ids, padding_mask)[:, 0])


class VisualQuestionAnswering(WithEncoder):
    """Answers by a decoder that looks at the states of a question, which looks at the image.

    smoothing: of labels, in the score of an answer.  first_twice: see `answers.rank_answers`.
    candidates: answers of a question that are scored, of those given with `rank`.
    """

    smoothing = 0.0
    first_twice = False

    def __init__(self, config: FusionConfig, candidates: int):
        super().__init__(config)
        assert config.decoder is not None
        self.text_decoder = BertDecoder(config.decoder)
        self.candidates = candidates
        self.tree: AnswerTree | None = None

    def rank(self, answers: Sequence[Sequence[int]], start: int) -> None:
        """Give the answers that are ranked: see `answers.AnswerTree`."""
        device = self.text_decoder.cls.predictions.bias.device
        self.tree = AnswerTree(answers, start).to(device)

    def question(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None, image_index: Tensor | None
    ) -> Context:
        """Keys and values of the states of questions, for the decoder."""
        states = self.fused_states(self.look(images, image_index), token_ids, padding_mask)
        padding = None if padding_mask is None else padding_mask.bool()
        return self.text_decoder.bert.keys_of(states, padding=padding)

    def forward(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """(n, answers) scores, -inf for answers that are no candidates of a question; ``image_index`` (n,) where several
        questions share a row of ``images``.

        Raises:
            BenchError: no answers were given.
        """
        if self.tree is None:
            raise BenchError(
                "answers are ranked, and none were given; give them with answers=[...] or a file, or the data"
            )
        context = self.question(images, token_ids, padding_mask, image_index)
        return rank_answers(self.text_decoder, self.tree, context, self.candidates, self.smoothing, self.first_twice)
