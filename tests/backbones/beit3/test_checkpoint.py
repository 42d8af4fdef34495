"""Checkpoints: what official files hold loads, without loss; what does not fit or would run code is refused by name."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import http
import io
import itertools
import json
import operator
import os
import pathlib
import pickle
import re
import subprocess
import types
import zipfile
from collections import OrderedDict

import beit3_golden as golden
import numpy as np
import pytest
import random_beit3 as small
import torch
from safetensors.torch import save, save_file

from beit3_bench.backbones import BEiT3Config, build_model, load_checkpoint, official_state_dict
from beit3_bench.backbones.beit3.checkpoint import VISION_POSITIONS, load_model_for
from beit3_bench.backbones.checkpoints import METADATA_KEY, read_checkpoint
from beit3_bench.backbones.preprocess import IMAGENET_MEAN, Preprocessing
from beit3_bench.errors import BenchError

NATIVE = ("retrieval", "vqav2", "nlvr2", "imagenet-linear", "coco-caption")
ARGUMENTS = argparse.Namespace(
    model="beit3_base_patch16_224", opt_betas=[0.9, 0.999], clip_grad=None, lr=5e-4, device="cuda", gpu=0, dist_url="env://", save_ckpt=True
)  # fmt: skip


def one_line(error: pytest.ExceptionInfo, path: object = "") -> str:
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return official_state_dict(small.build("vqav2"))


# ---- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", golden.HEADS)
def test_official_names_and_values_come_back_bit_for_bit(task):
    official = golden.official_state(task)
    ours = official_state_dict(golden.model(task))
    assert ours.keys() == official.keys()
    for name, value in official.items():
        assert torch.equal(ours[name], value), name
        assert ours[name].dtype == value.dtype


@pytest.mark.parametrize("form", small.FORMS)
@pytest.mark.parametrize("task", NATIVE)
def test_round_trip_is_bitwise_for_every_head_and_form(form, task):
    model, other = small.build(task, form, seed=1), small.build(task, form, seed=2)
    written = official_state_dict(model)
    report = load_checkpoint(other, written)
    assert sorted(report.loaded) == sorted(written)
    assert (report.missing, report.unexpected, report.resized) == ([], [], {})
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any("qkv" in name or "shared" in name for name in written)


def test_written_tensors_are_copies_that_safetensors_accepts():
    model = small.build("retrieval")
    written = official_state_dict(model)
    before = {name: value.clone() for name, value in written.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(written[name], value) for name, value in before.items())
    assert len(save(written)) > sum(t.nbytes for t in written.values())


def test_the_papers_form_has_names_without_a_branch_in_attention():
    names = official_state_dict(small.build("vqav2", "giant"))
    assert "beit3.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "beit3.encoder.layers.0.self_attn_layer_norm.bias" in names
    assert "beit3.encoder.layers.2.ffn.VL.fc1.weight" in names
    assert "beit3.encoder.layers.0.ffn.VL.fc1.weight" not in names


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"module": s},
        lambda s: {"state_dict": s},
        lambda s: s,
        lambda s: OrderedDict(s),
        lambda s: {"model": {f"module.{n}": t for n, t in s.items()}},
        lambda s: {
            "model": s,
            "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.98)}]},
            "epoch": 9,
            "scaler": {"scale": 65536.0},
            "args": ARGUMENTS,
        },
        lambda s: {
            "module": s,
            "csr_tensor_module_names": set(),
            "dp_world_size": 8,
            "ds_version": "0.4.0",
            "epoch": 9,
            "args": ARGUMENTS,
        },
    ],
    ids=["model", "module", "state_dict", "bare", "ordered", "data-parallel", "official", "deepspeed"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_official_layout_loads(tmp_path, state, wrap, legacy):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(saved(wrap(state), _use_new_zipfile_serialization=not legacy))
    source = read_checkpoint(path)
    assert source.tensors.keys() == state.keys()
    model = build_model("vqav2", small.config(), num_classes=7)
    report = load_checkpoint(model, path)
    assert (report.missing, report.unexpected) == ([], [])
    assert all(torch.equal(t, state[n]) for n, t in official_state_dict(model).items())


def test_official_arguments_are_read_as_data(tmp_path, state):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(saved({"model": state, "args": ARGUMENTS}))
    source = read_checkpoint(path)
    assert source.arguments == vars(ARGUMENTS)
    assert source.metadata == {}
    assert len(source.sha256) == 64


def test_safetensors_load_with_their_metadata(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={METADATA_KEY: '{"head": "vqav2"}'})
    source = read_checkpoint(path)
    assert source.metadata == {"head": "vqav2"}
    assert all(torch.equal(source.tensors[n], t) for n, t in state.items())
    save_file(state, path)
    assert read_checkpoint(path).metadata == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_into_float32(state, dtype):
    model = build_model("vqav2", small.config(), num_classes=7)
    load_checkpoint(model, {name: value.to(dtype) for name, value in state.items()})
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(t, state[n].to(dtype).float()) for n, t in official_state_dict(model).items())


def test_positions_are_interpolated_to_the_image_size_and_reported(state):
    model = build_model("vqav2", small.config(image_size=48), num_classes=7)
    report = load_checkpoint(model, state)
    assert report.resized == {VISION_POSITIONS: "4x4 -> 6x6"}
    table = model.beit3.encoder.embed_positions["A"].weight
    assert table.shape[0] == 39
    assert torch.equal(table[:3], state[VISION_POSITIONS][:3])


# ---- what does not fit --------------------------------------------------------------------------------------------------


def broken(state: dict, **changes: torch.Tensor | None) -> dict:
    return {n: t for n, t in {**state, **changes}.items() if t is not None}


CASES = {
    "missing": ({"pooler.dense.bias": None}, r"1 missing \(pooler\.dense\.bias\)"),
    "one of three fused": (
        {"beit3.encoder.layers.1.self_attn.k_proj.B.weight": None},
        r"1 missing \(beit3\.encoder\.layers\.1\.self_attn\.k_proj\.B\.weight\)",
    ),
    "unexpected": ({"mlm_head.bias": torch.zeros(3)}, r"1 unexpected \(mlm_head\.bias\)"),
    "misshapen": (
        {"head.3.weight": torch.zeros(9, 64)},
        r"1 of another shape \(head\.3\.weight \(9, 64\) instead of \(7, 64\)\)",
    ),
    "misshapen fused": (
        {"beit3.encoder.layers.0.self_attn.q_proj.A.bias": torch.zeros(31)},
        r"q_proj\.A\.bias \(31,\) instead of \(32,\)",
    ),
    "positions not square": (
        {VISION_POSITIONS: torch.zeros(20, 32)},
        r"embed_positions\.A\.weight \(20, 32\) instead of \(19, 32\)",
    ),
    "integers": (
        {"head.3.bias": torch.zeros(7, dtype=torch.int8)},
        r"head\.3\.bias torch\.int8 instead of floating-point",
    ),
    "no tensor": ({"head.3.bias": [0.0] * 7}, r"head\.3\.bias list instead of floating-point"),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_that_do_not_fit_are_listed(state, case):
    changes, message = CASES[case]
    model = small.build("vqav2", seed=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(BenchError, match=message) as caught:
        load_checkpoint(model, broken(state, **changes))
    assert "--allow-missing" not in one_line(caught)  # never advice that ends in random weights
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "a refused checkpoint changes nothing"


@pytest.mark.parametrize("case", CASES)
def test_what_a_pattern_allows_is_reported_and_the_rest_is_loaded(state, case):
    changes, _ = CASES[case]
    (name,) = changes
    model = small.build("vqav2", seed=5)
    own = official_state_dict(model)
    report = load_checkpoint(model, broken(state, **changes), allow_missing=[name.replace("head", "h*d")])
    assert (report.unexpected if case == "unexpected" else report.missing) == [name]
    assert sorted(report.loaded) == sorted(state.keys() - {name})
    loaded = official_state_dict(model)
    for other, value in state.items():
        assert torch.equal(loaded[other], own[other] if other == name else value), other


def test_a_pattern_allows_only_what_it_names(state):
    incomplete = broken(state, **{"head.0.bias": None, "pooler.dense.bias": None})
    model = small.build("vqav2")
    with pytest.raises(BenchError, match=r"1 missing \(pooler\.dense\.bias\)"):
        load_checkpoint(model, incomplete, allow_missing=["head.*"])
    assert load_checkpoint(model, incomplete, allow_missing=["head.*", "pooler.dense.?ias"]).missing == [
        "pooler.dense.bias",
        "head.0.bias",
    ]


def test_long_lists_are_cut(state):
    with pytest.raises(BenchError, match=r"\d\d missing \((\S+, ){5}\.\.\.\)"):
        load_checkpoint(small.build("vqav2"), {n: t for n, t in state.items() if ".B." not in n})


def test_another_architecture_is_refused_by_name(tmp_path):
    resnet = {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "layer1.0.bn1.running_mean": torch.zeros(64),
        "fc.bias": torch.zeros(1000),
    }
    path = tmp_path / "resnet.pth"
    path.write_bytes(saved(resnet))
    with pytest.raises(BenchError, match=r"missing \(.*3 unexpected \(conv1\.weight"):
        load_checkpoint(small.build("vqav2"), path)
    with pytest.raises(BenchError, match="not a BEiT-3 checkpoint with official names") as caught:
        load_model_for("vqav2", path)
    one_line(caught, path)


# ---- damaged files ------------------------------------------------------------------------------------------------------


def contents(state: dict) -> dict[str, bytes]:
    whole, legacy = (
        saved({"model": state, "args": ARGUMENTS}),
        saved({"model": state}, _use_new_zipfile_serialization=False),
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("word/document.xml", "<xml/>")
    return {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "html": b"<!DOCTYPE html><html>404</html>",
        "zip of something else": archive.getvalue(),
        "zeros": bytes(5000),
        **{f"cut at {n}": whole[:n] for n in (1, 4, 100, 3000, len(whole) // 2, len(whole) - 30, len(whole) - 1)},
        **{f"legacy cut at {n}": legacy[:n] for n in (1, 20, 500, len(legacy) // 2, len(legacy) - 5)},
        "hole": whole[:2000] + bytes(3000) + whole[5000:],
        "a number": saved(3),
        "a list of tensors": saved([torch.zeros(2)]),
        "no tensors": saved({"epoch": 3, "args": ARGUMENTS}),
        "empty state dict": saved({"model": {}}),
        "foreign metadata": saved({"model": state, METADATA_KEY: [1, 2]}),
    }


NAMES = list(contents({"x": torch.zeros(3000)}))


@pytest.mark.parametrize(
    "index", range(len(NAMES)), ids=[name if "cut at" not in name else f"cut {i}" for i, name in enumerate(NAMES)]
)
def test_damaged_and_foreign_files_are_errors_in_one_line(tmp_path, state, index):
    path = tmp_path / "beit3_base_patch16_224.pth"
    path.write_bytes(list(contents(state).values())[index])
    with pytest.raises(BenchError) as caught:
        read_checkpoint(path)
    one_line(caught, path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_damaged_safetensors_are_errors_in_one_line(tmp_path, state, keep):
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BenchError, match="not a whole safetensors file" if keep else "is empty") as caught:
        read_checkpoint(path)
    one_line(caught, path)


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(BenchError, match="checkpoint not found; released files are listed by: beit3-bench models"):
        read_checkpoint(tmp_path / "no.pth")
    with pytest.raises(BenchError, match="is a folder"):
        read_checkpoint(tmp_path)


# ---- files that would run code --------------------------------------------------------------------------------------------


class Runs:
    """Calls a function when unpickled."""

    def __init__(self, function, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    """An object of a class that another machine does not have."""

    def __init__(self, **values: object):
        vars(self).update(values)


class Mode(enum.Enum):
    TRAIN = "train"


class Record(dict):
    """A dict with attributes, as configurations are."""


def attacks(trap: str) -> dict[str, object]:
    return {
        "system": Runs(os.system, f"touch {trap}"),
        "eval": Runs(eval, f"open({trap!r}, 'w')"),
        "open": Runs(open, trap, "w"),
        "bound method": Runs(pathlib.Path(trap).mkdir),
        "process": Runs(subprocess.Popen, ["touch", trap]),
        "import": Runs(__import__, "antigravity"),
        "partial that is called": Runs(functools.partial(os.mkdir, trap)),
        "attrgetter that is called": Runs(operator.attrgetter("system"), 3),
        "another library's function": Runs(np.testing.runstring, f"open({trap!r}, 'w')", {}),
        "torch's function": Runs(torch.hub.load_state_dict_from_url, f"file://{trap}"),
        "namespace of a call": argparse.Namespace(x=Runs(os.mkdir, trap)),
        "object array of a call": np.array([Runs(os.mkdir, trap)], dtype=object),
    }


@pytest.mark.parametrize("attack", attacks(""))
@pytest.mark.parametrize("place", ["top", "model", "args", "nested", "tensor name"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_files_that_would_run_code_run_nothing(tmp_path, attack, place, form):
    trap = tmp_path / "trap"
    evil, weights = attacks(str(trap))[attack], {"beit3.text_embed.weight": torch.zeros(2, 2)}
    content = {
        "top": evil,
        "model": {"model": evil},
        "args": {"model": weights, "args": evil},
        "nested": {"model": weights, "optimizer": [{"state": ({"x": evil},)}]},
        "tensor name": {"model": {"beit3.text_embed.weight": evil}},
    }[place]
    path = tmp_path / "evil.pth"
    path.write_bytes(
        pickle.dumps(content) if form == "pickle" else saved(content, _use_new_zipfile_serialization=form == "zip")
    )
    with pytest.raises(BenchError) as caught:
        read_checkpoint(path)
    assert "nothing was executed" in one_line(caught, path)
    assert not trap.exists()


def beside_the_weights() -> dict[str, object]:
    """What training scripts and frameworks leave beside the weights."""
    return {
        "numpy number": np.float64(87.3),
        "numpy array": np.arange(6.0).reshape(2, 3),
        "object array": np.array([Plain(), None], dtype=object),
        "paths": argparse.Namespace(output_dir=pathlib.PosixPath("/x/y"), data=pathlib.PureWindowsPath("c:/x")),
        "types of torch": argparse.Namespace(
            device=torch.device("cuda:0"), dtype=torch.bfloat16, shape=torch.Size([1, 2]), layout=torch.strided
        ),
        "unknown class": Plain(a=1, inner=Plain(b=np.float32(2))),
        "history of values": Plain(_log_history=np.arange(5.0), _statistics_methods={"mean": Plain.__init__}),
        "dict with attributes": Record(a=1),
        "member of an enum": Mode.TRAIN,
        "default dict": collections.defaultdict(list, {"a": [1]}),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2], maxlen=3),
        "date": datetime.datetime(2026, 1, 2),
        "partial": functools.partial(print, 1),
        "random states": {"torch": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()},
        "generator": np.random.default_rng(0),
        "pattern": re.compile("a"),
        "error": ValueError("x"),
        "sets": [{1, 2}, frozenset([1]), slice(1), range(3), 1j, b"\xff", bytearray(b"a")],
        "whole module": torch.nn.Linear(2, 2),
        "types and iterators": [type(None), dict, print, iter([1]), itertools.count(3), types.SimpleNamespace(a=1)],
        "member of a library's enum": http.HTTPStatus.OK,
        "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), 1),
    }


@pytest.mark.parametrize("kind", beside_the_weights())
@pytest.mark.parametrize("form", ["protocol 2", "protocol 4", "legacy", "pickle"])
def test_what_lies_beside_the_weights_hinders_nobody(tmp_path, kind, form):
    weights = {"beit3.text_embed.weight": torch.arange(6.0).reshape(2, 3), "beit3.b": torch.ones(2).half()}
    content = {"model": weights, "epoch": 3, "args": beside_the_weights()[kind], "best": [beside_the_weights()[kind]]}
    path = tmp_path / "a.pth"
    options = {"pickle_protocol": 4 if form == "protocol 4" else 2, "_use_new_zipfile_serialization": form != "legacy"}
    path.write_bytes(pickle.dumps(content) if form == "pickle" else saved(content, **options))
    source = read_checkpoint(path)
    assert source.notes == []
    assert source.tensors.keys() == weights.keys()
    for name, value in weights.items():
        assert source.tensors[name].dtype == value.dtype
        assert torch.equal(source.tensors[name], value)


def test_arguments_beside_the_weights_are_plain_values(tmp_path, state):
    arguments = argparse.Namespace(
        lr=np.float64(0.5), betas=np.array([0.9, 0.98]), out=pathlib.PosixPath("/x/y"), dtype=torch.float16, odd=Plain()
    )
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"model": state, "args": arguments}))
    assert read_checkpoint(path).arguments == {
        "lr": 0.5,
        "betas": [0.9, 0.98],
        "out": "/x/y",
        "dtype": "torch.float16",
        "odd": f"<{Plain.__module__}.Plain>",
    }


def test_settings_that_repeat_themselves_without_end_are_refused(tmp_path, state):
    bomb: object = 1
    for _ in range(60):
        bomb = [bomb, bomb]
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"model": state, "args": argparse.Namespace(x=bomb)}))
    assert read_checkpoint(path).arguments == {}
    path.write_bytes(saved({"model": state, METADATA_KEY: {"head": bomb}}))
    with pytest.raises(BenchError, match="deeper or larger than settings are") as caught:
        read_checkpoint(path)
    one_line(caught, path)


def test_a_namespace_that_overwrites_its_own_methods_harms_nobody(tmp_path, state):
    evil = argparse.Namespace(model="beit3")
    vars(evil).update({"__class__": "x", "__setstate__": "y", "__dict__": "z"})
    path = tmp_path / "odd.pth"
    path.write_bytes(saved({"model": state, "args": evil}))
    source = read_checkpoint(path)
    assert source.tensors.keys() == state.keys()
    assert source.arguments["model"] == "beit3"


# ---- load_model_for -------------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, model: torch.nn.Module, **metadata: object) -> pathlib.Path:
    content = {"model": official_state_dict(model)}
    if metadata:
        content[METADATA_KEY] = metadata
    path.write_bytes(saved(content))
    return path


def test_a_fine_tuned_file_brings_its_configuration_and_preprocessing(tmp_path):
    model = small.build("imagenet-linear", "giant", drop_path_rate=0.1)
    preprocessing = Preprocessing(42, "crop", IMAGENET_MEAN, IMAGENET_MEAN, 0.9)
    metadata = {
        "head": "imagenet-linear",
        "config": model.config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "tokenizer": "abc",
    }
    path = write(tmp_path / "tuned.pth", model, **metadata)
    loaded = load_model_for("imagenet-linear", path, head_arguments={"num_classes": 9})
    assert loaded.config == model.config.replace(drop_path_rate=0.0)
    assert loaded.preprocessing == preprocessing
    assert loaded.metadata["tokenizer"] == "abc"
    assert loaded.preset is None
    assert not loaded.model.training
    with torch.no_grad():
        images = small.pictures(model, 2)
        assert torch.equal(loaded.model(images), model.eval()(images))
    larger = load_model_for("imagenet-linear", path, image_size=70, head_arguments={"num_classes": 9})
    assert larger.config.image_size == larger.preprocessing.size == 70
    assert larger.preprocessing.crop_pct == 0.9
    assert larger.report.resized == {VISION_POSITIONS: "3x3 -> 5x5"}


def test_a_released_file_is_recognised_by_its_shapes(tmp_path):
    config = BEiT3Config.preset("tiny", vocab_size=40, image_size=48)
    model = small.randomise(build_model("retrieval", config))
    loaded = load_model_for("flickr30k", write(tmp_path / "tiny.pth", model))
    assert loaded.config == config
    assert loaded.preset == "tiny"
    assert loaded.preprocessing == Preprocessing(48)
    resized = load_model_for("flickr30k", write(tmp_path / "tiny.pth", model), image_size=64)
    assert resized.config.image_size == 64


def test_a_retrieval_file_serves_every_retrieval_task_and_no_other(tmp_path):
    model = small.build("retrieval")
    path = write(tmp_path / "tuned.pth", model, head="coco-retrieval", config=model.config.to_dict())
    for task in ("retrieval", "flickr30k", "coco-retrieval", "imagenet"):
        assert load_model_for(task, path).report.missing == []
    with pytest.raises(
        BenchError, match="was fine-tuned with the coco-retrieval head, this task needs vqav2"
    ) as caught:
        load_model_for("vqav2", path, head_arguments={"num_classes": 3})
    one_line(caught, path)


def test_another_head_may_start_from_it_when_allowed(tmp_path):
    model = small.build("retrieval")
    path = write(tmp_path / "tuned.pth", model, head="retrieval", config=model.config.to_dict())
    patterns = ["pooler.*", "head.*", "*_head.weight", "logit_scale", "beit3.encoder.layer_norm.*"]
    torch.manual_seed(0)
    loaded = load_model_for("vqav2", path, head_arguments={"num_classes": 3}, allow_missing=patterns)
    assert "head.3.weight" in loaded.report.missing
    assert "logit_scale" in loaded.report.unexpected
    weight = loaded.model.head[3].weight
    assert 0 < weight.abs().max() <= 0.02, "a missing head has its initial values, not uninitialised memory"
    assert torch.equal(loaded.model.pooler.norm.weight, torch.ones(32))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"config": {"width": 3}}, r"its configuration: no field 'width'"),
        ({"config": "base"}, r"'config' is a str"),
        ({"config": small.config(depth=4).to_dict()}, r"missing \(beit3\.encoder\.layers\.3"),
        ({"config": small.config().to_dict(), "preprocessing": {"size": 3}}, r"its preprocessing: not readable"),
        ({"config": small.config().to_dict(), "preprocessing": 3}, r"its preprocessing: not readable"),
    ],
)
def test_metadata_that_is_not_ours_is_an_error(tmp_path, metadata, message):
    path = write(tmp_path / "tuned.pth", small.build("retrieval"), **metadata)
    with pytest.raises(BenchError, match=message) as caught:
        load_model_for("retrieval", path)
    one_line(caught, path)


def test_wrong_and_unknown_presets_are_refused(tmp_path):
    path = write(tmp_path / "small.pth", small.build("retrieval"))
    with pytest.raises(
        BenchError, match=r"is not a BEiT-3 base \(patch_size 8 instead of 16, embed_dim 32 instead of 768"
    ):
        load_model_for("retrieval", path, preset="base")
    with pytest.raises(BenchError, match="no preset 'huge'"):
        load_model_for("retrieval", path, preset="huge")
    with pytest.raises(BenchError, match="number of attention heads does not show in a checkpoint of width 32"):
        load_model_for("retrieval", path)
    assert load_model_for("retrieval", path, preset="tiny").config.num_heads == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({VISION_POSITIONS: torch.zeros(3)}, "has 1 dimensions instead of 2"),
        ({"beit3.vision_embed.proj.weight": torch.zeros(())}, "has 0 dimensions instead of 4"),
        (
            {"beit3.encoder.embed_positions.B.weight": torch.zeros(512, 32)},
            "text positions have 512 rows instead of 1024",
        ),
        ({"beit3.text_embed.weight": None}, r"1 missing \(beit3\.text_embed\.weight\)"),
    ],
)
def test_shapes_that_no_beit3_has_are_refused(tmp_path, changes, message):
    path = tmp_path / "odd.pth"
    path.write_bytes(saved({"model": broken(official_state_dict(small.build("retrieval")), **changes)}))
    with pytest.raises(BenchError, match=message) as caught:
        load_model_for("retrieval", path, preset="tiny")
    one_line(caught, path)


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path):
    path = write(tmp_path / "small.pth", small.build("retrieval"))
    with pytest.raises(BenchError, match="image_size 30 is not a multiple of patch_size 8"):
        load_model_for("retrieval", path, preset="tiny", image_size=30)


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="no /proc here")
@pytest.mark.parametrize("form", ["zip", "safetensors", "shards"])
def test_weights_are_mapped_and_not_copied(tmp_path, form):
    weights = {"beit3.text_embed.weight": torch.ones(4_000_000), "beit3.b": torch.ones(2_000_000)}
    size = sum(value.nbytes for value in weights.values())
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "shards":
        path = tmp_path / "model.safetensors.index.json"
        for index, name in enumerate(weights):
            save_file({name: weights[name]}, tmp_path / f"{index}.safetensors")
        places = {name: f"{index}.safetensors" for index, name in enumerate(weights)}
        path.write_text(json.dumps({"weight_map": places}))
    else:
        path.write_bytes(saved({"model": weights}))
    before = anonymous_memory()
    tensors = read_checkpoint(path).tensors
    assert sum(value.sum().item() for value in tensors.values()) == 6_000_000
    assert anonymous_memory() - before < size / 3
    assert str(tmp_path) in pathlib.Path("/proc/self/maps").read_text()


def test_what_is_written_into_weights_changes_no_file(tmp_path, state):
    path = tmp_path / "x.pth"
    path.write_bytes(saved({"model": state}))
    before = path.read_bytes()
    for value in read_checkpoint(path).tensors.values():
        value.zero_()
    assert path.read_bytes() == before


def test_a_vision_only_file_serves_the_head_that_reads_no_text_and_no_other(tmp_path):
    config = BEiT3Config.preset("tiny", image_size=32, vocab_size=64010)
    model = build_model("imagenet-linear", config, num_classes=3)
    full = official_state_dict(model)
    vision = {n: t for n, t in full.items() if ".B." not in n and n != "beit3.text_embed.weight"}
    torch.save({"model": vision}, tmp_path / "beit3_base_patch16_224_in1k.pth")
    loaded = load_model_for(
        "imagenet-linear", tmp_path / "beit3_base_patch16_224_in1k.pth", "tiny", None, {"num_classes": 3}
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))
    assert set(loaded.report.missing) == set(full) - set(vision)
    with pytest.raises(BenchError, match="missing"):
        load_model_for("retrieval", tmp_path / "beit3_base_patch16_224_in1k.pth", "tiny")
