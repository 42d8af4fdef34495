"""`BEiT3Segmentor`: mmseg's encoder-decoder, with sliding windows that also work under Mask2Former."""

from __future__ import annotations

from typing import Any

from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class BEiT3Segmentor(EncoderDecoder):
    """`EncoderDecoder`, except that a head is told the size of the crop that it gets.

    mmseg's Mask2Former head enlarges its masks to ``pad_shape``, which stays that of the whole image while a window
    slides over it; the pasted crops would then have the wrong size.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Logits (N, classes, H, W) of a whole image or of one crop."""
        size = tuple(inputs.shape[2:])
        return super().encode_decode(
            inputs, [{**meta, "img_shape": size, "pad_shape": size} for meta in batch_img_metas]
        )
