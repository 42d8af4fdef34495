"""How fast a family's networks are: what `beit3-bench bench` asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from beit3_bench.backbones.abilities import Reader


@dataclass(frozen=True)
class Measuring:
    """How the cases of a family are measured.

    preset: size of the network; weights are random.
    samples: of a call; None = as many as keep the device busy.  repeats: timed calls of each path.
    image_size: pixels; None = the task's published size.
    same_process: on a CPU, the official way runs in this process, with our settings.
    compiled: our path's layers are compiled.
    """

    preset: str
    device: torch.device
    dtype: str
    samples: int | None = None
    repeats: int = 5
    image_size: int | None = None
    same_process: bool = False
    compiled: bool = False

    @property
    def apart(self) -> bool:
        """Whether the official way has a process of its own: on a CPU ours has settings that it must not profit from."""
        return self.device.type == "cpu" and not self.same_process


class Benchmark(ABC):
    """How fast a family's networks are, as ratios measured in one run."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """For which there is a case."""

    @abstractmethod
    def measure(self, task: str, how: Measuring) -> dict[str, Any]:
        """Medians and ratios of one case, plain values.

        Keys: ``task``; ``image_size`` (pixels; None = no image is looked at); ``samples`` of a call; ``reference``, how the other way
        works, and ``reference_process``, where; ``seconds``, ``reference_seconds``, ``ratio``, ``repeats`` and memory, see
        `timing.in_turn`; ``output_difference``, ``outputs_equal``, in float32; ``dtype_difference``; and more of the family's own
        (``roof_share``).

        Raises:
            BenchError: no such case, preset or way.
        """

    def reader(self, tokenizer: Path) -> Reader | None:
        """The half of the family's abilities that needs no weights, for items without images; None where it takes another tokenizer.

        tokenizer: file of a SentencePiece model.
        """
        return None
