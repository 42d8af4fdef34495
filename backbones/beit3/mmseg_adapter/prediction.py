"""From a segmentor and one packed image to its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from beit3_bench.backbones.abilities import NOT_FINITE
from beit3_bench.errors import BenchError


def predict_classes(model: nn.Module, inputs: Tensor | list[Tensor], samples: Any) -> np.ndarray:
    """Classes of one image in its own size: integer (H, W).

    Args:
        inputs, samples: what mmseg's pipeline packs for one image: a tensor uint8 (3, H, W) and its data sample, or lists
            of them over scales and flips. Those are merged as mmseg's `SegTTAModel` does (mean of softmax), one at a
            time, so that memory does not grow with their number.

    Raises:
        BenchError: a logit that is not finite.
    """
    if not isinstance(inputs, list):
        result = model.test_step({"inputs": [inputs], "data_samples": [samples]})[0]
        _check(result.seg_logits.data)
        return result.pred_sem_seg.data[0].cpu().numpy()
    total: Any = None
    for one, sample in zip(inputs, samples, strict=True):
        logits = model.test_step({"inputs": [one], "data_samples": [sample]})[0].seg_logits.data
        _check(logits)
        share = logits.softmax(dim=0)
        # SegTTAModel starts from zeros; 0 + x = x
        total = share if total is None else total.add_(share)
    return (total / len(inputs)).argmax(dim=0).cpu().numpy()


def _check(logits: Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise BenchError(NOT_FINITE.format("a logit is NaN or infinity"))
