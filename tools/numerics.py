"""Make what `beit3-bench doctor --numerics` compares with, backbones/beit3/numerics/, from the golden tensors.

    python tools/numerics.py [GOLDEN_FOLDER]          # default: tests/golden

Official tensors are copied; stages between two of them are computed by this project's network in float64. Tolerances of float32 are ten
times the distance from float64 (tests/golden/beit3/README.md, section 2), relative errors of half precision are measured here, on a CPU.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beit3_bench.backbones.beit3 import numerics as beit3
from beit3_bench.backbones.numerics import (
    OFFICIAL,
    OWN,
    STAGES,
    TENSORS,
    expected_name,
    largest_difference,
    relative_difference,
)
from beit3_bench.backbones.precision import DTYPES
from beit3_bench.backbones.preprocess import decoder_facts

ROOT = Path(__file__).resolve().parents[1]
FLOOR_FACTOR, LEAST_TOLERANCE = 10, 1e-6
"""Of the tolerances, as tests/golden/beit3/README.md says."""
SCORES_TOLERANCE = 5e-5
"""Of sums of log-probabilities, for which the goldens have no noise floor; as in tests/backbones/beit3/test_parity.py."""
IMAGES = [0, 1, 2, 3, 11, 10]
"""Rows of the goldens' images: the first four of every head, and the right ones of two pairs of NLVR2."""
EXACT = ("scores of captions", "words of captions")
"""Stages that half precision may change at will."""


