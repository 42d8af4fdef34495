"""Concatenation over processes that gradients flow through."""

from __future__ import annotations

import torch
from torch import Tensor

from beit3_bench.harness.engine.processes import Processes


class Gather:
    """``gather(tensor)``: the tensors (n_rank, ...) of all processes one behind the other, in order of rank.

    The first dimension may differ between processes. Gradients of floating-point tensors reach the process that a row came
    from, summed over all processes; data-parallel averaging then gives the gradient of the one global loss.
    """

    def __init__(self, processes: Processes | None = None):
        self.processes = processes or Processes()

    def __call__(self, tensor: Tensor) -> Tensor:
        world = self.processes.world
        if world == 1:
            return tensor
        import torch.distributed as dist
        from torch.distributed.nn.functional import all_gather

        mine = torch.tensor([len(tensor)], device=tensor.device)
        counts = [torch.zeros_like(mine) for _ in range(world)]
        dist.all_gather(counts, mine)
        sizes = [int(n) for n in torch.cat(counts).tolist()]
        most = max(sizes)
        # Collectives take equal shapes: the shorter ones are filled up, and cut again.
        padded = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])]).contiguous()
        if tensor.is_floating_point():
            parts = list(all_gather(padded))
        else:
            parts = [torch.zeros_like(padded) for _ in range(world)]
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
