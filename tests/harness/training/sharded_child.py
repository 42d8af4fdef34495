"""`beit3-bench` that writes down, after a training, how many numbers this process held.

python sharded_child.py FOLDER finetune ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from beit3_bench.harness.cli import main
from beit3_bench.harness.tracking import Trackers
from beit3_bench.harness.training.loop import TrainingLoop

_run = TrainingLoop.run


def local(tensors: Iterable[Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def run(self: TrainingLoop, trackers: Trackers | None = None) -> dict[str, Any]:
    summary = _run(self, trackers)
    moments = [v for state in self.optimizer.state.values() for k, v in state.items() if k != "step"]
    facts = {"weights": local(self.model.parameters()), "moments": local(moments)}
    if self.average is not None:
        facts["average"] = local(self.average.module.parameters())
    Path(sys.argv[1], f"held-{self.processes.rank}.json").write_text(json.dumps(facts))
    return summary


if __name__ == "__main__":
    TrainingLoop.run = run  # type: ignore[method-assign]
    main(sys.argv[2:])
