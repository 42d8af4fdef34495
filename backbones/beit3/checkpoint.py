"""Reading, checking and translating BEiT-3 checkpoints.

Our module tree differs from the official one in one point: q, k and v are one fused Linear per stream. Everything
else carries the official names; the paper's form (shared attention) uses them without a branch letter.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.allocation import allocate
from beit3_bench.backbones.beit3.config import MAX_TEXT_ROWS, POSITION_OFFSET, PRESETS, RELEASED_VOCABULARY, BEiT3Config
from beit3_bench.backbones.checkpoint_files import file_sha256 as file_sha256
from beit3_bench.backbones.checkpoint_layout import bare_names, weights_of
from beit3_bench.backbones.checkpoints import Checkpoint, read_checkpoint
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.errors import BenchError

VISION_POSITIONS = "beit3.encoder.embed_positions.A.weight"
SPECIAL_ROWS = POSITION_OFFSET + 1  # two rows that are never used, and CLS: copied, not interpolated


@dataclass
class LoadReport:
    """What `load_checkpoint` did, in official tensor names.

    resized: name -> "4x4 -> 6x6" of interpolated position tables.
    notes: what a reader of the result must know about the weights.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """A line for everything that is not as in the file: interpolated, missing, left out, chosen."""
        lines = [
            f"{name} was interpolated, {sizes}; build the model with the checkpoint's size to keep it"
            for name, sizes in self.resized.items()
        ]
        for what, names in (("missing, left at their initial values", self.missing), ("left out", self.unexpected)):
            lines += [f"{len(names)} tensors {what}: {_first(names)}"] if names else []
        return lines + self.notes


# ---- names ------------------------------------------------------------------------------------------------------------

_FUSED = re.compile(r"(.*\.self_attn\.)qkv\.(A|B|shared)\.(weight|bias)$")


def official_names(model: nn.Module) -> dict[str, list[str]]:
    """Our parameter name -> official name(s); a fused qkv has three, in the order q, k, v."""
    names = {}
    for name in model.state_dict():
        fused = _FUSED.match(name)
        if fused:
            branch = "" if fused[2] == "shared" else f"{fused[2]}."
            names[name] = [f"{fused[1]}{x}_proj.{branch}{fused[3]}" for x in "qkv"]
        else:
            names[name] = [name.replace(".shared.", ".")]
    return names


