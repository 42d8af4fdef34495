"""detectron2's checkpointer for our files: safetensors, official BEiT-3 weights, files that hold an argparse.Namespace."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from beit3_bench.backbones.checkpoint import read_checkpoint
from beit3_bench.backbones.detection.plan import NET
from beit3_bench.backbones.detectron2_adapter.backbone import say_what_was_loaded
from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.spatial import SpatialBEiT3, load_spatial


class BEiT3Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that reads what `read_checkpoint` reads; nothing in a file is executed.

    The vision tower of an official BEiT-3 checkpoint is given the detector's names.
    """

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            loaded = super()._torch_load(f) if not f.endswith(".safetensors") else None
        except Exception:  # weights_only refuses a Namespace; what else is wrong is told by the reader below
            loaded = None
        if loaded is None:
            loaded = {"model": read_checkpoint(f).tensors}
        tensors = loaded.get("model", loaded)
        if any(name.removeprefix("module.").startswith("beit3.") for name in tensors):
            return {"model": self._tower(tensors, f)}
        return loaded

    def _tower(self, tensors: dict[str, Any], origin: str) -> dict[str, Any]:
        model = getattr(self.model, "module", self.model)
        net = getattr(getattr(model, "backbone", None), "net", None)
        if not isinstance(net, SpatialBEiT3):
            raise BenchError(f"{origin}: holds BEiT-3 weights, but the model has no BEiT-3 tower at backbone.net")
        say_what_was_loaded(load_spatial(net, tensors, ("beit3.encoder.layer_norm.A.*",), origin=origin), origin)
        return {NET + name: value.clone() for name, value in net.state_dict().items()}
