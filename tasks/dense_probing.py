"""ADE20K for a linear layer on frozen patches: DINOv2's linear evaluation, cut down to features that are computed once.

Protocol (Oquab et al., 2023, section 7.4, "Linear"; `eval/segmentation` of facebookresearch/dinov2): a batch normalisation and a 1x1
convolution on the patch tokens of the last layer, behind the network's last norm; logits upsampled bilinearly; the schedule of
`metrics.dense_probe`; images of 512 pixels, made whole patches. Where it departs, because features of augmented crops cannot be kept:

* An image is resized to a square as a whole, once; DINOv2 draws a scale from 0.5 to 2, a crop of 512, a flip and colours for every step.
* The loss is taken at every fourth pixel of that square, DINOv2's at every pixel of the crop.
* Evaluated is the whole image in one pass, its logits upsampled to the image's size; DINOv2 slides windows of 512 by 341.
* Features are rounded to float16.

So a number of this protocol stands beside others of it, not beside DINOv2's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.abilities import Patches
from beit3_bench.backbones.family import Asked
from beit3_bench.backbones.linear_segmentation import stored_size
from beit3_bench.errors import BenchError
from beit3_bench.tasks.ade20k import ADE20K
from beit3_bench.tasks.contract import Example, Row, Split, Task
from beit3_bench.tasks.label_maps import read_label, size_of
from beit3_bench.tasks.scores import Scores

SIDE = 512
"""Pixels of the input, before it is made whole patches."""
LABEL_STEP = 4
"""Pixels of the input from one label of the loss to the next."""
TRAINED_ON, EVALUATED = "train", "val"


class ImagePatches(Task):
    """Patches of ADE20K's images, to learn from."""

    name = "probe"
    data_of = ADE20K.name
    ability = Patches
    uses_text = False
    feature = "patches"
    splits = ADE20K.splits
    default_split = TRAINED_ON
    metrics = ()

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self.scenes = ADE20K(data_root)

    def read(self, split: str) -> Split:
        """As of ade20k-seg; its labels are not what patches mean."""
        return dataclasses.replace(self.scenes.read(split), labels=None)

    def asked(self, split: Split) -> Asked:
        return dataclasses.replace(super().asked(split), side=SIDE)

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Grids, floating point (h, w, D)."""
        return [{"id": e.id, self.feature: value} for e, value in zip(examples, values, strict=True)]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Patches alone say nothing.

        Raises:
            BenchError: always; they are learned from.
        """
        raise BenchError("patches are learned from, and not scored; use: beit3-bench probe --task ade20k-seg")


def squared_label(example: Example, side: int) -> np.ndarray:
    """The annotation of an image in the model's numbering, uint8 (side, side): the nearest of its pixels.

    Raises:
        BenchError: it does not decode, or is of another size than the image.
    """
    label = read_label(example.truth_files[0])
    width, height = stored_size(example.images[0])
    if label.shape != (height, width):
        raise BenchError(
            f"{example.truth_files[0]}: annotation is {size_of(label)}, its image {width}x{height}; get both again"
        )
    rows, columns = (((np.arange(side) + 0.5) * n / side).astype(int) for n in label.shape)
    return label[np.ix_(rows, columns)].astype(np.uint8)
