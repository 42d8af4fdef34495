"""Training losses, each as the official code computes it; all of them exact for any number of processes.

Every function returns the mean over the samples it was given. Where a loss compares samples with each other it takes
``gather``, which concatenates a tensor of all processes in order of rank and passes gradients back: the value is then
the same on every process, that of one process holding the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.errors import BenchError

Gather = Callable[[Tensor], Tensor]
LABEL_SMOOTHING = 0.1  # official default of --label_smoothing, ImageNet and captioning


def alone(tensor: Tensor) -> Tensor:
    """`gather` of a single process."""
    return tensor


def contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    gather: Gather = alone,
    groups: Tensor | None = None,
) -> Tensor:
    """Symmetric cross-entropy of ``logit_scale * I T^T`` over the global batch (official `ClipLoss`; no clamp on the scale).

    Args:
        image_embeddings, text_embeddings: (B, D), unit length; row i of both is a pair.
        logit_scale: scalar, already exponentiated.
        groups: int64 (B,); pairs of the same group are not each other's negatives (images of one class, whose texts are
            equal). None: every other pair is a negative, as in the official code.

    Computed in float32, also under autocast.
    """
    with torch.autocast(image_embeddings.device.type, enabled=False):
        image, text = gather(image_embeddings.float()), gather(text_embeddings.float())
        logits = logit_scale.float() * image @ text.T
        if groups is not None:
            groups = gather(groups)
            same = groups.unsqueeze(0) == groups.unsqueeze(1)
            same.fill_diagonal_(False)
            logits = logits.masked_fill(same, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def vqa_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with soft labels, mean over samples and answers, times the number of answers.

    logits, labels: (B, num_labels); labels in 0..1 (official `VQAHandler`).
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float()) * labels.shape[-1]


def nlvr2_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; logits (B, labels), labels int64 (B,); for NLVR2 1 = True (official `NLVR2Handler`)."""
    return F.cross_entropy(logits.float(), labels)


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """Cross-entropy over classes through timm: label smoothing for int64 labels (B,), soft targets for float (B, classes).

    Mixup has smoothed its soft targets already (official `ImageNetHandler`).
    """
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    if labels.is_floating_point():
        return SoftTargetCrossEntropy()(logits.float(), labels)
    if label_smoothing > 0:
        return LabelSmoothingCrossEntropy(label_smoothing)(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels)


def token_losses(logits: Tensor, target: Tensor, label_smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """Per token, KL(smoothed target || prediction), the entropy of the target included: (N, V), int64 (N,) -> (N,).

    The target has 1 - eps on its word and eps / (V - 1) on every other one (official `BertCaptioningLoss`).
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    on_target = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    others = logits.shape[-1] - 1
    if label_smoothing == 0:
        return -on_target
    off = label_smoothing / others
    cross = -(1 - label_smoothing) * on_target - off * (log_p.sum(dim=-1) - on_target)
    eps = torch.tensor(label_smoothing, dtype=torch.float64)
    entropy = -(1 - eps) * torch.log1p(-eps) - eps * torch.log(eps / others)
    return cross - entropy.item()


def captioning_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = LABEL_SMOOTHING,
    drop_worst_ratio: float = 0.2,
    drop_worst_after: int = 12000,
    step: int = 0,
    gather: Gather = alone,
) -> Tensor:
    """Mean of `token_losses` over the masked tokens of the global batch (official `BertCaptioningLoss`).

    Args:
        logits: (N, V) at the masked positions, row-major over (batch, position).  target: int64 (N,), the words there.
        step: optimizer steps done; once it is greater than ``drop_worst_after``, only the int(N * (1 - ratio)) smallest losses count.

    Raises:
        BenchError: no masked token at all.
    """
    losses = gather(token_losses(logits, target, label_smoothing))
    if len(losses) == 0:
        raise BenchError("captioning: a batch without a masked token; raise the mask probability")
    if drop_worst_ratio > 0 and step > drop_worst_after:
        losses = losses.topk(max(1, int(len(losses) * (1 - drop_worst_ratio))), largest=False).values
    return losses.mean()