def official_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under the official names, without loss: `load_checkpoint` reads them back bit for bit."""
    state = model.state_dict()
    official: dict[str, Tensor] = {}
    for name, names in official_names(model).items():
        parts = state[name].chunk(len(names)) if len(names) > 1 else [state[name]]
        official.update({n: part.clone() for n, part in zip(names, parts, strict=True)})
    return official


# ---- loading ----------------------------------------------------------------------------------------------------------


def interpolate_positions(table: Tensor, grid: int) -> Tensor:
    """Vision position table (side^2 + 3, D) -> (grid^2 + 3, D), as the official `load_model_and_may_interpolate`:
    bicubic, align_corners=False, no antialias; the first three rows are copied.
    """
    side = math.isqrt(len(table) - SPECIAL_ROWS)
    if side == grid:
        return table
    square = table[SPECIAL_ROWS:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    rows = resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)
    return torch.cat([table[:SPECIAL_ROWS], rows])


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    origin: str | None = None,
) -> LoadReport:
    """Load official weights into a model; position tables are interpolated to the model's image size.

    Args:
        source: a file for `read_checkpoint`, or a mapping of official names to tensors (``{"model": ...}`` is unwrapped).
        allow_missing: patterns of official names (``"head.*"``) that may be missing, unexpected or of another shape;
            such tensors keep their initial values. Tensors that the head never reads may be missing anyway; the report
            names them.

    Raises:
        BenchError: a missing, unexpected or misshapen tensor that no pattern allows; lists the names.
    """
    names = official_names(model)
    origin, tensors, notes = tensors_of(source, origin, {official for group in names.values() for official in group})
    report = LoadReport(notes=notes)
    ready, misshapen = _pair(model, names, tensors, report)
    report.unexpected = sorted(set(tensors) - set(report.loaded) - set(report.missing))
    _refuse_misfits(report, misshapen, allow_missing, getattr(model, "unread", ()), origin)
    with torch.no_grad():
        for target, value in ready:
            target.copy_(value)
    return report


def tensors_of(
    source: str | Path | Mapping[str, Tensor], origin: str | None, known: Collection[str] = ()
) -> tuple[str, dict[str, Any], list[str]]:
    """The weights of a file or a state dict, under names without prefixes of wrappers.

    Args:
        source: a file for `read_checkpoint`, or names to tensors, also below ``"model"`` and the like.
        origin: what messages begin with; by default the file.
        known: names that carry no prefix, whatever they look like.

    Returns:
        origin, tensors by name, and notes for the report.

    Raises:
        BenchError: not readable, or two tensors would get one name.
    """
    if isinstance(source, (str, Path)):
        checkpoint = read_checkpoint(source)
        origin, tensors, notes = origin or str(source), checkpoint.tensors, checkpoint.notes
    else:
        origin, (tensors, notes) = origin or "state dict", weights_of(source)
    try:
        return origin, bare_names(tensors, known), list(notes)
    except ValueError as error:
        raise BenchError(f"{origin}: {error}") from error


def _pair(
    model: nn.Module, names: Mapping[str, Sequence[str]], tensors: Mapping[str, Any], report: LoadReport
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, str]]:
    """Each tensor of the model with what is to be copied into it; ``report`` learns what is loaded, missing and resized.

    Returns:
        (target, value) of equal shapes; and of the others of the file, official name -> what is wrong with it.
    """
    own, config = model.state_dict(), getattr(model, "config", None)
    ready: list[tuple[Tensor, Tensor]] = []
    misshapen: dict[str, str] = {}
    for name, group in names.items():
        # The three parts of a fused tensor are loaded one by one: each into its rows.
        for official, target in zip(group, own[name].chunk(len(group)) if len(group) > 1 else [own[name]], strict=True):
            value = tensors.get(official)
            if official in tensors:
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
                    misshapen[official] = f"{official} {kind} instead of floating-point numbers"
                else:
                    if official == VISION_POSITIONS and config is not None:
                        value = _at_grid(value, target, config.grid, report)
                    if value.shape != target.shape:
                        misshapen[official] = f"{official} {tuple(value.shape)} instead of {tuple(target.shape)}"
            if official not in tensors or official in misshapen:
                report.missing.append(official)
            else:
                ready.append((target, value))
                report.loaded.append(official)
    return ready, misshapen


def _at_grid(table: Tensor, target: Tensor, grid: int, report: LoadReport) -> Tensor:
    """A table of vision positions at the model's grid; one that is no table of a square is left as it is."""
    if table.ndim == 2 and table.shape[1:] == target.shape[1:]:
        side = math.isqrt(max(len(table) - SPECIAL_ROWS, 0))
        if side > 0 and side**2 + SPECIAL_ROWS == len(table) and side != grid:
            report.resized[VISION_POSITIONS] = f"{side}x{side} -> {grid}x{grid}"
            return interpolate_positions(table, grid)
    return table


