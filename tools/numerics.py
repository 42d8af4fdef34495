"""Make what `beit3-bench doctor --numerics` compares with from the golden tensors: backbones/FAMILY/numerics/.

    python tools/numerics.py [GOLDEN_FOLDER]          # default: tests/golden

Official tensors are copied; stages between two of them are computed by this project's network in float64. Tolerances of float32 are ten
times the distance from float64 (tests/golden/beit3/README.md, section 2), relative errors of half precision are measured here, on a CPU.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beit3_bench.backbones.albef import numerics as albef
from beit3_bench.backbones.beit3 import numerics as beit3
from beit3_bench.backbones.blip import numerics as blip
from beit3_bench.backbones.fusion.files import MOMENTUM, PRETRAINING
from beit3_bench.backbones.numerics import (
    OFFICIAL,
    OWN,
    STAGES,
    TENSORS,
    Way,
    expected_name,
    largest_difference,
    relative_difference,
)
from beit3_bench.backbones.precision import DTYPES
from beit3_bench.backbones.preprocess import decoder_facts
from beit3_bench.backbones.vlmo import numerics as vlmo

ROOT = Path(__file__).resolve().parents[1]
FLOOR_FACTOR, LEAST_TOLERANCE = 10, 1e-6
"""Of the tolerances, as the goldens' READMEs say."""
SCORES_TOLERANCE = 5e-5
"""Of sums of log-probabilities, for which the goldens have no noise floor; as in tests/backbones/beit3/test_parity.py."""
EXACT = ("scores of captions", "words of captions")
"""Stages that half precision may change at will."""

Cut = Callable[[Tensor], Tensor]
Official = dict[tuple[str, str], tuple[str, Cut]]
"""(head, stage) -> tensor of outputs.safetensors, and which part of it."""


