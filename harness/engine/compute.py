"""How a network computes: device, arithmetic, batches, decoding processes, compilation."""

from __future__ import annotations

from dataclasses import dataclass

from beit3_bench.harness.engine.processes import Processes


@dataclass(frozen=True)
class Compute:
    """What a user may choose without changing what is measured.

    device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype: ``"fp32"`` (exact: TF32 is off), or autocast to ``"bf16"``, ``"fp16"``.
    batch_size: examples per forward pass and process, or ``"auto"`` (the task's own, or what fits); halved when memory runs out.
    workers: decoding processes per process; None = chosen from the cores.
    compile: ``"off"``, ``"on"``, or ``"auto"``: where it pays.
    """

    device: str = "auto"
    dtype: str = "fp32"
    batch_size: int | str = "auto"
    workers: int | None = None
    compile: str = "off"

    def check(self, processes: Processes | None = None) -> None:
        """Raise before anything is read where the device is not there, or does not compute in that arithmetic.

        The defaults, which are always there, are not looked at.

        Raises:
            BenchError: see `devices.resolve_device`.
        """
        if self.dtype != "fp32" or self.device not in ("auto", "cpu"):
            from beit3_bench.harness.engine.devices import resolve_device

            resolve_device(self.device, processes, self.dtype)
