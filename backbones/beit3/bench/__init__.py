"""How fast BEiT-3's native heads are, as ratios: against the machine's matrix products, and against the official way of working."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.benchmark import Benchmark

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from beit3_bench.backbones.abilities import Reader


class BEiT3Benchmark(Benchmark):
    """The cases of `cases`, measured by `measure`."""

    @property
    def tasks(self) -> tuple[str, ...]:
        from beit3_bench.backbones.beit3.bench.cases import IMAGE_SIZES

        return tuple(IMAGE_SIZES)

    def measure(
        self,
        task: str,
        preset: str,
        device: torch.device,
        dtype: str,
        samples: int | None = None,
        repeats: int = 5,
        image_size: int | None = None,
        same_process: bool = False,
        compiled: bool = False,
    ) -> dict[str, Any]:
        """On a CPU the official way runs in a process of its own: ours has settings that it must not profit from."""
        from beit3_bench.backbones.beit3.bench.cases import make_case
        from beit3_bench.backbones.beit3.bench.measure import measure
        from beit3_bench.backbones.official_process import OfficialProcess

        case = make_case(task, preset, device, samples, image_size, device.type == "cpu")
        apart = device.type == "cpu" and not same_process
        again = partial(make_case, task, preset, device, case.samples, case.image_size)
        with OfficialProcess(again, dtype) if apart else nullcontext() as official:
            return measure(case, device, dtype, repeats, official, compiled)

    def reader(self, tokenizer: Path) -> Reader:
        """That of the heads which read texts."""
        from beit3_bench.backbones.beit3.tokenizer import Tokenizer
        from beit3_bench.backbones.reading import NativeReader

        return NativeReader(None, Tokenizer.load(tokenizer))
