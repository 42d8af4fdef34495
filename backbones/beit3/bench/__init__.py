"""How fast BEiT-3's native heads are, as ratios: against the machine's matrix products, and against the official way of working."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.benchmark import Benchmark, Measuring

if TYPE_CHECKING:
    from pathlib import Path

    from beit3_bench.backbones.abilities import Reader


class BEiT3Benchmark(Benchmark):
    """The cases of `cases`, measured by `measure`."""

    @property
    def tasks(self) -> tuple[str, ...]:
        from beit3_bench.backbones.beit3.bench.cases import IMAGE_SIZES

        return tuple(IMAGE_SIZES)

    def measure(self, task: str, how: Measuring) -> dict[str, Any]:
        from beit3_bench.backbones.beit3.bench.cases import make_case
        from beit3_bench.backbones.beit3.bench.measure import measure
        from beit3_bench.backbones.official_process import OfficialProcess

        case = make_case(task, how.preset, how.device, how.samples, how.image_size, how.device.type == "cpu")
        again = partial(make_case, task, how.preset, how.device, case.samples, case.image_size)
        with OfficialProcess(again, how.dtype) if how.apart else nullcontext() as official:
            return measure(case, how.device, how.dtype, how.repeats, official, how.compiled)

    def reader(self, tokenizer: Path) -> Reader:
        """That of the heads which read texts."""
        from beit3_bench.backbones.beit3.tokenizer import Tokenizer
        from beit3_bench.backbones.reading import NativeReader

        return NativeReader(None, Tokenizer.load(tokenizer))
