"""Does this machine compute what the official code computed? Tiny networks, stage by stage, against embedded tensors.

A family ships, inside of the package, weights and inputs of tiny networks and what its authors' code made of them. A stage is a
tensor on the way from pixels and token ids to the outputs of a head. In float32 it has to be the official one to rounding; in half
precision its relative error has to be about what it was where it was measured: more means that something else was computed, less
that nothing was rounded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor, nn

STAGES, TENSORS = "stages.json", "tensors.safetensors"
"""Files of a family's embedded folder; made by tools/numerics.py."""
OFFICIAL, OWN = "official", "float64"
"""Where an expected tensor is from: the authors' code, or, between two of those, this project's network in float64."""

ELSEWHERE = 4.0
"""Factor on the tolerance of float32 where sums run in another order than where it was measured, on Intel's CPUs with AVX-512."""
LEAST, MOST = 1 / 4, 4.0
"""A relative error in half precision is expected between these multiples of the measured one (see `Stage.relative`). Under the
instruction sets of SSE4, AVX2 and AVX-512 (with and without AMX) of one Xeon it was 0.8 to 1.2 times that, of few numbers 0.6 to 2.1
times. The least is above what fp16 rounds where bf16 was asked for (an eighth), and far above what float32 does."""
FEW, LEAST_OF_FEW = 100, 1 / 50
"""Of so few numbers errors may cancel by chance."""
EXACT_IN_HALF = 1e-5
"""Relative error that a stage may have where half precision rounded nothing: a look-up, or a sum of float32."""


