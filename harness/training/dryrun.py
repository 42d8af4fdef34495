"""What a training would do: devices, batches, steps, parameter groups with their rates, memory."""

from __future__ import annotations

from typing import Any

import torch

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.harness.training.loop import Plan
from beit3_bench.harness.training.order import Division
from beit3_bench.harness.training.sharding import LAYERS
from beit3_bench.harness.training.start import Start

STORED_ROWS = 34
"""Rows of width D that one layer keeps per token for the backward pass, where the feed-forward is 4 D wide: two layer
norms, q, k, v, attention, two sub-norms, and three copies of the hidden state with their inputs."""


SHARDED_OVER = (2, 4, 8, 16)
"""Numbers of devices for which a dry run tells the memory of sharded training."""


def memory_bytes(
    config: BEiT3Config,
    parameters: int,
    samples: int,
    text_tokens: int,
    dtype: str,
    average: bool,
    shards: int = 1,
    layer: int = 0,
    root: int = 0,
) -> dict[str, int]:
    """Estimated bytes on one device.

    Args:
        samples: forward passes of one image (and one text) at once.
        shards: processes that share weights, gradients and moments (FSDP); 1 = whole copies.
        layer, root: parameters of the largest layer, and of everything outside of layers.

    Returns:
        ``weights`` (float32 weights, gradients, two moments, and the average), ``gathered`` (FSDP: what is whole for a moment:
        everything outside of layers with gradients, one layer with gradients and the next one, or all weights while it
        validates), ``activations``, ``total``.
    """
    weights = -(-parameters * 4 * (4 + average) // shards)
    width = 4 if dtype == "fp32" else 2
    tokens = config.num_patches + 1 + text_tokens
    row = tokens * config.embed_dim * width
    per_layer = row * (STORED_ROWS - 16 + 4 * config.ffn_dim // config.embed_dim)
    layers = per_layer + config.depth * row if config.checkpoint_activations else config.depth * per_layer
    activations = samples * layers
    gathered = 4 * (2 * root + 3 * layer) if shards > 1 else 0
    validation = 4 * parameters if shards > 1 else 0
    total = weights + max(gathered + activations, validation)
    return {"weights": weights, "gathered": max(gathered, validation), "activations": activations, "total": total}


def gathered_parts(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of the largest layer that FSDP gathers at once, and of what lies outside of layers."""
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in LAYERS]
    return {"layer": max(layers, default=0), "root": sum(p.numel() for p in model.parameters()) - sum(layers)}


def dry_run(
    start: Start, plan: Plan, device: torch.device, world: int, dtype: str, parallel: str = "ddp"
) -> dict[str, Any]:
    """The facts of a training, without doing it.

    ``memory`` is of one device as asked for; ``memory_fsdp`` the total with FSDP, by number of devices.
    """
    recipe, division = start.recipe, plan.division
    groups = start.groups()
    own = division.own(0, 0)
    at_once = own.stop - own.start
    parameters = sum(p.numel() for p in start.model.parameters())
    images = max(len(e.images) for e in start.examples)
    tokens = max((len(e.token_ids or ()) for e in start.examples), default=0)
    parts = gathered_parts(start.model)
    average = recipe.ema_decay > 0

    def memory(division: Division, shards: int) -> dict[str, int]:
        own = division.own(0, 0)
        return memory_bytes(
            start.config, parameters, (own.stop - own.start) * images, tokens, dtype, average, shards, **parts
        )

    return {
        "task": start.task.name,
        "preset": start.preset,
        "device": str(device),
        "processes": world,
        "parallel": parallel if world > 1 else None,
        "training_samples": len(start.examples),
        "validation_samples": len(start.validation),
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
        "start": start.source["checkpoint"] or "from scratch",
        "not_in_checkpoint": start.source["missing"],
        "left_over_in_checkpoint": start.source["unexpected"],
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
