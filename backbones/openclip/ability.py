"""The two towers of an open_clip model as an ability."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import Ability, Batch, Embeds
from beit3_bench.backbones.patch_features import PatchTokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from beit3_bench.backbones.exact_rows import ExactRows
    from beit3_bench.backbones.openclip.pixels import OpenClipPixels
    from beit3_bench.backbones.openclip.texts import OpenClipReader

TOWERS = ("visual", "text", "transformer")
"""Submodules that compute: ``text`` of models with a text tower of its own, ``transformer`` of the others."""


class OpenClipAbility(Ability):
    """What they share. pixels: normalises images on the device."""

    def __init__(self, module: nn.Module, reader: OpenClipReader, pixels: OpenClipPixels):
        super().__init__(module, reader)
        self.pixels = pixels
        self.exact: ExactRows | None = None

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a CPU weights are laid out once for its product kernels (see `backbones.packing` and `backbones.exact_rows`)."""
        from beit3_bench.backbones.exact_rows import ExactRows
        from beit3_bench.backbones.packing import pack_weights

        assert self.module is not None
        if device.type == "cpu" and not compiled:
            pack_weights(self.module)
            self.exact = ExactRows(self.module)

    def compile(self) -> None:
        assert self.module is not None
        for name, tower in self.module.named_children():
            if name in TOWERS:
                tower.compile()

    def exactly(self) -> AbstractContextManager[Any]:
        """Within, products do not depend on the number of rows, where that has been made ready."""
        return self.exact.entered() if self.exact is not None else nullcontext()


class OpenClipEmbedder(OpenClipAbility, Embeds):
    """``encode_image`` and ``encode_text``, normalised in float32."""

    def predict(self, batch: Batch) -> list[Any]:
        import torch.nn.functional as F

        assert self.module is not None
        with self.exactly():
            if "images" in batch:
                embeddings = self.module.encode_image(self.pixels.normalise(batch["images"]), normalize=False)
            else:
                embeddings = self.module.encode_text(batch["token_ids"], normalize=False)
        return list(F.normalize(embeddings.float(), dim=-1).cpu().numpy())


class OpenClipPatches(OpenClipAbility, PatchTokens):
    """``forward_intermediates`` of the last block, behind the tower's last norm."""

    def tokens(self, batch: Batch) -> Tensor:
        images = self.pixels.normalise(batch["images"])
        how = {"normalize_intermediates": True, "intermediates_only": True, "image_output_fmt": "NCHW"}
        assert self.module is not None
        with self.exactly():
            (last,) = self.module.forward_intermediates(images, image_indices=1, **how)["image_intermediates"]
        return last.permute(0, 2, 3, 1)
