"""Whether this machine computes what the authors' code computed: what `beit3-bench doctor --numerics` measures and says.

The first thing to ask of a user who reports a wrong number: it tells a machine, a driver or a library apart from data and weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beit3_bench.backbones.numerics import Comparison
from beit3_bench.errors import BenchError
from beit3_bench.harness.console import columns


@dataclass(frozen=True)
class NumericsReport:
    """Every stage in every arithmetic.

    facts: of the machine and its libraries, name -> value in words.
    """

    device: str
    dtypes: tuple[str, ...]
    facts: dict[str, str]
    comparisons: list[Comparison]

    @property
    def first(self) -> Comparison | None:
        """The first stage that does not fit, in the order of computation; None where all do."""
        return next((one for one in self.comparisons if not one.fits), None)

    @property
    def fits(self) -> bool:
        return self.first is None

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it; a difference is null where a tensor had another shape or was not finite."""
        return {
            "fits": self.fits,
            "device": self.device,
            "dtypes": list(self.dtypes),
            "facts": self.facts,
            "first": None if self.first is None else _plain(self.first),
            "stages": [_plain(one) for one in self.comparisons],
        }


def _plain(one: Comparison) -> dict[str, Any]:
    values = {**asdict(one), "fits": one.fits}
    return {name: None if x == math.inf else x for name, x in values.items()}


def measure(device: str, dtypes: Sequence[str]) -> NumericsReport:
    """Compute the stages of every family that ships some.

    Args:
        device: as `devices.resolve_device` takes it.
        dtypes: arithmetics; none = fp32, and bf16, or fp16 where the device does not compute in that.

    Raises:
        BenchError: no such device, or it does not compute in an arithmetic; an embedded file is missing or damaged.
    """
    from beit3_bench.backbones.numerics import compare
    from beit3_bench.backbones.registry import families
    from beit3_bench.harness.engine.devices import failing_card, resolve_device

    where = resolve_device(device)
    asked = tuple(dict.fromkeys(dtypes)) or ("fp32", _half(device))
    for dtype in asked:
        resolve_device(device, dtype=dtype)
    heads = [head for family in families() for head in family.numerics()]
    with failing_card(where):
        comparisons = [one for dtype in asked for head in heads for one in compare(head, where, dtype)]
    return NumericsReport(str(where), asked, _facts(where), comparisons)


def _half(device: str) -> str:
    from beit3_bench.harness.engine.devices import resolve_device

    try:
        resolve_device(device, dtype="bf16")
    except BenchError:
        return "fp16"
    return "bf16"


def _facts(device: Any) -> dict[str, str]:
    """What machines differ in."""
    import platform

    import torch

    from beit3_bench.backbones.preprocess import decoder_facts
    from beit3_bench.backbones.products import exact_products

    way, decoder = exact_products(), decoder_facts()
    codecs = ", ".join(f"{name} {version}" for name, version in decoder["codecs"].items() if version)
    products = (
        "rows agree to rounding" if way is None else f"rows are exact at any batch size, by {way.library} products"
    )
    facts = {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}",
        "products on the CPU": products,
        "pictures": f"Pillow {decoder['pillow']} ({codecs})",
        "system": platform.platform(),
    }
    if device.type == "cuda":
        facts["card"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return facts


# ---- as text ------------------------------------------------------------------------------------------------------------


def report_as_text(report: NumericsReport) -> tuple[str, str]:
    """The facts and the table; and the last line, the verdict."""
    width = max(map(len, report.facts))
    lines = [f"{name:<{width}}  {value}" for name, value in report.facts.items()]
    for dtype in report.dtypes:
        kind = "largest difference" if dtype == "fp32" else "relative error"
        head = ("family", "head", "stage", "reference", kind, "tolerance" if dtype == "fp32" else "expected", "verdict")
        rows = [_row(one) for one in report.comparisons if one.dtype == dtype]
        lines += ["", f"{dtype} on {report.device}", *columns([head, *rows])]
    return "\n".join(lines) + "\n", _verdict(report)


def _row(one: Comparison) -> tuple[str, ...]:
    numbers = (_number(one.difference), _expected(one))
    return one.family, one.head, one.stage, one.reference, *numbers, "fits" if one.fits else "DIFFERS"


def _number(x: float) -> str:
    return "not finite" if x == math.inf else f"{x:.2g}"


def _expected(one: Comparison) -> str:
    if one.dtype == "fp32":
        return _number(one.most)
    return f"{_number(one.least)} to {_number(one.most)}" if one.least else f"at most {_number(one.most)}"


def _verdict(report: NumericsReport) -> str:
    total, first = len(report.comparisons), report.first
    if first is None:
        return f"all {total} stages fit: {', '.join(report.dtypes)} on {report.device}"
    wrong = sum(not one.fits for one in report.comparisons)
    expected = f"tolerance {_number(first.most)}" if first.dtype == "fp32" else f"expected {_expected(first)}"
    return (
        f"{wrong} of {total} stages differ; diverges first at {first.stage} of {first.head} ({first.family}, {first.dtype}): "
        f"{_number(first.difference)}, {expected}"
    )
