"""VLMo's heads as abilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beit3_bench.backbones import native, patch_features

if TYPE_CHECKING:
    from torch import Tensor

    from beit3_bench.backbones.abilities import Batch


class NativeAbility(native.NativeAbility):
    """What VLMo's heads share."""

    def compile(self) -> None:
        """Compile in place what stands before and behind attention; equal layers share one compilation."""
        import torch

        for block in self.module.transformer.blocks:
            block.project, block.finish = torch.compile(block.project), torch.compile(block.finish)

    def item_bytes(self) -> int:
        """About 16 rows of width D per token: the expert's hidden state and its GELU, q, k, v and copies."""
        config = self.module.config
        return (config.image_tokens + config.max_text_length) * config.embed_dim * 16 * 4


class DualEncoder(NativeAbility, native.DualEncoder):
    """Each modality's projected first token, without vision-language experts (official `infer_image_ft`, `infer_text_ft`)."""


class PatchTokens(NativeAbility, patch_features.PatchTokens):
    """Of an image alone, without vision-language experts."""

    def tokens(self, batch: Batch) -> Tensor:
        grid = self.module.config.grid
        states = self.module.encode(self.module.embed_image(self.normalise(batch["images"])), None, None, vl=False)
        return self.module.transformer.norm(states)[:, 1:].unflatten(1, (grid, grid))


class AnswerClassifier(NativeAbility, native.AnswerClassifier):
    """The answer of the greatest logit."""


class PairClassifier(NativeAbility, native.PairClassifier):
    """A text about two images (NLVR2)."""