@dataclass(frozen=True)
class Golden:
    """A folder of goldens. floor: of a document of float32's noise, the key of the distance from float64."""

    folder: Path

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def document(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return self.tensors("outputs")

    def floor(self, name: str) -> float:
        """Distance of the official float32 from float64."""
        manifest = self.document("manifest")
        if "fp32_noise_floor" in manifest:
            return manifest["fp32_noise_floor"][name]["max_abs"]
        return manifest["outputs"][name]["fp32_noise_floor"]["max_abs_vs_float64"]


@dataclass(frozen=True)
class Source:
    """What a family's files are made of.

    room: its module ``numerics``.  weights: ``TASK/OFFICIAL NAME``.  inputs: what its ways take.  config: what its `build` takes.
    official: by name and part of an output.  given: (head, stage) -> an official value that is no output, with its tolerance.
    """

    room: ModuleType
    golden: Golden
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    config: Mapping[str, Any]
    official: Official
    given: Mapping[tuple[str, str], tuple[Tensor, float]] = field(default_factory=dict)

    def official_stage(self, head: str, stage: str) -> tuple[Tensor, float] | None:
        """What the official code computed, and its tolerance; None where it was not looked at there."""
        if (head, stage) in self.given:
            return self.given[head, stage]
        if (head, stage) not in self.official:
            return None
        name, cut = self.official[head, stage]
        return cut(self.golden.outputs[name]).clone(), max(FLOOR_FACTOR * self.golden.floor(name), LEAST_TOLERANCE)


def whole(x: Tensor) -> Tensor:
    return x


def first(count: int) -> Cut:
    return lambda x: x[:count]


def tokens_of(rows: list[int], tokens: tuple[int, ...]) -> Cut:
    """Of some examples the given tokens: what a last layer computes where only these are read."""
    return lambda x: x[rows][:, list(tokens)]


# ---- BEiT-3 -------------------------------------------------------------------------------------------------------------

CLASSES = {
    "retrieval": "retrieval",
    "vqav2": "vqav2",
    "nlvr2": "nlvr2",
    "imagenet": "imagenet-linear",
    "captioning": "coco-caption",
}
"""The goldens' name of a class -> ours."""
IMAGES = [0, 1, 2, 3, 11, 10]
"""Rows of the goldens' images: the first four of every head, and the right ones of two pairs of NLVR2."""
FOUR, BOTH = [0, 1, 2, 3], (0, 17)
"""Examples; the first tokens of image and text behind 16 patches."""
TRACE = "trace.fused2"
BEIT3: Official = {
    ("encoder", "patches"): (f"{TRACE}.token_embedding_before_positions", lambda x: x[:, :17]),
    ("encoder", "words"): (f"{TRACE}.token_embedding_before_positions", lambda x: x[:, 17:]),
    ("encoder", "with positions"): (f"{TRACE}.layer_0_in", whole),
    **{("encoder", f"layer {n + 1}"): (f"{TRACE}.layer_{n}_out", whole) for n in range(3)},
    ("encoder", "final norm"): (f"{TRACE}.encoder_out", whole),
    ("retrieval of images", "final norm"): ("backbone.vision_only", tokens_of(FOUR, (0,))),
    ("retrieval of images", "embedding"): ("retrieval.vision_cls", first(4)),
    ("retrieval of texts", "final norm"): ("backbone.language_only", tokens_of(FOUR, (0,))),
    ("retrieval of texts", "embedding"): ("retrieval.language_cls", first(4)),
    ("vqav2", "layer 3"): ("vqav2.encoder_out", tokens_of(FOUR, BOTH)),
    ("vqav2", "pooled"): ("vqav2.pooled", first(4)),
    ("vqav2", "logits"): ("vqav2.logits", first(4)),
    ("nlvr2", "final norm"): ("nlvr2.encoder_out", tokens_of([0, 1, 5, 6], BOTH)),
    ("nlvr2", "logits"): ("nlvr2.logits", first(2)),
    ("imagenet-linear", "layer 3"): ("imagenet.encoder_out", first(4)),
    ("imagenet-linear", "logits"): ("imagenet.logits", first(4)),
    ("coco-caption", "final norm"): ("captioning.encoder_out", first(4)),
    ("coco-caption, decoding", "logits of each word"): ("captioning.incremental_mask_logits", whole),
}


def beit3_source(golden: Golden) -> Source:
    given = golden.tensors("inputs")
    names = [f"{name}.{kind}" for name in ("retrieval", "vqav2", "nlvr2") for kind in ("tokens", "padding_mask")]
    names += [f"captioning.{kind}" for kind in ("tokens", "masked_tokens", "padding_mask", "language_masked_pos")]
    inputs = {"images": given["images"][IMAGES], **{name: given[name][:4] for name in names}}
    masked = int(inputs["captioning.language_masked_pos"].sum())
    weights = {f"backbone/{name}": x for name, x in golden.tensors("weights_backbone").items()}
    for theirs, ours in CLASSES.items():
        weights |= {f"{ours}/{name}": x for name, x in golden.tensors(f"weights_{theirs}").items()}
    case = golden.document("beam")[1]
    assert {
        n: case[k] for n, k in zip(beit3.DECODING, ("num_beams", "max_len", "length_penalty"), strict=True)
    } == beit3.DECODING
    scores = torch.tensor(case["normalised_score"][:4], dtype=torch.float64)
    captions = "coco-caption, decoding"
    return Source(
        beit3,
        golden,
        weights,
        inputs,
        _beit3_config(golden.document("manifest")["config"]),
        {**BEIT3, ("coco-caption", "logits"): ("captioning.masked_logits", first(masked))},
        {
            (captions, "scores of captions"): (scores, SCORES_TOLERANCE),
            (captions, "words of captions"): (golden.tensors("beam")[case["tensor"]][:4], 0.0),
        },
    )


def _beit3_config(said: Mapping[str, Any]) -> dict[str, Any]:
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


# ---- its peers ----------------------------------------------------------------------------------------------------------

RETRIEVAL: Official = {
    ("retrieval of images", "embedding"): ("retrieval.image_embeds", first(4)),
    ("retrieval of texts", "embedding"): ("retrieval.text_embeds", first(4)),
    ("re-ranking", "match scores"): ("retrieval.itm_logits", lambda x: x[:, 1]),
}


def evaluated(golden: Golden, name: str, task: str) -> dict[str, Tensor]:
    """Weights without those of training."""
    aside = (*MOMENTUM, *PRETRAINING)
    weights = golden.tensors(f"weights_{name}").items()
    return {f"{task}/{n}": x for n, x in weights if not any(fnmatch.fnmatchcase(n, pattern) for pattern in aside)}


def retrieval_inputs(golden: Golden) -> dict[str, Tensor]:
    given = golden.tensors("inputs")
    return {name: given[name][:4] for name in ("retrieval.images", "retrieval.text_ids", "retrieval.text_atts")}


def attention_heads(golden: Golden, name: str, text: str) -> dict[str, int]:
    said = golden.document("manifest")["config"]["tasks"][name]
    return {"num_heads": said["vision_heads"], "text_heads": said[text]["num_attention_heads"]}


def albef_source(golden: Golden) -> Source:
    config = {"heads": {"retrieval": attention_heads(golden, "retrieval", "bert_config")}}
    return Source(
        albef, golden, evaluated(golden, "retrieval", "retrieval"), retrieval_inputs(golden), config, RETRIEVAL
    )


def blip_source(golden: Golden) -> Source:
    given, pieces = golden.tensors("inputs"), (golden.folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    inputs = {**retrieval_inputs(golden), "caption.images": given["caption.images"][:4]}
    inputs |= {name: given[name] for name in ("caption.teacher_ids", "caption.teacher_atts")}
    real = inputs["caption.teacher_atts"].bool()
    words = golden.outputs["caption.coco.ids"][:4]
    assert golden.document("results")["caption_cases"]["coco"] == blip.DECODING
    heads = {
        task: attention_heads(golden, name, "med_config")
        for task, name in (("retrieval", "retrieval"), ("coco-caption", "caption"))
    }
    prompt = words[0, :4].tolist()  # [DEC] a picture of
    assert (words[:, :4] == words[0, :4]).all()
    return Source(
        blip,
        golden,
        {**evaluated(golden, "retrieval", "retrieval"), **evaluated(golden, "caption", "coco-caption")},
        inputs,
        {"heads": heads, "prompt": prompt, "end": pieces.index("[SEP]")},
        {
            **RETRIEVAL,
            ("coco-caption", "image: final norm"): ("caption.image_feats", whole),
            ("coco-caption", "logits"): ("caption.teacher_logits", lambda x: x[real]),
        },
        {("coco-caption, decoding", "words of captions"): (words.long(), 0.0)},
    )


def vlmo_source(golden: Golden, architecture: str = "abspos") -> Source:
    given = golden.tensors("inputs")
    inputs = {"images": given[f"{architecture}.images"][[0, 1, 2, 3, 6, 7]]}
    inputs |= {name: given[f"{architecture}.{name}"][:4] for name in ("text_ids", "text_masks")}
    weights = {f"backbone/{name}": x for name, x in golden.tensors(f"{architecture}.weights_backbone").items()}
    for theirs, ours in (("irtr", "retrieval"), ("vqa", "vqav2"), ("nlvr2", "nlvr2")):
        weights |= {f"{ours}/{name}": x for name, x in golden.tensors(f"{architecture}.weights_{theirs}").items()}
    said = golden.document("manifest")["config"]["archs"][architecture]
    settings = {"num_heads": said["num_heads"], "max_text_length": said["max_text_len"]}
    official: Official = {
        ("retrieval of images", "embedding"): (f"{architecture}.irtr.image_cls_feats", first(4)),
        ("retrieval of texts", "embedding"): (f"{architecture}.irtr.text_cls_feats", first(4)),
        ("vqav2", "logits"): (f"{architecture}.vqa.logits", first(4)),
        ("nlvr2", "logits"): (f"{architecture}.nlvr2.logits", first(2)),
    }
    config = {"settings": settings, "outputs": {"vqav2": said["num_answers"], "nlvr2": 2}}
    return Source(vlmo, golden, weights, inputs, config, official)


# ---- the files ----------------------------------------------------------------------------------------------------------


def heads(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The lists of stages, and the expected tensors."""
    listed: dict[str, Any] = {}
    expected: dict[str, Tensor] = {}
    for head, way in source.room.WAYS.items():
        model = source.room.build(way.task, source.config, source.weights)
        single = in_dtype("fp32", model, way, source.inputs)
        halves = {dtype: in_dtype(dtype, model, way, source.inputs) for dtype in DTYPES if dtype != "fp32"}
        exactly = {name: x.double() if x.is_floating_point() else x for name, x in source.inputs.items()}
        double = in_dtype("fp32", model.double(), way, exactly)
        listed[head] = []
        for stage, ours in single.items():
            official = source.official_stage(head, stage)
            floor = 0.0 if official else largest_difference(ours, double[stage])
            tensor, tolerance = official or (double[stage].float(), max(FLOOR_FACTOR * floor, LEAST_TOLERANCE))
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


def in_dtype(dtype: str, model: nn.Module, way: Way, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode(), torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "fp32"):
        return {name: x.clone() for name, x in way.stages(model, given).items()}


def pictures(golden: Golden) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A picture as files, the pixels that Pillow decodes from them, and what the official transforms make of these."""
    given = golden.tensors("data_side")
    pixels = given["preprocess.image_uint8_hwc"]
    files = {"png": saved(pixels, "PNG", optimize=True), "jpeg": saved(pixels, "JPEG", quality=90)}
    # Resampling, and the last step of JPEG, may round another way from version to version: one grey level.
    level = 1.001 / 255
    stages = {
        "PNG, decoded": (pixels.permute(2, 0, 1), OFFICIAL, 0.0),
        "JPEG, decoded": (beit3.picture_stages(files)["JPEG, decoded"], f"Pillow {decoder_facts()['pillow']}", 1.0),
        "resized": (given["preprocess.vl_32"], OFFICIAL, level / 0.5),
        "resized and cropped": (given["preprocess.imagenet_40"], OFFICIAL, level / 0.224),
    }
    listed = [
        {"stage": stage, "reference": reference, "tolerance": float(f"{tolerance:.4g}"), "relative": {}}
        for stage, (_, reference, tolerance) in stages.items()
    ]
    expected = {expected_name(beit3.PICTURES, stage): x for stage, (x, _, _) in stages.items()}
    return listed, {**expected, **{f"pictures/{name}": x for name, x in files.items()}}


def saved(pixels: Tensor, form: str, **settings: Any) -> Tensor:
    """uint8 (h, w, 3) -> the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, form, **settings)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def make(source: Source) -> tuple[dict[str, Any], bytes]:
    """The document of `STAGES`, and the bytes of `TENSORS`."""
    listed, tensors = heads(source)
    if source.room is beit3:
        listed_pictures, more = pictures(source.golden)
        listed, tensors = {beit3.PICTURES: listed_pictures, **listed}, tensors | more
    tensors |= {f"weights/{name}": x for name, x in source.weights.items()}
    tensors |= {f"inputs/{name}": x for name, x in source.inputs.items()}
    content = save({name: x.contiguous() for name, x in sorted(tensors.items())})
    document = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "made_with": {
            "torch": torch.__version__.partition("+")[0],
            "processor": torch.backends.cpu.get_cpu_capability(),
        },
        "config": source.config,
        "heads": listed,
    }
    return document, content


def sources(folder: Path) -> dict[str, Source]:
    """Family -> its source, from the folder of all goldens."""
    peers = folder / "peers"
    return {
        "beit3": beit3_source(Golden(folder / "beit3")),
        "vlmo": vlmo_source(Golden(peers / "vlmo")),
        "albef": albef_source(Golden(peers / "albef")),
        "blip": blip_source(Golden(peers / "blip")),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests" / "golden"
    for family, source in sources(folder).items():
        document, content = make(source)
        target = ROOT / "backbones" / family / "numerics"
        (target / TENSORS).write_bytes(content)
        (target / STAGES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{target}: {sum(map(len, document['heads'].values()))} stages, {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
