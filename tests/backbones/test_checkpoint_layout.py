"""Where the weights stand, and their names: wrappers in any order, containers in containers, a stated choice among several."""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import permutations
from pathlib import Path

import pytest
import random_beit3 as small
import torch
from safetensors.torch import save_file

from beit3_bench.backbones import load_checkpoint, official_state_dict
from beit3_bench.backbones.beit3.checkpoint import load_model_for
from beit3_bench.backbones.checkpoint_layout import CONTAINERS, bare_name, bare_names
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.errors import BenchError

WRAPPERS = ("_orig_mod.", "module.", "model.")
PREFIXES = ["".join(p) for n in (1, 2, 3) for p in permutations(WRAPPERS, n)] + [
    "module.module.",
    "model.model._orig_mod.",
    "_forward_module.",
    "_forward_module._original_module.",
]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return official_state_dict(small.build("retrieval"))


def other(state: dict[str, torch.Tensor], by: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: value + by for name, value in state.items()}


def assert_loads(path: Path, state: dict[str, torch.Tensor]) -> list[str]:
    """The file's tensors are ``state``'s, and the model takes them; the notes."""
    source = read_checkpoint(path)
    assert source.tensors.keys() == state.keys()
    model = small.build("retrieval", seed=9)
    report = load_checkpoint(model, path)
    assert (report.missing, report.unexpected) == ([], [])
    assert all(torch.equal(value, state[name]) for name, value in official_state_dict(model).items())
    assert report.notes == source.notes
    return source.notes


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", ["model", "state_dict", "bare", "safetensors"])
def test_wrappers_before_the_names_are_taken_off(tmp_path, state, prefix, form):
    named = {prefix + name: value for name, value in state.items()}
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        save_file(named, path)
    else:
        torch.save(named if form == "bare" else {form: named}, path)
    assert assert_loads(path, state) == []


@pytest.mark.parametrize(
    "inside", ["_orig_mod.", "_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."]
)
def test_wrappers_of_parts_of_the_model_are_taken_off(tmp_path, state, inside):
    named = {name.replace("encoder.layers.1.", f"encoder.layers.1.{inside}"): value for name, value in state.items()}
    torch.save({"model": named}, tmp_path / "x.pth")
    assert assert_loads(tmp_path / "x.pth", state) == []


def test_names_that_only_look_like_wrappers_stay():
    assert bare_name("beit3.model.weight") == "beit3.model.weight"
    assert bare_name("module_list.0.weight") == "module_list.0.weight"
    assert bare_name("remodel.x") == "remodel.x"


def test_a_models_own_names_stay_what_they_are():
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 3)
            self.module = torch.nn.Linear(3, 2)

    ours, theirs = Wrapped(), Wrapped()
    load_checkpoint(ours, theirs.state_dict())
    assert torch.equal(ours.model.weight, theirs.model.weight)
    load_checkpoint(ours, {f"_orig_mod.{name}": value + 1 for name, value in theirs.state_dict().items()})
    assert torch.equal(ours.module.weight, theirs.module.weight + 1)


def test_one_tensor_under_two_wrappers_is_one_and_two_are_refused(tmp_path, state):
    named = {f"model.{name}": value for name, value in state.items()}
    again = {f"compiled._orig_mod.{name}".replace("compiled.", "model."): value for name, value in state.items()}
    torch.save({"state_dict": {**named, **again}}, tmp_path / "x.pth")
    assert assert_loads(tmp_path / "x.pth", state) == []
    torch.save({"state_dict": {**named, **other(again)}}, tmp_path / "x.pth")
    with pytest.raises(BenchError, match=r"holds 'model\.\S+' and 'model\._orig_mod\.\S+', which differ"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="which differ"):
        bare_names({"beit3.a": torch.ones(1), "module.beit3.a": torch.zeros(1)})


