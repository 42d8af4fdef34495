"""Tensors of a file, and their way into a network: every one is accounted for by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from beit3_bench.backbones.checkpoint_files import file_sha256
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.torchscript import is_torchscript, read_torchscript
from beit3_bench.errors import BenchError

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What OpenAI's archives hold beside the weights."""
GRID = "visual.positional_embedding"
_NAMED = 3


@dataclass
class Weights:
    """scripted: whether the file is a TorchScript archive, OpenAI's form."""

    tensors: dict[str, Tensor]
    sha256: str
    scripted: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class FillReport:
    """missing, unexpected: tensors.  resized: tensor -> "50x64 -> 65x64".  notes: for the result."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def weights_of(source: Source) -> Weights:
    """The tensors of a file.

    Raises:
        BenchError: it cannot be read; see `checkpoints.read_checkpoint` and `torchscript.read_torchscript`.
    """
    if is_torchscript(source.path):
        tensors = {n: t for n, t in read_torchscript(source.path).items() if n.rpartition(".")[2] not in NO_WEIGHTS}
        return Weights(tensors, file_sha256(source.path), scripted=True)
    checkpoint = source.checkpoint
    return Weights(dict(checkpoint.tensors), checkpoint.sha256, notes=list(checkpoint.notes))


def fill(
    module: nn.Module, weights: Weights, path: Path, name: str, allow_missing: Sequence[str], resized: bool
) -> FillReport:
    """Load the tensors into a network of the same names and shapes.

    Args:
        name: of the architecture, for messages.
        allow_missing: patterns of tensors that may be missing or misshapen.
        resized: whether the network's input is of another size than the architecture's: the table of positions is then interpolated
            as open_clip does it.

    Raises:
        BenchError: other names or shapes; the message has the first ones.
    """
    own = module.state_dict()
    tensors, report = _in_own_names(module, weights.tensors, own), FillReport()
    if resized and GRID in tensors and GRID in own and tensors[GRID].shape != own[GRID].shape:
        from open_clip.model import resize_pos_embed

        before = _shape(tensors[GRID])
        tensors[GRID] = tensors[GRID].float()
        resize_pos_embed(tensors, module)
        report.resized[GRID] = f"{before} -> {_shape(tensors[GRID])}"
    missing = [n for n in own if n not in tensors]
    misshapen = [n for n, tensor in own.items() if n in tensors and tensors[n].shape != tensor.shape]
    report.unexpected = [n for n in tensors if n not in own]
    report.missing = [*missing, *misshapen]
    refused = [n for n in missing if not _allowed(n, allow_missing)]
    shapes = [f"{n} is {_shape(tensors[n])}, not {_shape(own[n])}" for n in misshapen if not _allowed(n, allow_missing)]
    parts = [
        _some("lacks {}", refused),
        _some("has other tensors ({})", report.unexpected),
        _some("has other shapes ({})", shapes),
    ]
    if wrong := "; ".join(part for part in parts if part):
        raise BenchError(f"{path}: is not of {name}: it {wrong}; name its architecture: openclip:ARCHITECTURE/FILE")
    module.load_state_dict({n: tensor for n, tensor in tensors.items() if n not in misshapen}, strict=False)
    if report.missing:
        kept = ", ".join(report.missing[:5]) + (", ..." if len(report.missing) > 5 else "")
        report.notes.append(
            f"{len(report.missing)} tensors kept random values ({kept}): this measures no trained model"
        )
    return report


def _in_own_names(module: nn.Module, tensors: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Under the names of today's open_clip: what its own loader does to older files and to other people's."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = convert_state_dict(module, dict(tensors))
    if "positional_embedding" in tensors and "positional_embedding" not in own:
        tensors = convert_to_custom_text_state_dict(tensors)
    shapes = {n: p.shape for n, p in module.named_parameters() if n in ("logit_scale", "logit_bias")}
    for n, shape in shapes.items():  # a number, or a vector of one
        if n in tensors and tensors[n].numel() == 1:
            tensors[n] = tensors[n].reshape(shape)
    if "logit_bias" in shapes and "logit_bias" not in tensors and "logit_scale" in tensors:
        tensors["logit_bias"] = tensors["logit_scale"].new_zeros(shapes["logit_bias"])
    return {n: t for n, t in tensors.items() if n in own or not n.endswith("embeddings.position_ids")}


def _allowed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(words: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return words.format(", ".join(names[:_NAMED]) + more) if names else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
