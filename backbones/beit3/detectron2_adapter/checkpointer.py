"""detectron2's checkpointer for our files: safetensors, official BEiT-3 weights, files that hold an argparse.Namespace."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from beit3_bench.backbones.beit3.detection.plan import NET
from beit3_bench.backbones.beit3.detectron2_adapter.backbone import say_what_was_loaded
from beit3_bench.backbones.beit3.spatial import SpatialBEiT3, load_spatial
from beit3_bench.backbones.checkpoint_layout import bare_name
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.errors import BenchError

PICKLES = (".pkl", ".pickle")


class BEiT3Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that reads what `read_checkpoint` reads; nothing in a file is executed.

    detectron2's own unpickles ``.pkl`` files of its model zoo, and takes ``.pyth`` files as torch's default does: here the
    former are refused and the latter are read as tensors. The vision tower of an official BEiT-3 checkpoint is given the
    detector's names.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        suffix = Path(filename).suffix.lower()
        if suffix in PICKLES:
            raise BenchError(
                f"{filename}: a pickle file, which runs code where it is read; nothing was executed; "
                "store its arrays with safetensors or torch.save and give that file"
            )
        if suffix == ".pyth":  # pycls; detectron2 matches names by their endings
            state = (_plain(filename) or {}).get("model_state")
            tensors = dict(state or read_checkpoint(filename).tensors)
            return {"model": tensors, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        loaded = None if f.endswith(".safetensors") else _plain(f)
        if loaded is None:
            loaded = {"model": read_checkpoint(f).tensors}  # or says what is wrong
            if not f.endswith(".safetensors"):
                log = logging.getLogger(__name__)
                log.warning("%s: holds more than plain values; its tensors are loaded, no state of a training", f)
        tensors = loaded.get("model", loaded)
        if any(bare_name(str(name)).startswith("beit3.") for name in tensors):
            return {"model": self._tower(tensors, f)}
        return loaded

    def _tower(self, tensors: dict[str, Any], origin: str) -> dict[str, Any]:
        model = getattr(self.model, "module", self.model)
        net = getattr(getattr(model, "backbone", None), "net", None)
        if not isinstance(net, SpatialBEiT3):
            raise BenchError(f"{origin}: holds BEiT-3 weights, but the model has no BEiT-3 tower at backbone.net")
        say_what_was_loaded(load_spatial(net, tensors, ("beit3.encoder.layer_norm.A.*",), origin=origin), origin)
        return {NET + name: value.clone() for name, value in net.state_dict().items()}


def _plain(path: str) -> dict[str, Any] | None:
    """The whole content of a file of plain values and tensors (optimizer and iteration included); None for any other."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for what it does not load
        return None
    return content if isinstance(content, dict) else None