@pytest.mark.parametrize("key", CONTAINERS)
def test_every_usual_container_is_opened(tmp_path, state, key):
    torch.save(
        {"epoch": 3, key: OrderedDict(state), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        tmp_path / "x.pth",
    )
    assert assert_loads(tmp_path / "x.pth", state) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {"model": s}},
        lambda s: {"model": {"module": {"net": s}}},
        lambda s: {"checkpoint": {"my_own_key": s}},
        lambda s: {
            "state_dict": {f"model.{n}": t for n, t in s.items()},
            "hyper_parameters": {"lr": 1.0},
            "callbacks": {"EarlyStopping": {"best": torch.tensor(0.3)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "loops": {"fit": {"state_dict": {"x": torch.ones(1)}}},
        },
        lambda s: {"model": s, "logit_scale": torch.ones(())},
        lambda s: {"criterion": {"weight": torch.ones(3)}, "model": s},
        lambda s: {"generator": {"conv.weight": torch.ones(3)}, "my_own_key": s},
        lambda s: {"model": None, "ema": s},
    ],
    ids=[
        "nested",
        "nested twice",
        "unknown keys",
        "Lightning",
        "a stray tensor",
        "criterion",
        "another network",
        "only ema",
    ],
)
def test_containers_of_frameworks_are_opened_without_a_word(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "x.pth")
    assert assert_loads(tmp_path / "x.pth", state) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model", "model_ema"),
        ("module", "ema"),
        ("student", "teacher"),
        ("state_dict", "state_dict_ema"),
        ("model", "another"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_several_sets_of_weights_the_trained_one_is_read_and_both_are_named(tmp_path, state, first, second, turned):
    content = {first: state, second: other(state)}
    torch.save(dict(reversed(content.items())) if turned else content, tmp_path / "x.pth")
    (note,) = assert_loads(tmp_path / "x.pth", state)
    assert f"'{first}' was read, not '{second}'" in note


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("student.", "teacher."),
        ("", "ema_model.module."),
        ("model.", "model_ema.module."),
        ("net.", "ema."),
        ("model.", "ema."),
    ],
)
def test_of_two_networks_side_by_side_one_is_read_and_both_are_named(tmp_path, state, first, second):
    both = {second + name: value + 1 for name, value in state.items()} | {
        first + name: value for name, value in state.items()
    }
    torch.save({"state_dict": both}, tmp_path / "x.pth")
    (note,) = assert_loads(tmp_path / "x.pth", state)
    assert f"not those with {second.replace('module.', '')!r}"[:-2] in note


def test_a_known_container_in_the_names_is_taken_off_and_an_unknown_one_is_not(tmp_path, state):
    torch.save({f"net.module.{name}": value for name, value in state.items()}, tmp_path / "x.pth")
    assert assert_loads(tmp_path / "x.pth", state) == []
    torch.save({f"mine.{name}": value for name, value in state.items()}, tmp_path / "x.pth")
    assert {name.partition(".")[0] for name in read_checkpoint(tmp_path / "x.pth").tensors} == {"mine"}


class Retrieval(torch.nn.Module):
    """A model whose parameters have the official names, as the official code's has."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            place.register_parameter(last, torch.nn.Parameter(value))
        self.register_buffer("counter", torch.ones(1), persistent=False)


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, lambda m: {"model": m, "epoch": 1}, lambda m: {"model": None, "ema": torch.nn.DataParallel(m)}],
)
def test_a_whole_pickled_module_is_read_as_its_state_dict(tmp_path, state, wrap):
    torch.save(wrap(Retrieval(state)), tmp_path / "x.pth")
    assert assert_loads(tmp_path / "x.pth", state) == []


def test_an_unknown_prefix_is_shown_with_its_mend(tmp_path, state):
    torch.save({"model": {f"mine.visual.{name}": value for name, value in state.items()}}, tmp_path / "x.pth")
    with pytest.raises(
        BenchError, match=r"it has 'mine\.visual\.beit3\.\S+': write it again with 'mine\.visual\.' taken off"
    ) as e:
        load_model_for("retrieval", tmp_path / "x.pth", preset="tiny")
    assert "\n" not in str(e.value)
    torch.save({"model": {"conv1.weight": torch.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(BenchError, match=r"one of its names: 'conv1\.weight'"):
        load_model_for("retrieval", tmp_path / "x.pth", preset="tiny")


def test_metadata_survive_wrapped_names(tmp_path):
    from beit3_bench.backbones.checkpoints import METADATA_KEY

    model = small.build("retrieval")
    named = {f"module._orig_mod.{name}": value for name, value in official_state_dict(model).items()}
    metadata = {"head": "retrieval", "config": model.config.to_dict()}
    torch.save({"model": named, METADATA_KEY: metadata}, tmp_path / "x.pth")
    save_file(named, tmp_path / "x.safetensors", metadata={METADATA_KEY: json.dumps(metadata)})
    for name in ("x.pth", "x.safetensors"):
        assert load_model_for("retrieval", tmp_path / name).config == model.config


def test_what_mmengine_saves_beside_the_weights_hinders_nobody(tmp_path, state):
    mmengine = pytest.importorskip("mmengine")
    hub = mmengine.logging.MessageHub.get_instance("checkpoint-forms")
    for step in range(3):
        hub.update_scalar("train/loss", step / 2)
        hub.update_info("iter", step)
    settings = mmengine.config.ConfigDict(type="Adapter", backbone={"depth": 2}, classes=("a", "b"))
    content = {
        "meta": {
            "cfg": "x = 3",
            "settings": settings,
            "config": mmengine.Config({"a": {"b": 1}}),
            "seed": 0,
            "iter": 3,
        },
        "state_dict": OrderedDict(state),
        "message_hub": hub.state_dict(),
        "hub": hub,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "param_schedulers": [{"last_step": 3}],
    }
    torch.save(content, tmp_path / "iter_3.pth")
    assert assert_loads(tmp_path / "iter_3.pth", state) == []
