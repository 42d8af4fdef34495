"""VLMo's heads for retrieval, VQAv2 and NLVR2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.precision import exact
from beit3_bench.backbones.vlmo.config import VLMoConfig
from beit3_bench.backbones.vlmo.model import VLMo

HEAD_EPS = 1e-5
"""Of their LayerNorms: PyTorch's own."""


class Projection(nn.Module):
    """Official name of a projection without bias."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Retrieval(VLMo):
    """Dual encoder: each modality alone through its own experts, projected, of unit length."""

    def __init__(self, config: VLMoConfig):
        super().__init__(config)
        self.itc_image_proj = Projection(config.embed_dim)
        self.itc_text_proj = Projection(config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_image(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) -> (B, D) of unit length."""
        return F.normalize(exact(self.itc_image_proj, self.image_state(images)), dim=-1)

    def encode_text(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """int64 (N, L), padding_mask (N, L), 1 or True = padding -> (N, D) of unit length."""
        return F.normalize(exact(self.itc_text_proj, self.text_state(token_ids, padding_mask)), dim=-1)

    def forward(self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both towers."""
        return self.encode_image(images), self.encode_text(token_ids, padding_mask)


def classifier(dim: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.LayerNorm(hidden, eps=HEAD_EPS), nn.GELU(), nn.Linear(hidden, outputs)
    )


class VisualQuestionAnswering(VLMo):
    """A classifier of the pooled [CLS] of the question, fused with the image."""

    output_layer = "vqa_classifier.3.weight"

    def __init__(self, config: VLMoConfig, outputs: int):
        super().__init__(config)
        self.vqa_classifier = classifier(config.embed_dim, 2 * config.embed_dim, outputs)

    def forward(
        self, images: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """(B, outputs) logits; ``image_index`` (B,) where several questions share a row of ``images``."""
        image = self.embed_image(images)
        state = self.fused_state(image if image_index is None else image[image_index], token_ids, padding_mask)
        return exact(self.vqa_classifier, exact(self.pooler, state))


class VisualReasoning(VLMo):
    """NLVR2: the sentence with each image, of token types 1 and 2; a classifier of both pooled [CLS]."""

    output_layer = "nlvr2_classifier.3.weight"

    def __init__(self, config: VLMoConfig, outputs: int):
        super().__init__(config)
        self.nlvr2_classifier = classifier(2 * config.embed_dim, 2 * config.embed_dim, outputs)

    def forward(self, left: Tensor, right: Tensor, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """left, right (B, 3, S, S); (B, outputs) logits, index 1 is True."""
        image = torch.cat([self.embed_image(left, 1), self.embed_image(right, 2)])
        padding = None if padding_mask is None else padding_mask.repeat(2, 1)
        pooled = exact(self.pooler, self.fused_state(image, token_ids.repeat(2, 1), padding))
        return exact(self.nlvr2_classifier, torch.cat(pooled.chunk(2), dim=-1))