@dataclass(frozen=True)
class Golden:
    """tests/golden/beit3."""

    folder: Path

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def document(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


CLASSES = {
    "retrieval": "retrieval",
    "vqav2": "vqav2",
    "nlvr2": "nlvr2",
    "imagenet": "imagenet-linear",
    "captioning": "coco-caption",
}
"""The goldens' name of a class -> ours."""
Cut = Callable[[Tensor], Tensor]


def whole(x: Tensor) -> Tensor:
    return x


def rows(*numbers: int) -> Cut:
    return lambda x: x[list(numbers)]


def first_tokens(count: int | list[int], *tokens: int) -> Cut:
    """Of some examples the given tokens: what a last layer computes where only these are read."""
    return lambda x: (x[:count] if isinstance(count, int) else x[count])[:, list(tokens)]


FOUR, BOTH = rows(0, 1, 2, 3), (0, 17)
"""Examples; the first tokens of image and text behind 16 patches."""
TRACE = "trace.fused2"
OFFICIAL_STAGES: dict[tuple[str, str], tuple[str, Cut]] = {
    ("encoder", "patches"): (f"{TRACE}.token_embedding_before_positions", lambda x: x[:, :17]),
    ("encoder", "words"): (f"{TRACE}.token_embedding_before_positions", lambda x: x[:, 17:]),
    ("encoder", "with positions"): (f"{TRACE}.layer_0_in", whole),
    **{("encoder", f"layer {n + 1}"): (f"{TRACE}.layer_{n}_out", whole) for n in range(3)},
    ("encoder", "final norm"): (f"{TRACE}.encoder_out", whole),
    ("retrieval of images", "final norm"): ("backbone.vision_only", first_tokens(4, 0)),
    ("retrieval of images", "embedding"): ("retrieval.vision_cls", FOUR),
    ("retrieval of texts", "final norm"): ("backbone.language_only", first_tokens(4, 0)),
    ("retrieval of texts", "embedding"): ("retrieval.language_cls", FOUR),
    ("vqav2", "layer 3"): ("vqav2.encoder_out", first_tokens(4, *BOTH)),
    ("vqav2", "pooled"): ("vqav2.pooled", FOUR),
    ("vqav2", "logits"): ("vqav2.logits", FOUR),
    ("nlvr2", "final norm"): ("nlvr2.encoder_out", first_tokens([0, 1, 5, 6], *BOTH)),
    ("nlvr2", "logits"): ("nlvr2.logits", rows(0, 1)),
    ("imagenet-linear", "layer 3"): ("imagenet.encoder_out", FOUR),
    ("imagenet-linear", "logits"): ("imagenet.logits", FOUR),
    ("coco-caption", "final norm"): ("captioning.encoder_out", FOUR),
    ("coco-caption", "logits"): ("captioning.masked_logits", whole),
    ("coco-caption, decoding", "logits of each word"): ("captioning.incremental_mask_logits", whole),
}
"""(head, stage) -> tensor of outputs.safetensors, and which part of it."""


def inputs(golden: Golden) -> dict[str, Tensor]:
    """Images and texts that the ways through the heads take."""
    given = golden.tensors("inputs")
    wanted = [f"{name}.{kind}" for name in ("retrieval", "vqav2", "nlvr2") for kind in ("tokens", "padding_mask")]
    wanted += [f"captioning.{kind}" for kind in ("tokens", "masked_tokens", "padding_mask", "language_masked_pos")]
    return {"images": given["images"][IMAGES], **{name: given[name][:4] for name in wanted}}


def weights(golden: Golden) -> dict[str, Tensor]:
    """``CLASS/OFFICIAL NAME``; what all classes share as ``backbone/...``."""
    heads = {
        f"{ours}/{name}": x
        for theirs, ours in CLASSES.items()
        for name, x in golden.tensors(f"weights_{theirs}").items()
    }
    return {**{f"backbone/{name}": x for name, x in golden.tensors("weights_backbone").items()}, **heads}


def config(golden: Golden) -> dict[str, Any]:
    """What `beit3.build` takes."""
    said = golden.document("manifest")["config"]
    network = {
        "image_size": said["img_size"],
        "patch_size": said["patch_size"],
        "embed_dim": said["embed_dim"],
        "num_heads": said["heads"],
        "ffn_dim": said["ffn_dim"],
        "depth": said["layers"],
        "vocab_size": said["vocab_size"],
        "mask_token_id": said["tokens"]["mask"],
    }
    return {"network": network, "num_classes": {CLASSES[name]: n for name, n in said["num_classes"].items()}}


def official_stage(golden: Golden, head: str, stage: str, given: Mapping[str, Tensor]) -> tuple[Tensor, float] | None:
    """What the official code computed, and its tolerance; None where it was not looked at there."""
    if head == "coco-caption, decoding" and stage in EXACT:
        case = golden.document("beam")[1]
        assert {
            "num_beams": case["num_beams"],
            "max_length": case["max_len"],
            "length_penalty": case["length_penalty"],
        } == beit3.DECODING
        if stage == "words of captions":
            return golden.tensors("beam")[case["tensor"]][:4], 0.0
        return torch.tensor(case["normalised_score"][:4], dtype=torch.float64), SCORES_TOLERANCE
    if (head, stage) not in OFFICIAL_STAGES:
        return None
    name, cut = OFFICIAL_STAGES[head, stage]
    expected = cut(golden.tensors("outputs")[name])
    if (head, stage) == ("coco-caption", "logits"):  # of the masked words, row by row
        expected = expected[: int(given["captioning.language_masked_pos"].sum())]
    floor = golden.document("manifest")["fp32_noise_floor"][name]["max_abs"]
    return expected.clone(), max(FLOOR_FACTOR * floor, LEAST_TOLERANCE)


def heads(
    golden: Golden, state: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The lists of stages, and the expected tensors."""
    listed: dict[str, Any] = {}
    expected: dict[str, Tensor] = {}
    for head, way in beit3.WAYS.items():
        model = beit3.build(way.task, config(golden), state)
        single = in_dtype("fp32", model, way, given)
        halves = {dtype: in_dtype(dtype, model, way, given) for dtype in DTYPES if dtype != "fp32"}
        double = way.stages(model.double(), {n: x.double() if x.is_floating_point() else x for n, x in given.items()})
        listed[head] = []
        for stage, ours in single.items():
            official = official_stage(golden, head, stage, given)
            own_floor = 0.0 if official else largest_difference(ours, double[stage])
            tensor, tolerance = official or (double[stage].float(), max(FLOOR_FACTOR * own_floor, LEAST_TOLERANCE))
            relative = {} if stage in EXACT else {d: relative_difference(x[stage], tensor) for d, x in halves.items()}
            expected[expected_name(head, stage)] = tensor.contiguous()
            listed[head].append(
                {
                    "stage": stage,
                    "reference": OFFICIAL if official else OWN,
                    "tolerance": float(f"{tolerance:.3g}"),
                    "relative": {dtype: float(f"{error:.2g}") for dtype, error in relative.items()},
                }
            )
    return listed, expected


def in_dtype(dtype: str, model: nn.Module, way: beit3.Way, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode(), torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "fp32"):
        return {name: x.clone() for name, x in way.stages(model, given).items()}


def pictures(golden: Golden) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A picture as files, the pixels that Pillow decodes from them, and what the official transforms make of these."""
    given = golden.tensors("data_side")
    pixels = given["preprocess.image_uint8_hwc"]
    files = {"png": saved(pixels, "PNG", optimize=True), "jpeg": saved(pixels, "JPEG", quality=90)}
    decoded = beit3.picture_stages(files)
    expected = {
        "PNG, decoded": pixels.permute(2, 0, 1).contiguous(),
        "JPEG, decoded": decoded["JPEG, decoded"],
        "resized": given["preprocess.vl_32"],
        "resized and cropped": given["preprocess.imagenet_40"],
    }
    # Resampling, and the last step of JPEG, may round another way from version to version: one grey level.
    level = {
        "PNG, decoded": 0.0,
        "JPEG, decoded": 1.0,
        "resized": 1.001 / 255 / 0.5,
        "resized and cropped": 1.001 / 255 / 0.224,
    }
    references = {"JPEG, decoded": f"Pillow {decoder_facts()['pillow']}"}
    listed = [
        {"stage": s, "reference": references.get(s, OFFICIAL), "tolerance": float(f"{level[s]:.4g}"), "relative": {}}
        for s in expected
    ]
    named = {expected_name(beit3.PICTURES, stage): x for stage, x in expected.items()}
    return listed, {**named, **{f"pictures/{name}": x for name, x in files.items()}}


def saved(pixels: Tensor, form: str, **settings: Any) -> Tensor:
    """uint8 (h, w, 3) -> the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, form, **settings)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def make(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The document of `STAGES`, and the bytes of `TENSORS`, from a folder that holds ``beit3/``."""
    golden = Golden(folder / "beit3")
    state, given = weights(golden), inputs(golden)
    listed, expected = heads(golden, state, given)
    pictures_listed, picture_tensors = pictures(golden)
    tensors = {f"weights/{name}": x for name, x in state.items()} | {f"inputs/{name}": x for name, x in given.items()}
    content = save({name: x.contiguous() for name, x in sorted((tensors | expected | picture_tensors).items())})
    document = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "made_with": {
            "torch": torch.__version__.partition("+")[0],
            "processor": torch.backends.cpu.get_cpu_capability(),
        },
        "config": config(golden),
        "heads": {beit3.PICTURES: pictures_listed, **listed},
    }
    return document, content


def main() -> None:
    document, content = make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests" / "golden")
    target = ROOT / "backbones" / "beit3" / "numerics"
    (target / TENSORS).write_bytes(content)
    (target / STAGES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    count = sum(map(len, document["heads"].values()))
    print(f"{target}: {count} stages, {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
