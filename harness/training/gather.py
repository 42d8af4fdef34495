"""Concatenation over processes that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from beit3_bench.harness.engine.processes import Processes


class _AllGather(torch.autograd.Function):
    """Tensors of one shape from all processes, (world, ...); as official `GatherLayer` (beit3/utils.py)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, world: int) -> Tensor:
        import torch.distributed as dist

        ctx.rank = rank
        parts = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        import torch.distributed as dist

        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.rank], None, None


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

        mine = torch.tensor([len(tensor)], device=tensor.device)
        counts = [torch.zeros_like(mine) for _ in range(world)]
        dist.all_gather(counts, mine)
        sizes = [int(n) for n in torch.cat(counts).tolist()]
        most = max(sizes)
        # Collectives take equal shapes: the shorter ones are filled up, and cut again.
        padded = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])]).contiguous()
        if tensor.is_floating_point():
            parts = list(_AllGather.apply(padded, self.processes.rank, world))
        else:
            parts = [torch.zeros_like(padded) for _ in range(world)]
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
