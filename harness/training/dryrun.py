"""What a training would do: devices, batches, steps, parameter groups with their rates, memory."""

from __future__ import annotations

from typing import Any

import torch

from beit3_bench.backbones.config import BEiT3Config
from beit3_bench.harness.training.loop import Plan
from beit3_bench.harness.training.start import Start

STORED_ROWS = 34
"""Rows of width D that one layer keeps per token for the backward pass, where the feed-forward is 4 D wide: two layer
norms, q, k, v, attention, two sub-norms, and three copies of the hidden state with their inputs."""


def memory_bytes(
    config: BEiT3Config, parameters: int, samples: int, text_tokens: int, dtype: str, average: bool
) -> dict[str, int]:
    """Estimated bytes on one device.

    Args:
        samples: forward passes of one image (and one text) at once.

    Returns:
        ``weights`` (float32 weights, gradients, two moments, and the average), ``activations``, ``total``.
    """
    weights = parameters * 4 * (4 + average)
    width = 4 if dtype == "fp32" else 2
    tokens = config.num_patches + 1 + text_tokens
    row = tokens * config.embed_dim * width
    per_layer = row * (STORED_ROWS - 16 + 4 * config.ffn_dim // config.embed_dim)
    layers = per_layer + config.depth * row if config.checkpoint_activations else config.depth * per_layer
    activations = samples * layers
    return {"weights": weights, "activations": activations, "total": weights + activations}


def dry_run(start: Start, plan: Plan, device: torch.device, world: int, dtype: str) -> dict[str, Any]:
    """The facts of a training, without doing it."""
    recipe, division = start.recipe, plan.division
    groups = start.groups()
    own = division.own(0, 0)
    at_once = own.stop - own.start
    parameters = sum(p.numel() for p in start.model.parameters())
    images = max(len(e.images) for e in start.examples)
    tokens = max((len(e.token_ids or ()) for e in start.examples), default=0)
    return {
        "task": start.task.name,
        "preset": start.preset,
        "device": str(device),
        "processes": world,
        "training_samples": len(start.examples),
        "validation_samples": len(start.validation),
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
        "memory": memory_bytes(start.config, parameters, at_once * images, tokens, dtype, recipe.ema_decay > 0),
        "start": start.source["checkpoint"] or "from scratch",
        "not_in_checkpoint": start.source["missing"],
        "left_over_in_checkpoint": start.source["unexpected"],
        "recipe": recipe.to_dict(),
    }


def describe_dry_run(facts: dict[str, Any]) -> str:
    """The facts as lines to read."""
    gib = {k: f"{v / 2**30:.2f} GiB" for k, v in facts["memory"].items()}
    lines = [
        f"{facts['task']}, preset {facts['preset']}, start: {facts['start']}",
        f"{facts['processes']} x {facts['device']}; global batch {facts['global_batch']} = "
        f"{facts['processes']} processes x {facts['samples_at_once']} samples x {facts['accumulate']} micro-batches",
        f"{facts['training_samples']:,} training and {facts['validation_samples']:,} validation samples; "
        f"{facts['steps']:,} steps ({facts['steps_per_epoch']:,} per epoch, {facts['warmup_steps']:,} warm-up)",
        f"{facts['parameters'] / 1e6:.1f} M parameters; memory per device about {gib['total']} "
        f"(weights and optimizer {gib['weights']}, activations {gib['activations']})",
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
    lines.append("recipe: " + " ".join(f"{k}={_plain(v)}" for k, v in facts["recipe"].items()))
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
