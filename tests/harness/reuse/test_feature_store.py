"""The feature store: no vector of another model, number type or image is ever served; nothing damaged is."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from beit3_bench.backbones.beit3.checkpoint import LoadedModel, LoadReport
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.loading import model_of
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.native import DualEncoder
from beit3_bench.backbones.preprocess import HALF, IMAGENET_MEAN, Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.record.fingerprints import weights_sha256
from beit3_bench.harness.reuse import feature_store
from beit3_bench.harness.reuse.feature_store import FeatureSpace
from beit3_bench.harness.reuse.features import Features, space_facts
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.imagenet import ImageNet
from beit3_bench.tasks.retrieval import CocoRetrieval, Flickr30K

CPU = torch.device("cpu")
CONFIG = BEiT3Config(image_size=32, embed_dim=16, num_heads=2, ffn_dim=32, depth=1, vocab_size=64)


def vectors(count, length=8, seed=0):
    generator = np.random.default_rng(seed)
    return {generator.bytes(32): generator.normal(size=length).astype(np.float32) for _ in range(count)}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def packs(space):
    return sorted(space.folder.glob("*" + feature_store.SUFFIX))


def filled(root, content, facts=None):
    space = FeatureSpace(root, facts or {"weights": "a"})
    space.append(content)
    space.close()
    return space


# ---- a space --------------------------------------------------------------------------------------------------------


def test_vectors_come_back_bit_for_bit_and_only_those_asked_for(tmp_path):
    content = vectors(50)
    content[next(iter(content))][:] = np.float32(-0.0)
    space = filled(tmp_path, content)
    assert same(FeatureSpace(tmp_path, {"weights": "a"}).find(content), content)
    some = dict(list(content.items())[10:20])
    assert same(space.find([*some, b"x" * 32]), some)
    assert space.find([]) == {}


def test_other_facts_are_another_space_and_a_pack_that_was_moved_there_is_not_read(tmp_path):
    content = vectors(5)
    space = filled(tmp_path, content)
    other = FeatureSpace(tmp_path, {"weights": "b"})
    assert other.folder != space.folder
    (other.folder / packs(space)[0].name).write_bytes(packs(space)[0].read_bytes())
    assert other.find(content) == {}


def test_several_writers_and_sessions_add_up(tmp_path):
    parts = [vectors(7, seed=s) for s in range(4)]
    spaces = [FeatureSpace(tmp_path, {}) for _ in range(4)]
    for space, part in zip(spaces, parts, strict=True):
        for key, vector in part.items():
            space.append({key: vector})
    assert same(
        FeatureSpace(tmp_path, {}).find(k for p in parts for k in p), {k: v for p in parts for k, v in p.items()}
    )
    assert len(packs(spaces[0])) == 4


def test_a_space_that_stores_nothing_leaves_no_pack(tmp_path):
    space = FeatureSpace(tmp_path, {})
    space.append({})
    space.close()
    assert packs(space) == []


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_pack_cut_anywhere_serves_whole_records_only(tmp_path, cut):
    content = vectors(3)
    space = filled(tmp_path, content)
    (pack,) = packs(space)
    data = pack.read_bytes()
    pack.write_bytes(data[: len(data) - cut])
    whole = max((len(data) - cut - 48) // 68, 0)
    assert same(space.find(content), dict(list(content.items())[:whole]))


def test_a_flipped_bit_anywhere_is_never_served(tmp_path):
    content = vectors(2, length=3)
    space = filled(tmp_path, content)
    (pack,) = packs(space)
    data = pack.read_bytes()
    for position in range(len(data)):
        pack.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        for key, vector in space.find(content).items():
            assert np.array_equal(vector, content[key]), position


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_what_is_there_and_stops_storing(tmp_path, monkeypatch, number):
    content, more = vectors(3), vectors(3, seed=1)
    space = FeatureSpace(tmp_path, {})
    space.append(content)
    real, written = os.write, []

    def write(file, data):
        if written:
            raise OSError(number, os.strerror(number))
        written.append(real(file, bytes(data[:100])))  # one record and a half, then nothing more
        return 100

    monkeypatch.setattr(os, "write", write)
    space.append(more)
    assert "going on without storing features" in space.trouble
    monkeypatch.undo()
    space.append(vectors(3, seed=2))
    assert same(space.find([*content, *more]), content)
    assert packs(space)[0].stat().st_size == 48 + 3 * 68


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"file: cannot be a feature store .*choose another --features"):
        FeatureSpace(tmp_path / "file", {})


def _append(root, seed):
    space = FeatureSpace(root, {})
    for key, vector in vectors(200, seed=seed).items():
        space.append({key: vector})
    space.close()


def test_processes_may_fill_one_space_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(tmp_path, seed)) for seed in (0, 1, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = {**vectors(200, seed=0), **vectors(200, seed=1)}
    assert same(FeatureSpace(tmp_path, {}).find(expected), expected)


# ---- what a vector depends on ---------------------------------------------------------------------------------------


class Words:
    """A tokenizer, as far as its identity and its ids go."""

    def __init__(self, fingerprint, ids=None):
        self.fingerprint, self.known = fingerprint, ids or {}

    def encode(self, text, source):
        return self.known[text]


def loaded(seed=0, config=CONFIG, preprocessing=None, tokenizer="a", ability=DualEncoder, ids=None):
    torch.manual_seed(seed)
    network, preprocessing, words = (
        build_model("retrieval", config),
        preprocessing or Preprocessing(32),
        Words(tokenizer, ids),
    )
    file = LoadedModel(network, config, LoadReport(), preprocessing, {}, "file", None, Path("m.pth"))
    asked = ability(network, NativeReader(preprocessing, words, 1), preprocessing)
    return model_of(asked, Source("m.pth", Path("m.pth")), file, "dual encoder", tokenizer=words)


def facts_of(task=Flickr30K, model=None, device=CPU, **compute):
    return space_facts(task("nowhere"), model or loaded(), device, Compute(**compute))


def test_all_dual_encoder_tasks_share_one_space_per_model():
    assert facts_of(Flickr30K) == facts_of(CocoRetrieval) == facts_of(ImageNet)


class OwnPredict(DualEncoder):
    def predict(self, batch):
        return [-vector for vector in super().predict(batch)]


class OwnReader(NativeReader):
    def text_key(self, item):
        return b"one for all"


def another_reader():
    model = loaded()
    model.ability.reader = OwnReader(Preprocessing(32), Words("a"), 1)
    return model


def one_weight_changed():
    model = loaded()
    with torch.no_grad():
        model.module.language_head.weight[3, 4] += 1e-7
    return model


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"model": loaded(seed=1)}, "image text"),  # random weights where the file has none
        ({"model": one_weight_changed()}, "image text"),
        ({"model": loaded(config=dataclasses.replace(CONFIG, num_heads=4))}, "image text"),  # no tensor shows it
        ({"model": loaded(config=dataclasses.replace(CONFIG, image_size=48))}, "image text"),
        ({"model": loaded(preprocessing=Preprocessing(32, mean=IMAGENET_MEAN, std=HALF))}, "image"),
        ({"model": loaded(preprocessing=Preprocessing(32, "crop"))}, "image"),
        ({"model": loaded(tokenizer="b")}, "text"),
        ({"dtype": "bf16"}, "image text"),
        ({"device": torch.device("cuda")}, "image text"),
        ({"compile": "on"}, "image text"),
        ({"model": loaded(ability=OwnPredict)}, "image text"),
        ({"model": another_reader()}, "image text"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value.replace(" ", "+"),
)
def test_what_changes_an_embedding_changes_its_space(change, kinds):
    before, after = facts_of(), facts_of(**change)
    assert {kind for kind in before if before[kind] != after[kind]} == set(kinds.split())


def test_weights_are_known_by_their_tensors_and_not_by_their_order():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).bfloat16()
    same_weights = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).bfloat16()
    same_weights.load_state_dict(model.state_dict())
    assert weights_sha256(model) == weights_sha256(same_weights)
    assert weights_sha256(model) != weights_sha256(model.float())
    swapped = torch.nn.Sequential(model[1], model[0])
    assert weights_sha256(swapped) != weights_sha256(model)
    scalar = torch.nn.Module()
    scalar.scale = torch.nn.Parameter(torch.tensor(2.0))
    assert len(weights_sha256(scalar)) == 64


def test_inputs_are_known_by_bytes_and_token_ids_alone(tmp_path):
    one, copy, other = (tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg"))
    one.write_bytes(b"image")
    copy.write_bytes(b"image")
    other.write_bytes(b"imagf")
    examples = [
        *(Example(str(i), (str(path),), kind="image") for i, path in enumerate((one, copy, other))),
        Example("t", text="x y", kind="text"),
        Example("u", text="x  y", kind="text"),
        Example("v", text="z", kind="text"),
        Example("pair", (str(one),), text="x y"),
        Example("two", (str(one), str(copy))),
        Example("gone", (str(tmp_path / "none.jpg"),), kind="image"),
    ]
    model = loaded(ids={"x y": [0, 5, 2], "x  y": [0, 5, 2], "z": [0, 6, 2]})
    features = Features(tmp_path / "store", Flickr30K(tmp_path), model, CPU)
    keys = {i: (key.kind, key.digest) for i, key in features.example_keys(examples).items()}
    assert set(keys) == {"0", "1", "2", "t", "u", "v"}
    assert keys["0"] == keys["1"] != keys["2"]
    assert keys["t"] == keys["u"] != keys["v"]


def test_an_image_that_changed_while_it_was_encoded_is_not_stored(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    task = Flickr30K(tmp_path)
    features = Features(tmp_path / "store", task, loaded(), CPU)
    example = Example("image:1", (str(path),), kind="image")
    assert features.serve([example], sink=None) == 0
    path.write_bytes(b"second!")
    features.keep([{"id": "image:1", "embedding": np.ones(16, np.float32)}])
    features.close()
    assert not list((tmp_path / "store").rglob("*.pack"))


# ---- damage, and somebody else's folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 9, 2**20 + 1, 2**31, 2**32 - 1])
def test_another_length_in_the_header_of_a_pack_serves_nothing(tmp_path, length):
    content = vectors(5)
    space = filled(tmp_path, content)
    (pack,) = packs(space)
    data = bytearray(pack.read_bytes())
    data[40:44] = length.to_bytes(4, "little")
    pack.write_bytes(data)
    assert space.find(content) == {}


def test_holes_of_terabytes_are_not_read(tmp_path):
    content = vectors(5)
    space = filled(tmp_path, content)
    with open(packs(space)[0], "r+b") as file:
        file.truncate(1 << 42)
    assert same(space.find([*content, b"x" * 32]), content)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_no_pack(tmp_path, make):
    content = vectors(5)
    space = filled(tmp_path, content)
    make(space.folder / f"0123{feature_store.SUFFIX}")
    assert same(space.find([*content, b"x" * 32]), content)


def test_nothing_is_stored_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    name = FeatureSpace(tmp_path / "store", {"weights": "a"}).folder.name
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError, match=f"{name}: cannot be a feature store \\(is a link\\)"):
        FeatureSpace(tmp_path / "planted", {"weights": "a"})
    assert not list((tmp_path / "elsewhere").iterdir())
