"""What a training would do: devices, batches, steps, parameter groups with their rates, memory."""

from __future__ import annotations

from typing import Any

import torch

from beit3_bench.harness.training.loop import Plan
from beit3_bench.harness.training.order import Division
from beit3_bench.harness.training.start import Start

SHARDED_OVER = (2, 4, 8, 16)
"""Numbers of devices for which a dry run tells the memory of sharded training."""


def dry_run(
    start: Start, plan: Plan, device: torch.device, world: int, dtype: str, parallel: str = "ddp"
) -> dict[str, Any]:
    """The facts of a training, without doing it.

    ``memory`` is of one device as asked for; ``memory_fsdp`` the total with FSDP, by number of devices.
    """
    recipe, division, training = start.recipe, plan.division, start.training
    groups = training.groups()
    own = division.own(0, 0)
    at_once = own.stop - own.start
    parameters = sum(p.numel() for p in training.module.parameters())
    average = recipe.ema_decay > 0

    def memory(division: Division, shards: int) -> dict[str, int]:
        own = division.own(0, 0)
        return training.memory(own.stop - own.start, dtype, average, shards)

    return {
        "task": start.task.name,
        "preset": start.preset,
        "device": str(device),
        "processes": world,
        "parallel": parallel if world > 1 else None,
        "training_samples": len(start.training_split.examples),
        "validation_samples": len(start.validation_split.examples),
        "notes": start.notes,
        "global_batch": recipe.batch,
        "samples_at_once": at_once,
        "accumulate": division.accumulate,
        "steps_per_epoch": plan.batches.steps_per_epoch,
        "steps": plan.steps,
        "warmup_steps": recipe.warmup_steps or round(recipe.warmup_epochs * plan.batches.steps_per_epoch),
        "parameters": parameters,
        "groups": [
            {
                "name": g["name"],
                "tensors": len(g["params"]),
                "parameters": sum(p.numel() for p in g["params"]),
                "lr": recipe.lr * g["lr_scale"],
                "weight_decay": g["weight_decay"],
            }
            for g in groups
        ],
        "memory": memory(division, world if parallel == "fsdp" else 1),
        "memory_fsdp": {
            str(n): memory(Division.of(recipe.batch, n, recipe.micro_batch), n)["total"]
            for n in SHARDED_OVER
            if n <= recipe.batch
        },
        "start": training.start["checkpoint"] or "from scratch",
        "not_in_checkpoint": training.start["missing"],
        "left_over_in_checkpoint": training.start["unexpected"],
        "recipe": recipe.to_dict(),
    }


def describe_dry_run(facts: dict[str, Any]) -> str:
    """The facts as lines to read."""
    gib = {k: f"{v / 2**30:.2f} GiB" for k, v in facts["memory"].items()}
    gathered = f", gathered {gib['gathered']}" if facts["memory"]["gathered"] else ""
    sharded = ", ".join(f"{n}: {v / 2**30:.2f} GiB" for n, v in facts["memory_fsdp"].items())
    how = f", {facts['parallel']}" if facts["parallel"] else ""
    lines = [
        f"{facts['task']}, preset {facts['preset']}, start: {facts['start']}",
        f"{facts['processes']} x {facts['device']}{how}; global batch {facts['global_batch']} = "
        f"{facts['processes']} processes x {facts['samples_at_once']} samples x {facts['accumulate']} micro-batches",
        f"{facts['training_samples']:,} training and {facts['validation_samples']:,} validation samples; "
        f"{facts['steps']:,} steps ({facts['steps_per_epoch']:,} per epoch, {facts['warmup_steps']:,} warm-up)",
        f"{facts['parameters'] / 1e6:.1f} M parameters; memory per device about {gib['total']} "
        f"(weights and optimizer {gib['weights']}, activations {gib['activations']}{gathered})",
        f"with --parallel fsdp, by number of devices: {sharded or 'the batch is too small to divide'}",
    ]
    for key, what in (("not_in_checkpoint", "new"), ("left_over_in_checkpoint", "unused")):
        if facts[key]:
            names = ", ".join(facts[key][:6]) + (", ..." if len(facts[key]) > 6 else "")
            lines.append(f"{len(facts[key])} {what} tensors: {names}")
    lines.append(f"{'group':24} {'tensors':>8} {'parameters':>12} {'peak lr':>10} {'decay':>6}")
    lines += [
        f"{g['name']:24} {g['tensors']:>8} {g['parameters']:>12,} {g['lr']:>10.3g} {g['weight_decay']:>6.3g}"
        for g in facts["groups"]
    ]
    lines += [f"note: {note}" for note in facts["notes"]]
    lines.append("recipe: " + " ".join(f"{k}={_plain(v)}" for k, v in facts["recipe"].items()))
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
