"""Card and identity of a model that was read from a file: the same facts for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from beit3_bench.backbones.abilities import Ability
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.family import Identity, Model, ModelCard, digest
from beit3_bench.backbones.pins import pin_or_check
from beit3_bench.backbones.preprocess import PixelScale
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.strict_loading import Filled


class Tokens(Protocol):
    """fingerprint: SHA-256 of a tokenizer."""

    fingerprint: str


def described(
    family: str,
    source: Source,
    sha256: str,
    module: nn.Module,
    preprocessing: PixelScale,
    tokenizer: Tokens | None,
    settings: Mapping[str, Any],
    *,
    preset: str | None,
    protocol: str,
    image_size: int | None = None,
    architecture: Mapping[str, Any] | None = None,
    trained_for: str | None = None,
    labels: tuple[str, ...] | None = None,
    resolved: Mapping[str, Any] | None = None,
) -> tuple[ModelCard, Identity]:
    """See `family.ModelCard` and `family.Identity`.

    Args:
        settings: of the network.  architecture: all that its values depend on beside weights, pixels and tokens; None = settings.
        image_size: pixels; None = that of the preprocessing.
        trained_for: what the file itself says, where it is no released one.

    Raises:
        BenchError: a released file that differs from its pinned hash.
    """
    released = find_released(source.path, family)
    if released is not None:
        pin_or_check(source.path, released.name, sha256)
    card = ModelCard(
        family=family,
        checkpoint=source.path.name,
        sha256=sha256,
        preset=preset,
        weight=released.name if released else None,
        image_size=image_size or preprocessing.size,
        params=sum(p.numel() for p in module.parameters()),
        protocol=protocol,
        trained_for=(released.task or "") if released else trained_for,
        trained_on=released.trained_on if released else (),
        settings=settings,
        preprocessing=preprocessing.to_dict(),
        resolved=dict(resolved or {}),
    )
    identity = Identity(
        weights=sha256,
        architecture=digest(settings if architecture is None else architecture),
        pixels=preprocessing.canary_hash(),
        tokens=tokenizer.fingerprint if tokenizer else None,
        labels=labels,
    )
    return card, identity


def random_values(missing: list[str]) -> list[str]:
    """A note that names the tensors that a run with ``--allow-missing`` computes with, but no checkpoint ever had."""
    if not missing:
        return []
    named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    kept = "1 tensor kept its random values" if len(missing) == 1 else f"{len(missing)} tensors kept random values"
    return [f"{kept} ({named}): this measures no trained model"]


def model_of_images(
    ability: Ability,
    described_as: tuple[ModelCard, Identity],
    checkpoint: Checkpoint,
    filled: Filled,
    resized: Mapping[str, str] | None = None,
) -> Model:
    """A network for images alone, which needs no file beside its checkpoint.

    Args:
        described_as: as `described` gives them.  filled: what loading left over.
        resized: tensors of another size than the file's, see `family.Model`.
    """
    return Model(
        ability,
        *described_as,
        notes=[*checkpoint.notes, *random_values(filled.missing)],
        missing=filled.missing,
        unexpected=filled.unexpected,
        resized=dict(resized or {}),
        random=bool(filled.missing),
        metadata=checkpoint.metadata,
    )
