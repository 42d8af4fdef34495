"""Frozen features of an image's patches, for probes: as a grid, and as their mean."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import Ability, Batch, Embeds, Patches

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from beit3_bench.backbones.family import Asked, LoadOptions

GRID, MEAN = "patch tokens", "mean patch token"
"""Protocols of the two."""


def input_side(asked: Asked, options: LoadOptions, projection: Tensor | None) -> int | None:
    """Side of the input in pixels: as given, else as asked, in whole patches; None = the file's own.

    projection: the file's patch convolution (D, 3, P, P), where it has one.
    """
    if options.image_size is not None or asked.side is None or projection is None or projection.ndim != 4:
        return options.image_size
    patch = max(projection.shape[-1], 1)
    return -(-asked.side // patch) * patch


class PatchTokens(Patches):
    """Tokens of the last layer behind the last norm that the network has; CLS is left out."""

    @abstractmethod
    def tokens(self, batch: Batch) -> Tensor:
        """Floating point (B, h, w, D), in the order of the image's rows."""

    def means(self, batch: Batch) -> Tensor:
        """(B, D), of any length."""
        return self.tokens(batch).mean(dim=(1, 2))

    def predict(self, batch: Batch) -> list[Any]:
        return list(self.tokens(batch).float().cpu().numpy())


class PatchMeans(Embeds):
    """Means of an image's patch tokens, of unit length; images only."""

    def __init__(self, patches: PatchTokens):
        super().__init__(patches.module, patches.reader)
        self.patches = patches

    def predict(self, batch: Batch) -> list[Any]:
        import torch.nn.functional as F

        return list(F.normalize(self.patches.means(batch).float(), dim=-1).cpu().numpy())

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        self.patches.make_ready(device, compiled)

    def compile(self) -> None:
        self.patches.compile()

    def item_bytes(self) -> int | None:
        return self.patches.item_bytes()

    def of(self, module: nn.Module | None) -> Ability:
        patches = self.patches.of(module)
        assert isinstance(patches, PatchTokens)
        return PatchMeans(patches)


def as_asked(patches: PatchTokens, asked: Asked) -> tuple[Ability, str]:
    """The grid or its mean (`Asked.pooled`), and the protocol's name."""
    return (PatchMeans(patches), MEAN) if asked.pooled else (patches, GRID)
