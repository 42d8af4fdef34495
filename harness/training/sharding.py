"""Data-parallel or fully sharded (FSDP) training through Accelerate, and whole tensors out of, and into, the shards.

FSDP keeps a share of every weight, gradient and moment per process and gathers one encoder layer at a time (PyTorch's
`fully_shard`, FSDP version 2). What is saved is whole, so that a training goes on with any number of processes, sharded or not.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

PARALLEL = ("ddp", "fsdp")
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_ANNOUNCED = "ACCELERATE_USE_FSDP"


def choose_parallel(asked: str | None) -> str:
    """``"ddp"`` or ``"fsdp"``: what was asked for, or what `accelerate launch --use_fsdp` announces."""
    if asked is not None:
        return asked
    return "fsdp" if os.environ.get(_ANNOUNCED, "").lower() == "true" else "ddp"


def make_accelerator(
    device: torch.device, dtype: str, sharded: bool, model: nn.Module, layers: Sequence[str] = ()
) -> Accelerator:
    """Accelerate's engine for this training.

    Args:
        sharded: FSDP; needs several processes.
        model: whose modules of the classes ``layers`` are gathered one at a time.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()  # an earlier training of this Python process may have had another precision
    plugin = _plugin(model, layers) if sharded else None
    announced = os.environ.pop(_ANNOUNCED, None)  # Accelerate would shard although --parallel ddp asks for the contrary
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=PRECISION[dtype],
            fsdp_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    finally:
        os.environ.pop(_ANNOUNCED, None)
        if announced is not None:
            os.environ[_ANNOUNCED] = announced
    if sharded and device.type == "cpu":
        # Accelerate keeps FSDP for accelerators; `fully_shard` itself works over gloo.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _plugin(model: nn.Module, layers: Sequence[str]) -> Any:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    present = {type(module).__name__ for module in model.modules()}
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        cpu_offload=False,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[name for name in layers if name in present],
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,  # the recipe's `checkpoint_activations` does it
        # Weights stay float32 and autocast rounds them where they are used, exactly as without shards.
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def whole(value: Any, keep: bool = True, device: torch.device | None = None) -> Any:
    """Nested values with every sharded tensor gathered. All processes call it with the same structure.

    Args:
        keep: whether this process wants the values; None stands in place of a tensor otherwise.
        device: where tensors are kept; None = where they are.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.to(device) if keep else None
    if isinstance(value, Tensor):
        return value.to(device) if keep else None
    if isinstance(value, Mapping):
        return {key: whole(item, keep, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item, keep, device) for item in value)
    return value


def like(full: Tensor, sharded: Tensor) -> Tensor:
    """A whole tensor cut as another one is; itself where that is not sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(sharded, DTensor):
        return full
    full = full.to(device=sharded.device, dtype=sharded.dtype).reshape(sharded.shape)
    return distribute_tensor(full, sharded.device_mesh, sharded.placements)


class Shards:
    """What a network was before it was sharded, and the way back.

    Made before `Accelerator.prepare`: parameters without dimension (``logit_scale``), which FSDP cannot cut, become vectors of
    length one in ``model``; everything that leaves through this class has the original shapes.

    Args:
        model: the whole network, on its device; its parameters are those of the optimizer to be made.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.shapes = {name: value.shape for name, value in model.state_dict().items()}
        self.plain = copy.deepcopy(model)
        for module in self.plain.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim == 0:
                    module._parameters[name] = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)

    def copy_of_model(self) -> nn.Module:
        """The network again, with shards of its own (for averaged weights); call it behind `Accelerator.prepare`.

        It holds weights and is not run.
        """
        held = copy.deepcopy(self.plain).requires_grad_(False)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for prefix, module in held.named_modules():
            for name in list(module._parameters):
                if module._parameters[name] is not None:
                    source = parameters[f"{prefix}.{name}" if prefix else name]
                    module._parameters[name] = nn.Parameter(source.detach().clone(), requires_grad=False)
        return held

    def tensors(self, model: nn.Module, keep: bool = True, device: torch.device | None = None) -> dict[str, Tensor]:
        """Whole state dict in the original shapes, empty where it is not kept; collective."""
        tensors = whole(dict(model.state_dict()), keep, device)
        return {name: value.reshape(self.shapes[name]) for name, value in tensors.items()} if keep else {}

    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Cut whole tensors, which all processes hold, into the shards of ``model``; collective."""
        own = model.state_dict()
        model.load_state_dict({name: like(tensors[name].reshape(own[name].shape), own[name]) for name in own})

    def replica(self, model: nn.Module, device: torch.device | None = None, keep: bool = True) -> nn.Module:
        """A network with all of the weights of ``model`` (for validation and for a checkpoint); collective.

        One network serves all calls; where ``keep`` is false it stays without values.
        """
        tensors = self.tensors(model, keep, device)
        if keep:
            self.plain.load_state_dict(tensors, assign=True)
        return self.plain

    def forget(self) -> None:
        """Free the replica's weights."""
        for module in self.plain.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    def optimizer_state(self, optimizer: Any, names: list[str], keep: bool) -> dict[str, Any]:
        """The optimizer's whole state in the original shapes; collective.

        names: of the parameters, in the order of its groups.
        """
        state = whole(optimizer.state_dict(), keep, torch.device("cpu"))
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor) and key != "step":
                    values[key] = value.reshape(self.shapes[names[index]])
        return state

    def load_optimizer(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Cut a whole optimizer state into shards; collective."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments = {
            index: {
                key: like(value, parameters[index]) if isinstance(value, Tensor) and key != "step" else value
                for key, value in values.items()
            }
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": moments})
