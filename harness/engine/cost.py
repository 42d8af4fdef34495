"""What a sample costs: floating point operations, and energy where the device tells it.

Operations are those of matrix products, convolutions and attention, a multiplication and an addition being two: PyTorch's formulas from
their shapes (`torch.utils.flop_counter`). One sample of each kind is asked once more than the run needs, and its values are thrown away:
a row is never computed under a counter, which takes operations apart. Tensors without storage would do, too, but with them PyTorch
imports its compiler, which takes longer than most samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from beit3_bench.backbones.abilities import Ability, Item
from beit3_bench.backbones.precision import full_float32
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.devices import to_device
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.tasks.contract import Example, Task

_LOOKED_AT = 1_000
"""Samples of a kind among which the one of median length is taken."""
_COUNTED_TEXTS, _MOST_TEXTS = 64, 1_024
"""Of an image that is compared with more than so many texts, as many are counted, and the rest in proportion."""


# ---- operations ------------------------------------------------------------------------------------------------------


def gflop_per_sample(
    task: Task, examples: Sequence[Example], ability: Ability, device: torch.device
) -> dict[str, float]:
    """GFLOP of a sample by kind of example (``"image"``, ``"text"``, ``"pair"``; ``"match"`` of re-ranking, an image with all the texts
    that it is compared with), padding of its text included; of the searches of a captioner and the proposals of a detector, what this
    one sample took. Empty for a model that is none of torch's, and for a kind whose sample cannot be read or does not fit: the run
    itself says why.

    ability: as it was loaded, before `Ability.make_ready` and compilation; its reader has been prepared. Moved to the device.
    """
    kinds: dict[str, list[Item]] = {}
    for example in examples:
        items = kinds.setdefault(example.kind, [])
        if len(items) < _LOOKED_AT:
            items.append(task.item(example))
    counted = {}
    for kind, items in kinds.items():
        items.sort(key=ability.reader.length)
        count = _gflop(ability, items[len(items) // 2], device)
        if count:
            counted[kind] = count
    return counted


def _gflop(ability: Ability, item: Item, device: torch.device) -> float | None:
    if ability.module is None:
        return None
    if (texts := len(item.texts)) > _MOST_TEXTS:
        few = item.texts[:: texts // _COUNTED_TEXTS]
        one, more = (_gflop(ability, replace(item, texts=some), device) for some in (few[:1], few))
        return None if one is None or more is None else one + (more - one) * (texts - 1) / (len(few) - 1)
    reader = ability.reader
    if isinstance(cache := reader.transform, ImageCache):
        reader = copy.copy(reader)
        reader.transform = cache.reading_only()
    try:
        ability.module.to(device).eval()
        batch = to_device(reader.collate([item]), device)
        with torch.no_grad(), full_float32(), _Operations() as counter:
            ability.predict(batch)
    except (BenchError, RuntimeError, MemoryError):
        return None
    return counter.total / 1e9


class _Operations(TorchDispatchMode):
    """Adds up the operations within. PyTorch's own `FlopCounterMode` does so, too, and imports the compiler at the first one."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry, sdpa_flop_count

        super().__init__()
        # Attention on a CPU has no formula in PyTorch's list; its queries, keys and values come first, as on cards.
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self.formulas = {
            attention: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
            **dict.fromkeys(_packed_products(), _of_linear),
            **flop_registry,
        }
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; or the compiler would be imported to be told so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _packed_products() -> list[Any]:
    """Linear layers over weights laid out for a processor (`backbones.packing`), of which PyTorch's list has none."""
    places = ((torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.mkl, "_mkl_linear"))
    return [getattr(place, name) for place, name in places if hasattr(place, name)]


def _of_linear(x: torch.Tensor, *_: Any, out_val: torch.Tensor, **__: Any) -> int:
    return 2 * x.numel() * out_val.shape[-1]


# ---- energy ----------------------------------------------------------------------------------------------------------


class EnergyCounter(Protocol):
    """A counter that only grows. source: who counts, as results say it."""

    source: str

    def joules(self) -> float:
        """Since some time in the past. Raises: OSError: it cannot be read any more."""


class NvmlCounter:
    """Of one graphics card, everything that runs on it (NVML's total energy consumption)."""

    source = "NVML, the card"

    def __init__(self, library: Any, handle: Any):
        self.library, self.handle = library, handle

    def joules(self) -> float:
        try:
            return self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3  # of millijoules
        except self.library.NVMLError as error:
            raise OSError(str(error)) from error


class RaplCounter:
    """Of all processor packages of the machine, whatever runs on them (Linux powercap); wraps around are made up for."""

    source = "RAPL, all processor packages"

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._last = [self._read(folder) for folder in self.folders]
        self._turns = [0.0] * len(self.folders)
        self._range = [float((folder / "max_energy_range_uj").read_text()) for folder in self.folders]

    @staticmethod
    def _read(folder: Path) -> float:
        return float((folder / "energy_uj").read_text())

    def joules(self) -> float:
        for n, folder in enumerate(self.folders):
            now = self._read(folder)
            if now < self._last[n]:
                self._turns[n] += self._range[n]
            self._last[n] = now
        return (sum(self._last) + sum(self._turns)) / 1e6  # of microjoules


POWERCAP = Path("/sys/class/powercap")


def energy_counter(device: torch.device, powercap: Path = POWERCAP) -> EnergyCounter | None:
    """What counts the energy of a device; None where nothing does, or nobody may read it (pynvml is optional)."""
    try:
        return _nvml(device) if device.type == "cuda" else _rapl(powercap) if device.type == "cpu" else None
    except (ImportError, OSError, ValueError):
        return None


def _rapl(powercap: Path) -> RaplCounter | None:
    folders = [f for f in sorted(powercap.glob("intel-rapl:*")) if (f / "name").read_text().startswith("package")]
    return RaplCounter(folders) if folders else None


def _nvml(device: torch.device) -> NvmlCounter | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        counter = NvmlCounter(pynvml, handle)
        counter.joules()
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error
    return counter