@dataclass(frozen=True)
class Stage:
    """A tensor on the way through a head.

    expected: float32, or integers.  reference: `OFFICIAL` or `OWN`.
    tolerance: largest absolute difference in float32: ten times the distance of the official float32 from float64; 0 = equal.
    relative: dtype -> relative error (Frobenius norm) that half precision had where it was measured; empty = not compared.
    """

    name: str
    expected: Tensor
    reference: str
    tolerance: float
    relative: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """One way through a tiny network.

    name: the task, and which part of it.  stages: in the order of computation.
    compute: on a device, in the arithmetic that is in force: stage -> tensor.
    """

    family: str
    name: str
    stages: tuple[Stage, ...]
    compute: Callable[[torch.device], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Comparison:
    """One stage in one arithmetic.

    difference: in float32 the largest absolute one, in half precision the relative one; infinite where the tensor has another
        shape or is not finite.
    least, most: what is expected of it.
    """

    family: str
    head: str
    stage: str
    dtype: str
    reference: str
    difference: float
    least: float
    most: float

    @property
    def fits(self) -> bool:
        return self.least <= self.difference <= self.most


def compare(head: Head, device: torch.device, dtype: str) -> list[Comparison]:
    """The stages of a head, computed as a run computes with ``--device`` and ``--dtype``.

    Raises:
        BenchError: torch does not compute in this arithmetic on this device.
    """
    import torch

    from beit3_bench.backbones.precision import arithmetic, full_float32

    stages = [stage for stage in head.stages if dtype == "fp32" or dtype in stage.relative]
    if not stages:
        return []
    try:
        with torch.inference_mode(), full_float32(), arithmetic(dtype, device):
            computed = head.compute(device)
    except NotImplementedError as error:
        raise _unsupported(dtype, device, error) from error
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise _unsupported(dtype, device, error) from error
    compared = []
    for stage in stages:
        if dtype == "fp32":
            difference = largest_difference(computed[stage.name], stage.expected)
            # Pictures hold no sums of float32, which other processors add up in another order.
            allowance = _allowance(device) if stage.reference in (OFFICIAL, OWN) else 1.0
            least, most = 0.0, stage.tolerance * allowance
        else:
            difference = relative_difference(computed[stage.name], stage.expected)
            least, most = expected_range(stage.relative[dtype], stage.expected.numel())
        compared.append(Comparison(head.family, head.name, stage.name, dtype, stage.reference, difference, least, most))
    return compared


def _unsupported(dtype: str, device: torch.device, error: Exception) -> BenchError:
    import torch

    reason = str(error).strip().splitlines()[0][:150]
    return BenchError(f"--dtype {dtype}: torch {torch.__version__} does not compute in it on {device} ({reason})")


def expected_range(measured: float, count: int) -> tuple[float, float]:
    """Least and most relative error of ``count`` numbers in half precision, from the measured one.

    A stage that was rounded must be rounded here, too: no error at all means that autocast had no effect.
    """
    if measured < EXACT_IN_HALF:
        return 0.0, EXACT_IN_HALF
    return measured * (LEAST if count >= FEW else LEAST_OF_FEW), MOST * measured


def _allowance(device: torch.device) -> float:
    import torch

    from beit3_bench.backbones.packing import PLAIN
    from beit3_bench.backbones.products import exact_products

    measured = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return 1.0 if measured and exact_products() == PLAIN else ELSEWHERE


def largest_difference(ours: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or something is not finite."""
    if ours.shape != expected.shape:
        return math.inf
    difference = (ours.cpu().double() - expected.double()).abs().max().item()
    return difference if math.isfinite(difference) else math.inf


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what is expected; infinite as `largest_difference`."""
    if ours.shape != expected.shape:
        return math.inf
    wanted = expected.double()
    difference = ((ours.cpu().double() - wanted).norm() / wanted.norm()).item()
    return difference if math.isfinite(difference) else math.inf


# ---- the embedded files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """What a family ships.

    facts: what else its `STAGES` file says (``"config"``).  tensors: weights and inputs by name; expected tensors are in ``stages``.
    """

    stages: Mapping[str, tuple[Stage, ...]]
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with ``PREFIX/``, without it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): x for name, x in self.tensors.items() if name.startswith(start)}


def expected_name(head: str, stage: str) -> str:
    """An expected tensor's name in `TENSORS`."""
    return f"expected/{head}/{stage}"


def read_embedded(folder: Traversable) -> Embedded:
    """The two files of a folder.

    Raises:
        BenchError: a file is missing or damaged; names it.
    """
    from safetensors.torch import load

    text, content = (_read(folder / name) for name in (STAGES, TENSORS))
    try:
        document = json.loads(text)
        digest = document["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / STAGES, "not readable") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(folder / TENSORS, f"its sha256 is not {digest[:12]}...")
    tensors = load(content)
    try:
        stages = {
            head: tuple(
                Stage(
                    s["stage"], tensors[expected_name(head, s["stage"])], s["reference"], s["tolerance"], s["relative"]
                )
                for s in listed
            )
            for head, listed in document["heads"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / STAGES, "does not list the stages") from error
    return Embedded(stages, document, tensors)


def _read(file: Traversable) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BenchError(f"{file}: not found; it is a part of beit3-bench: install that again") from error


def _damaged(file: Traversable, why: str) -> BenchError:
    return BenchError(f"{file}: damaged ({why}); it is a part of beit3-bench: install that again")


# ---- what happens inside of a network -----------------------------------------------------------------------------------

Given = Mapping[str, "Tensor"]
Pairs = Sequence[tuple[str, Any]]
"""(stage, module)."""


@dataclass(frozen=True)
class Way:
    """One way through a head. task: whose network.

    stages: from the network and all inputs of the family (see tools/numerics.py) the stages, in the order of computation.
    """

    task: str
    stages: Callable[[Any, Given], dict[str, Tensor]]


def pack(model: nn.Module, device: torch.device) -> None:
    """Make a network ready as `native.NativeAbility.make_ready` does."""
    from beit3_bench.backbones.packing import pack_weights

    if device.type == "cpu":
        pack_weights(model)


def heads_of(
    family: str,
    embedded: Embedded,
    ways: Mapping[str, Way],
    build: Callable[[str, Mapping[str, Any], Given], nn.Module],
    make_ready: Callable[[nn.Module, torch.device], None] = pack,
) -> list[Head]:
    """The heads of a family, whose networks are built where they are first asked for.

    Args:
        build: from a task, ``config`` of the facts, and all weights as ``TASK/NAME``.  make_ready: as a run makes its own ready.
    """

    def on_device(way: Way) -> Callable[[torch.device], dict[str, Tensor]]:
        @cache
        def ready(device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
            model = build(way.task, embedded.facts["config"], embedded.part("weights")).to(device)
            make_ready(model, device)
            return model, {name: x.to(device) for name, x in embedded.part("inputs").items()}

        def compute(device: torch.device) -> dict[str, Tensor]:
            model, given = ready(device)
            way.stages(
                model, given
            )  # layers pack their weights when they are first used: what counts is the second batch
            return way.stages(model, given)

        return compute

    return [Head(family, name, embedded.stages[name], on_device(way)) for name, way in ways.items()]


def weights_of(task: str, weights: Given) -> dict[str, Tensor]:
    """Those of a task among all of a family, and those that all tasks share (``backbone/NAME``)."""
    starts = ("backbone/", f"{task}/")  # a task's own replace those of all
    return {name.removeprefix(start): x for start in starts for name, x in weights.items() if name.startswith(start)}


def padded(captions: Sequence[Sequence[int]], length: int, pad: int) -> Tensor:
    """Token ids as one tensor (captions, length); wider where a caption is longer, so that it differs from what is expected."""
    import torch

    width = max(length, *map(len, captions))
    return torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in captions])


class Watch:
    """Keeps what the modules of a network take and give, by the name of a stage, in the order in which they are called."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Tensor]] = {}

    def keep(self, stage: str, values: Any) -> None:
        """values: a tensor (B, T, D), or several of one batch, None among them."""
        import torch

        given = (values,) if isinstance(values, torch.Tensor) else values
        self.kept.setdefault(stage, []).extend(x.detach() for x in given if x is not None)

    @contextmanager
    def on(
        self, outputs: Sequence[tuple[str, nn.Module]], inputs: Sequence[tuple[str, nn.Module]] = (), streams: int = 1
    ) -> Iterator[None]:
        """Watch (stage, module) pairs within. inputs: what modules take. streams: how many of the arguments these are."""

        def hook(stage: str) -> Callable[..., None]:
            return lambda _module, _given, output: self.keep(stage, output)

        def pre_hook(stage: str) -> Callable[..., None]:
            return lambda _module, given: self.keep(stage, given[:streams])

        handles = [module.register_forward_hook(hook(stage)) for stage, module in outputs]
        handles += [module.register_forward_pre_hook(pre_hook(stage)) for stage, module in inputs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stages(self) -> dict[str, Tensor]:
        """Stage -> its tensors along the tokens, images before texts."""
        import torch

        return {stage: torch.cat(parts, dim=1) for stage, parts in self.kept.items()}
