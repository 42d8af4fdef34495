"""`BEiT3Segmentor`: mmseg's encoder-decoder, with sliding windows that also work under Mask2Former."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor


@MODELS.register_module()
class BEiT3Segmentor(EncoderDecoder):
    """`EncoderDecoder`, except that a head is told the size of the crop that it gets.

    mmseg's Mask2Former head enlarges its masks to ``pad_shape``, which stays that of the whole image while a window
    slides over it; the pasted crops would then have the wrong size.

    ``test_cfg.sigmoid_first``: masks go through the sigmoid and are summed over queries at a quarter of the size, and the
    classes are enlarged (ViT-Adapter, `EncoderDecoderMask2Former`); mmseg's head enlarges the masks of all queries first.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Logits (N, classes, H, W) of a whole image or of one crop."""
        size = tuple(inputs.shape[2:])
        metas = [{**meta, "img_shape": size, "pad_shape": size} for meta in batch_img_metas]
        if not self.test_cfg.get("sigmoid_first", False):
            return super().encode_decode(inputs, metas)
        scores, masks = self.decode_head(self.extract_feat(inputs), [SegDataSample(metainfo=meta) for meta in metas])
        classes = scores[-1].softmax(dim=-1)[..., :-1]
        coarse = torch.einsum("bqc,bqhw->bchw", classes, masks[-1].sigmoid())
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
