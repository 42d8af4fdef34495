"""`doctor --numerics`: fits here, names the stage where a network differs, and says in a line what cannot be looked at."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import beit3_golden as golden
import numpy as np
import pytest
import torch
from goldens import COMMITTED
from safetensors.torch import load, load_file, save
from torch import Tensor

from beit3_bench.backbones import numerics, precision, preprocess
from beit3_bench.backbones.albef import numerics as albef
from beit3_bench.backbones.beit3 import numerics as beit3
from beit3_bench.backbones.blip import numerics as blip
from beit3_bench.backbones.vlmo import numerics as vlmo
from beit3_bench.harness.cli import main

ROOT = Path(__file__).parents[3]
ROOMS = {"beit3": beit3, "vlmo": vlmo, "albef": albef, "blip": blip}
OUTPUTS = ("logits", "embedding", "match scores", "logits of each word")


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``doctor --numerics``."""
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--numerics", "--device", "cpu", *words])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.fixture(params=["beit3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a family ships, read in its place."""
    room = ROOMS[request.param]
    for name in (numerics.STAGES, numerics.TENSORS):
        shutil.copy(Path(str(room.FOLDER)) / name, tmp_path / name)
    monkeypatch.setattr(room, "FOLDER", tmp_path)
    return tmp_path


def change(folder: Path, name: str, edit: Callable[[Tensor], None]) -> None:
    """Edit one embedded tensor, and let the list of stages vouch for the new file."""
    tensors = load_file(folder / numerics.TENSORS)
    edit(tensors[name])
    content = save(tensors)
    (folder / numerics.TENSORS).write_bytes(content)
    document = json.loads((folder / numerics.STAGES).read_text())
    document["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / numerics.STAGES).write_text(json.dumps(document))


def move(index: int, by: float) -> Callable[[Tensor], None]:
    """One number of a tensor moves."""
    return lambda x: x.view(-1)[index].add_(by)


# ---- it fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.isa
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_this_machine_computes_what_the_official_code_computed(capsys, dtype):
    code, out, _ = doctor(capsys, "--dtype", dtype, "--json")
    report = json.loads(out)
    wrong = [(s["head"], s["stage"], s["difference"], s["most"]) for s in report["stages"] if not s["fits"]]
    assert wrong == []
    assert (code, report["fits"], report["first"]) == (0, True, None)
    compared = {(s["family"], s["head"]) for s in report["stages"]}
    known = {(family, head) for family, room in ROOMS.items() for head in room.WAYS}
    words_alone = ("blip", "coco-caption, decoding")  # which half precision may change
    assert compared == known | {("beit3", beit3.PICTURES)} if dtype == "fp32" else known - {words_alone}
    ends = {
        (s["family"], s["head"]) for s in report["stages"] if s["reference"] == "official" and s["stage"] in OUTPUTS
    }
    assert ends >= known - {("beit3", "encoder"), words_alone}
    if dtype != "fp32":  # else a run in half precision that rounds nothing would fit, too
        assert sum(s["least"] > 0 for s in report["stages"]) > 0.8 * len(report["stages"])


def test_the_table_has_every_stage_and_the_verdict_comes_last(capsys):
    code, out, err = doctor(capsys)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[-1] == "all 245 stages fit: fp32, bf16 on cpu"
    layers = [line for line in lines if line.startswith("beit3   nlvr2 ") and " layer " in line]
    assert len(layers) == 2 * golden.CONFIG.depth
    assert all(line.endswith("fits") for line in layers)
    assert any(line.startswith("torch") and torch.__version__ in line for line in lines)


def test_every_beit3_head_that_the_official_code_has_ends_in_an_official_tensor():
    embedded = numerics.read_embedded(beit3.FOLDER)
    assert all(embedded.stages[head][-1].reference == numerics.OFFICIAL for head in beit3.WAYS)
    encoder = [stage.reference for stage in embedded.stages["encoder"]]
    assert encoder == [numerics.OFFICIAL] * (3 + golden.CONFIG.depth + 1)
    assert {way.task for way in beit3.WAYS.values()} == set(golden.HEADS.values())


# ---- it differs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index", "where"),
    [
        ("backbone/beit3.vision_embed.proj.bias", 5, "patches of encoder"),
        ("backbone/beit3.encoder.embed_positions.B.weight", 2 * 48 + 7, "with positions of encoder"),
        ("backbone/beit3.encoder.layers.0.self_attn.q_proj.B.weight", 100, "layer 1 of encoder"),
        ("backbone/beit3.encoder.layers.1.ffn.A.fc1.weight", 1000, "layer 2 of encoder"),
        ("backbone/beit3.encoder.layers.2.final_layer_norm.B.weight", 3, "layer 3 of encoder"),
        ("backbone/beit3.encoder.layer_norm.A.bias", 0, "final norm of encoder"),
        ("retrieval/vision_head.weight", 50, "embedding of retrieval of images"),
        ("retrieval/language_head.weight", 50, "embedding of retrieval of texts"),
        ("vqav2/pooler.dense.bias", 1, "pooled of vqav2"),
        ("vqav2/head.3.bias", 4, "logits of vqav2"),
        ("nlvr2/head.dense2.weight", 9, "logits of nlvr2"),
        ("imagenet-linear/fc_norm.weight", 9, "logits of imagenet-linear"),
        ("coco-caption/mlm_head.bias", 40, "logits of coco-caption"),
    ],
)
def test_one_changed_number_is_told_with_the_first_stage_that_it_moves(folder, capsys, name, index, where):
    change(folder, f"weights/{name}", move(index, 0.05))
    code, out, _ = doctor(capsys, "--dtype", "fp32")
    assert code == 1
    assert f"diverges first at {where} (beit3, fp32): " in out.splitlines()[-1]
    assert ", tolerance " in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "name", "where"),
    [
        ("vlmo", "backbone/transformer.blocks.1.mlp_imag.fc2.bias", "layer 2 of retrieval of images (vlmo, fp32)"),
        ("vlmo", "nlvr2/nlvr2_classifier.3.bias", "logits of nlvr2 (vlmo, fp32)"),
        ("albef", "retrieval/itm_head.bias", "match scores of re-ranking (albef, fp32)"),
        (
            "albef",
            "retrieval/text_encoder.encoder.layer.1.output.dense.bias",
            "layer 2 of retrieval of texts (albef, fp32)",
        ),
        (
            "blip",
            "coco-caption/text_decoder.cls.predictions.transform.dense.bias",
            "logits of coco-caption (blip, fp32)",
        ),
    ],
    indirect=["folder"],
)
def test_a_changed_weight_of_another_family_is_told(folder, capsys, name, where):
    change(folder, f"weights/{name}", lambda x: x.add_(torch.linspace(0.1, 0.3, x.numel())))
    code, out, _ = doctor(capsys, "--dtype", "fp32")
    assert (code, first_named(out)) == (1, where)


def test_the_differing_stages_are_marked_in_the_table_and_in_json(folder, capsys):
    change(folder, "weights/nlvr2/head.norm1.bias", move(0, 0.5))
    code, out, _ = doctor(capsys, "--dtype", "fp32", "--json")
    report = json.loads(out)
    assert (code, report["fits"]) == (1, False)
    assert (report["first"]["head"], report["first"]["stage"]) == ("nlvr2", "logits")
    assert [s["head"] for s in report["stages"] if not s["fits"]] == ["nlvr2"]
    _, text, _ = doctor(capsys, "--dtype", "fp32")
    assert [line.split()[:2] for line in text.splitlines() if line.endswith("DIFFERS")] == [["beit3", "nlvr2"]]


def test_a_changed_weight_is_seen_in_half_precision(folder, capsys):
    change(folder, "weights/backbone/beit3.encoder.layers.1.ffn.A.fc2.weight", lambda x: x.mul_(1.2))
    code, out, _ = doctor(capsys, "--dtype", "bf16")
    assert code == 1
    assert first_named(out) == "layer 2 of encoder (beit3, bf16)"


def first_named(out: str) -> str:
    return out.splitlines()[-1].partition("diverges first at ")[2].partition(":")[0]


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_half_precision_that_rounds_nothing_is_no_half_precision(capsys, monkeypatch, asked):
    monkeypatch.setattr(precision, "arithmetic", lambda dtype, device: nullcontext())
    code, out, _ = doctor(capsys, "--dtype", asked)
    assert code == 1
    assert first_named(out) == f"patches of encoder (beit3, {asked})"
    wrong = [line for line in out.splitlines() if line.endswith("DIFFERS")]
    assert len(wrong) > 40


def test_fp16_in_place_of_bf16_is_seen(capsys, monkeypatch):
    monkeypatch.setattr(precision, "arithmetic", lambda dtype, device: torch.autocast("cpu", torch.float16))
    code, out, _ = doctor(capsys, "--dtype", "bf16")
    assert (code, first_named(out)) == (1, "patches of encoder (beit3, bf16)")


def test_a_tensor_that_is_not_finite_differs(folder, capsys):
    change(folder, "weights/vqav2/head.0.weight", lambda x: x.fill_(math.nan))
    code, out, _ = doctor(capsys, "--dtype", "fp32", "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (code, report["first"]["stage"], report["first"]["difference"]) == (1, "logits", None)
    last = doctor(capsys, "--dtype", "fp32")[1].splitlines()[-1]
    assert last.endswith(("(beit3, fp32): not finite, tolerance 1.7e-05", "tolerance 6.6e-05"))  # Intel, elsewhere


def test_other_words_of_a_caption_are_told(folder, capsys):
    change(folder, "expected/coco-caption, decoding/words of captions", move(1, 1))
    code, out, _ = doctor(capsys, "--dtype", "fp32")
    assert (code, first_named(out)) == (1, "words of captions of coco-caption, decoding (beit3, fp32)")


def test_another_decoder_of_jpeg_is_told(capsys, monkeypatch):
    decode = preprocess.decode
    monkeypatch.setattr(
        preprocess,
        "decode",
        lambda path, content: (
            decode(path, content).point(lambda x: min(x + 3, 255)) if "jpeg" in path else decode(path, content)
        ),
    )
    code, out, _ = doctor(capsys, "--dtype", "fp32")
    assert code == 1
    assert out.splitlines()[-1].endswith("diverges first at JPEG, decoded of pictures (beit3, fp32): 3, tolerance 1")


# ---- what cannot be looked at -------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_heads(path: Path) -> None:
    document = json.loads(path.read_text())
    del document["heads"]["nlvr2"][0]["tolerance"]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        (numerics.TENSORS, Path.unlink, "not found"),
        (numerics.STAGES, Path.unlink, "not found"),
        (numerics.TENSORS, cut, "damaged (its sha256 is not "),
        (numerics.TENSORS, flip, "damaged (its sha256 is not "),
        (numerics.STAGES, cut, "damaged (not readable)"),
        (numerics.STAGES, without_heads, "damaged (does not list the stages)"),
    ],
)
def test_a_missing_or_damaged_file_is_one_line(folder, capsys, name, damage, why):
    damage(folder / name)
    code, out, err = doctor(capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {folder / name}: {why}")
    assert err.endswith("it is a part of beit3-bench: install that again\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--numerics", "--device", "cuda:7"], "--device cuda:7: "),
        (["--numerics", "--device", "abacus"], "abacus"),
        (["--numerics", "--dtype", "fp8"], "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        (["--numerics", "--imports"], "--imports and --numerics are two reports"),
        (["--device", "cpu"], "--device is of --numerics"),
        (["--dtype", "bf16"], "--dtype is of --numerics"),
    ],
)
def test_what_cannot_be_asked_is_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *words])
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_an_arithmetic_that_torch_lacks_is_one_line(capsys, monkeypatch):
    def lacking(self: torch.nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'\nmore of it")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", lacking)
    code, out, err = doctor(capsys, "--dtype", "fp16")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--dtype fp16: torch {torch.__version__} does not compute in it on cpu" in err


def test_an_internal_error_is_no_difference(capsys, monkeypatch):
    monkeypatch.setattr(numerics, "largest_difference", lambda ours, expected: 1 / 0)
    code, out, err = doctor(capsys, "--dtype", "fp32")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "internal error: ZeroDivisionError" in err


# ---- what is embedded ---------------------------------------------------------------------------------------------------


def test_weights_and_inputs_are_the_golden_ones():
    tensors = numerics.read_embedded(beit3.FOLDER)
    weights = tensors.part("weights")
    for theirs, ours in {**golden.HEADS, "backbone": "backbone"}.items():
        expected = golden.tensors(f"weights_{theirs}")
        assert {name for name in weights if name.startswith(f"{ours}/")} == {f"{ours}/{name}" for name in expected}
        assert all(torch.equal(weights[f"{ours}/{name}"], x) for name, x in expected.items())
    given = golden.inputs()
    for name, x in tensors.part("inputs").items():
        rows = [0, 1, 2, 3, 11, 10] if name == "images" else [0, 1, 2, 3]
        assert torch.equal(x, given[name][rows]), name


@pytest.fixture(scope="module")
def tool():
    """tools/numerics.py."""
    place = importlib.util.spec_from_file_location("make_numerics", ROOT / "tools" / "numerics.py")
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module  # where its dataclasses look
    place.loader.exec_module(module)
    yield module
    del sys.modules[place.name]


@pytest.mark.parametrize("family", ROOMS)
def test_the_embedded_files_are_what_the_golden_tensors_make(tool, family):
    document, content = tool.make(tool.sources(COMMITTED)[family])
    made, embedded = load(content), numerics.read_embedded(ROOMS[family].FOLDER)
    assert made.keys() == embedded.tensors.keys()
    assert document["config"] == embedded.facts["config"]
    assert document["heads"].keys() == embedded.stages.keys()
    for name, x in embedded.tensors.items():
        if name.startswith(("weights/", "inputs/")):
            assert torch.equal(made[name], x), name
    for head, listed in document["heads"].items():
        for new, old in zip(listed, embedded.stages[head], strict=True):
            name = numerics.expected_name(head, old.name)
            assert new["stage"] == old.name
            if old.reference == numerics.OFFICIAL:
                assert torch.equal(made[name], embedded.tensors[name]), name
                assert (new["reference"], new["tolerance"]) == (old.reference, old.tolerance)
            elif old.reference == numerics.OWN:  # other processors' float64, rounded to float32
                torch.testing.assert_close(made[name], embedded.tensors[name], rtol=1e-6, atol=1e-6)


def test_the_embedded_picture_is_the_golden_one():
    embedded = numerics.read_embedded(beit3.FOLDER)
    pixels = golden.tensors("data_side")["preprocess.image_uint8_hwc"].numpy()
    png, jpeg = (
        np.asarray(preprocess.decode(name, embedded.tensors[f"pictures/{name}"].numpy().tobytes())).astype(int)
        for name in ("png", "jpeg")
    )
    assert (png == pixels).all()
    assert np.abs(jpeg - pixels).max() > 1  # a JPEG, with losses
    assert np.abs(jpeg - pixels).mean() < 20


def test_they_are_small_enough_for_a_wheel():
    sizes = {
        family: sum((Path(str(room.FOLDER)) / name).stat().st_size for name in (numerics.STAGES, numerics.TENSORS))
        for family, room in ROOMS.items()
    }
    assert sizes.pop("beit3") < 3_000_000
    assert sum(sizes.values()) < 2_000_000