def _refuse_misfits(
    report: LoadReport, misshapen: Mapping[str, str], allow: Sequence[str], unread: Sequence[str], origin: str
) -> None:
    """Raise if tensors are missing, misshapen or left over that no pattern of ``allow`` names.

    unread: patterns of tensors that the head never reads: they may be missing, but not misshapen.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    absent = [name for name in report.missing if name not in misshapen]
    misfits = {
        "of another shape": [what for name, what in misshapen.items() if not matches(name, allow)],
        "missing": [name for name in absent if not matches(name, (*allow, *unread))],
        "unexpected": [name for name in report.unexpected if not matches(name, allow)],
    }
    if any(misfits.values()):
        counted = ", ".join(f"{len(names)} {what} ({_first(names)})" for what, names in misfits.items() if names)
        raise BenchError(
            f"{origin}: does not fit this model: tensors {counted}; give the checkpoint of this task and size"
        )


def _first(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def config_from_tensors(
    tensors: Mapping[str, Tensor],
    origin: str,
    preset: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
) -> BEiT3Config:
    """The configuration that a set of official tensors was made with; everything but the number of heads shows in shapes.

    Raises:
        BenchError: not a BEiT-3, or its shapes contradict ``preset``.
    """

    def shape(name: str, dimensions: int = 2, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        if name not in tensors:
            if default is not None:
                return default
            raise BenchError(f"{origin}: tensor {name!r} is missing; {_other_names(tensors, name)}")
        if tensors[name].ndim != dimensions:
            raise BenchError(f"{origin}: tensor {name!r} has {tensors[name].ndim} dimensions instead of {dimensions}")
        return tuple(tensors[name].shape)

    rows, dim = shape(VISION_POSITIONS)
    patch = shape("beit3.vision_embed.proj.weight", 4)[-1]
    side = math.isqrt(max(rows - SPECIAL_ROWS, 1))
    layers = {int(m[1]) for n in tensors if (m := re.match(r"beit3\.encoder\.layers\.(\d+)\.", n))}
    shared = "beit3.encoder.layers.0.self_attn.q_proj.weight" in tensors
    # A vision-only checkpoint may have left the language branch out; whether the head can do without it is checked later.
    text_rows = shape("beit3.encoder.embed_positions.B.weight", default=(MAX_TEXT_ROWS, dim))[0]
    if text_rows != MAX_TEXT_ROWS:
        raise BenchError(f"{origin}: text positions have {text_rows} rows instead of {MAX_TEXT_ROWS}")
    shapes: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": dim,
        "ffn_dim": shape("beit3.encoder.layers.0.ffn.A.fc1.weight")[0],
        "depth": len(layers),
        "vocab_size": shape("beit3.text_embed.weight", default=(RELEASED_VOCABULARY, dim))[0],
        "shared_attention": shared,
        "vl_layers": len({n.split(".")[3] for n in tensors if ".ffn.VL." in n}),
    }
    if preset is None and num_heads is None:
        # Wide models are one of the released shapes or an error; narrow ones may be anything.
        preset = next(
            (p for p, c in PRESETS.items() if c["embed_dim"] == dim and (p != "tiny" or _differences(shapes, p) == [])),
            None,
        )
        if preset is None:
            raise BenchError(
                f"{origin}: the number of attention heads does not show in a checkpoint of width {dim} that is none of "
                f"{', '.join(PRESETS)}; give --preset, or a file that beit3-bench fine-tuned (it carries its configuration)"
            )
    if preset is not None:
        differing = _differences(shapes, preset)
        if differing and preset != "tiny":
            raise BenchError(f"{origin}: is not a BEiT-3 {preset} ({', '.join(differing)}); give the right --preset")
        num_heads = num_heads or BEiT3Config.preset(preset).num_heads
    assert num_heads is not None
    return BEiT3Config(image_size=image_size or side * patch, num_heads=num_heads, **shapes)


def _other_names(tensors: Mapping[str, Tensor], name: str) -> str:
    """What a file without a tensor has instead: the same under a prefix, or names of another kind."""
    other = next((n for n in tensors if n.endswith(name)), None)
    if other is not None:
        prefix = other.removesuffix(name)
        return f"it has {other!r}: write it again with {prefix!r} taken off its names"
    return f"this is not a BEiT-3 checkpoint with official names (one of its names: {next(iter(tensors), '')!r})"


def _differences(shapes: Mapping[str, Any], preset: str) -> list[str]:
    """Fields in which ``shapes`` is not the preset; the vocabulary may be any."""
    reference = BEiT3Config.preset(preset)
    return [
        f"{k} {v} instead of {getattr(reference, k)}"
        for k, v in shapes.items()
        if k != "vocab_size" and v != getattr(reference, k)
    ]


@dataclass
class LoadedModel:
    """A model with its weights, and everything that belongs to them.

    shape: settings of the network beside ``config`` that no tensor shows and a file beside the checkpoint told.
    assumptions: what its outputs and token ids are taken to mean where the file does not say; notes for the result.
    """

    model: nn.Module
    config: BEiT3Config
    report: LoadReport
    preprocessing: Preprocessing
    metadata: dict[str, Any]
    sha256: str
    preset: str | None
    path: Path
    shape: dict[str, Any] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)


def load_model_for(
    head: str,
    checkpoint: str | Path | Checkpoint,
    preset: str | None = None,
    image_size: int | None = None,
    head_arguments: Mapping[str, Any] | None = None,
    allow_missing: Sequence[str] = (),
    num_heads: int | None = None,
) -> LoadedModel:
    """Read a checkpoint, infer its configuration, build the task's model and load it.

    num_heads: of a file that does not say it and whose width is none of the presets'.

    The image size is, in this order: the argument, the checkpoint's metadata, what its position table was made for.
    """
    from beit3_bench.backbones.beit3.models import HEADS, blank_model, build_model

    source = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    origin = str(source.path)
    own = source.metadata.get("config")
    if own is None:
        config = config_from_tensors(source.tensors, origin, preset, image_size, num_heads)
    elif not isinstance(own, Mapping):
        raise BenchError(
            f"{origin}: its 'config' is a {type(own).__name__}, not a table; this file was not written by beit3-bench"
        )
    else:
        runtime = {
            "drop_path_rate": 0.0,
            "checkpoint_activations": False,
            **({"image_size": image_size} if image_size else {}),
        }
        config = BEiT3Config.from_dict({**own, **runtime}, f"{origin}: its configuration")
        if num_heads not in (None, config.num_heads):
            raise BenchError(f"{origin}: has {config.num_heads} attention heads, not {num_heads}; leave num_heads out")
        config_from_tensors(source.tensors, origin, preset, image_size, config.num_heads)  # a preset given must agree
    trained_for = source.metadata.get("head")
    if trained_for and not allow_missing and HEADS.get(trained_for, trained_for) is not HEADS.get(head, head):
        raise BenchError(
            f"{origin}: was fine-tuned with the {trained_for} head, this task needs {head}; give a checkpoint of this task"
        )
    arguments = dict(head_arguments or {})
    whole = "beit3.text_embed.weight" in source.tensors  # else a vision-only file: the rest needs initial values
    if head in HEADS and whole and not allow_missing:  # every tensor comes from the file
        model: nn.Module = allocate(blank_model(head, config, **arguments))
    else:
        model = build_model(head, config, **arguments)
    report = load_checkpoint(model, source.tensors, allow_missing, origin)
    report.notes += source.notes
    if "preprocessing" in source.metadata:
        preprocessing = Preprocessing.from_dict(
            source.metadata["preprocessing"], f"{origin}: its preprocessing"
        ).resized(config.image_size)
    else:
        preprocessing = Preprocessing.for_head(head, config.image_size)
    preset = preset or source.metadata.get("preset") or preset_of(config)
    return LoadedModel(model, config, report, preprocessing, source.metadata, source.sha256, preset, source.path)


def preset_of(config: BEiT3Config) -> str | None:
    """The preset that a configuration is, whatever its image size and vocabulary."""
    keys = ("patch_size", "embed_dim", "num_heads", "ffn_dim", "depth", "shared_attention", "vl_layers")
    known = {name: BEiT3Config.preset(name) for name in PRESETS}
    return next((name for name, p in known.items() if all(getattr(p, k) == getattr(config, k) for k in keys)), None)
