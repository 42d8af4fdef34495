"""Files on disk: sets of shards, every kind of file that is no checkpoint by its name, and hundreds of damaged ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from beit3_bench.backbones.checkpoints import METADATA_KEY, read_checkpoint
from beit3_bench.backbones.file_kinds import INDEXES, checkpoint_file
from beit3_bench.errors import BenchError

WEIGHTS = {
    "beit3.text_embed.weight": torch.arange(30.0).reshape(5, 6),
    "beit3.a": torch.arange(4.0).half(),
    "beit3.b": torch.arange(7.0).bfloat16(),
    "head.bias": torch.ones(()),
}


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def refused(path: Path, match: str) -> str:
    with pytest.raises(BenchError, match=match) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def assert_whole(path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


# ---- tensors of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_views_and_number_types_come_back(tmp_path, form):
    base = torch.arange(24.0).reshape(4, 6)
    weights = {
        "beit3.transposed": base.t(),
        "beit3.part": base[1:3, 2:4],
        "beit3.again": base,
        "beit3.expanded": torch.ones(1).expand(8),
        "beit3.empty": torch.empty(0, 3),
        "beit3.scalar": torch.tensor(2.5),
        "beit3.parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            f"beit3.{d}": torch.ones(3).to(d)
            for d in (torch.float64, torch.int64, torch.uint8, torch.bool, torch.int16)
        },
    }
    if form == "zip":
        weights["beit3.float8"] = torch.ones(3).to(torch.float8_e4m3fn)
    path = tmp_path / "x.pth"
    content = {"model": weights}
    path.write_bytes(
        pickle.dumps(content) if form == "pickle" else saved(content, _use_new_zipfile_serialization=form == "zip")
    )
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == weights.keys()
    for name, value in weights.items():
        assert (tensors[name].shape, tensors[name].dtype) == (value.shape, value.dtype)
        assert torch.equal(tensors[name].float(), value.detach().float()), name


def test_arrays_of_numpy_are_weights_too(tmp_path):
    arrays = {"beit3.a": np.arange(6.0).reshape(2, 3), "beit3.f": np.asfortranarray(np.ones((2, 3), ">f4"))}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    torch.save({"model": arrays}, tmp_path / "x.pth")
    for name in ("x.pkl", "x.pth"):
        tensors = read_checkpoint(tmp_path / name).tensors
        assert tensors["beit3.a"].dtype == torch.float64
        assert torch.equal(tensors["beit3.a"], torch.arange(6.0).reshape(2, 3).double())
        assert torch.equal(tensors["beit3.f"], torch.ones(2, 3))


@pytest.mark.parametrize(
    "value",
    [
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["quantised", "sparse", "meta"],
)
def test_tensors_of_other_kinds_are_named(tmp_path, value):
    torch.save({"model": {"beit3.a": value}}, tmp_path / "x.pth")
    message = refused(tmp_path / "x.pth", "holds no tensors of numbers")
    assert re.search(r"\(<torch\._utils\._rebuild_\w+>\)", message)


def rewritten(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A zip checkpoint whose pickle is another one."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, change(source.read(name)) if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x05K\x06\x86", b"K\x06K\x06\x86"),  # one row more than there is
        (b"K\x06K\x01\x86", b"K\x07K\x01\x86"),  # rows further apart than they are
        (b"K\x05K\x06\x86", b"J\xff\xff\xff\x7fK\x06\x86"),
        (b"K\x06K\x01\x86", b"K\x00K\x00\x86"),
        (b"K\x05K\x06\x86", b"J\xff\xff\xff\xffK\x06\x86"),  # -1 rows
    ],
)
def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path, old, new):
    whole = saved({"model": {"beit3.text_embed.weight": WEIGHTS["beit3.text_embed.weight"]}})
    assert whole.count(old) == 1
    path = tmp_path / "x.pth"
    if new == b"K\x00K\x00\x86":  # all elements are the same one: harmless unless there are more than memory holds
        path.write_bytes(rewritten(whole, lambda p: p.replace(old, new)))
        assert read_checkpoint(path).tensors["beit3.text_embed.weight"].shape == (5, 6)
        path.write_bytes(
            rewritten(whole, lambda p: p.replace(old, new).replace(b"K\x05K\x06\x86", b"J\xff\xff\xff\x7fK\x06\x86"))
        )
    else:
        path.write_bytes(rewritten(whole, lambda p: p.replace(old, new)))
    refused(path, "not a whole PyTorch checkpoint")


def test_an_archive_that_was_packed_again_is_read_unless_compressed(tmp_path):
    source, path = zipfile.ZipFile(io.BytesIO(saved({"model": WEIGHTS}))), tmp_path / "x.pth"
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name in source.namelist():
                archive.writestr(name, source.read(name))
        if kind == zipfile.ZIP_STORED:
            assert_whole(path)
        else:
            refused(path, "packed again by another program")


# ---- sets of shards ----------------------------------------------------------------------------------------------------


def write_shards(folder: Path, form: str = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    names = list(WEIGHTS)
    parts = {f"model-0000{i + 1}-of-00002.{form}": names[i::2] for i in range(2)}
    for file, held in parts.items():
        tensors = {name: WEIGHTS[name] for name in held}
        save_file(tensors, folder / file) if form == "safetensors" else torch.save(tensors, folder / file)
    index = folder / INDEXES[form == "bin"]
    index.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": {n: f for f, ns in parts.items() for n in ns}})
    )
    return index


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_their_folder(tmp_path, form):
    index = write_shards(tmp_path / "m", form)
    assert_whole(index)
    assert_whole(tmp_path / "m")
    assert checkpoint_file(tmp_path / "m") == index
    first = read_checkpoint(index).sha256
    shard = tmp_path / "m" / f"model-00002-of-00002.{form}"
    changed = {name: value + 1 for name, value in WEIGHTS.items() if name in read_checkpoint_names(shard)}
    save_file(changed, shard) if form == "safetensors" else torch.save(changed, shard)
    assert read_checkpoint(index).sha256 != first, "the hash is of all parts"


def read_checkpoint_names(shard: Path) -> set[str]:
    index = json.loads(next(shard.parent.glob("*.index.json")).read_text())
    return {name for name, file in index["weight_map"].items() if file == shard.name}


def test_wrapped_names_and_metadata_are_read_from_shards(tmp_path):
    for i, (name, value) in enumerate(WEIGHTS.items()):
        save_file(
            {f"_orig_mod.{name}": value}, tmp_path / f"{i}.safetensors", metadata={METADATA_KEY: '{"head": "nlvr2"}'}
        )
    places = {f"_orig_mod.{name}": f"{i}.safetensors" for i, name in enumerate(WEIGHTS)}
    (tmp_path / INDEXES[0]).write_text(json.dumps({"weight_map": places}))
    assert_whole(tmp_path)
    assert read_checkpoint(tmp_path).metadata == {"head": "nlvr2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, d: m.update({"x": "../outside.safetensors"}), r"'\.\./outside\.safetensors'; shards lie beside"),
        (lambda m, d: m.update({"x": "/etc/passwd"}), r"'/etc/passwd'; shards lie beside"),
        (lambda m, d: m.update({"x": ".."}), r"shards lie beside"),
        (lambda m, d: m.update({"x": 3}), r"shards lie beside"),
        (lambda m, d: m.update({"x": "a\0b"}), r"is missing"),
        (lambda m, d: m.update({"x": "model-00003-of-00003.safetensors"}), r"its part 'model-00003.*' is missing"),
        (lambda m, d: m.update({"beit3.x": "model-00002-of-00002.safetensors"}), r"lacks tensor 'beit3\.x'"),
        (
            lambda m, d: (d / "model-00002-of-00002.safetensors").write_bytes(b"x" * 20),
            r"not a whole safetensors file|text",
        ),
        (lambda m, d: (d / "model-00002-of-00002.safetensors").unlink(), r"is missing"),
    ],
)
def test_indexes_that_are_not_whole_or_lead_elsewhere_are_refused(tmp_path, change, message):
    index = write_shards(tmp_path / "m")
    content = json.loads(index.read_text())
    change(content["weight_map"], tmp_path / "m")
    index.write_text(json.dumps(content))
    with pytest.raises(BenchError, match=message) as caught:
        read_checkpoint(index)
    assert "\n" not in str(caught.value)


def test_one_part_of_several_is_not_taken_for_the_whole(tmp_path):
    write_shards(tmp_path / "m")
    refused(tmp_path / "m" / "model-00001-of-00002.safetensors", "is one of 2 parts")
    save_file(WEIGHTS, tmp_path / "model-00001-of-00001.safetensors")
    assert_whole(tmp_path / "model-00001-of-00001.safetensors")


# ---- what is no checkpoint ---------------------------------------------------------------------------------------------


def tarred(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


WHOLE = saved({"model": WEIGHTS})
KINDS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("x.pth", lambda: b"", "is empty; copy it again"),
    "released and empty": ("beit3_base_patch16_224.pth", lambda: b"", "is empty; .*beit3-bench download beit3_base_patch16_224"),
    "zeros": ("x.pth", lambda: bytes(9000), "begins with zero bytes only"),
    "lfs": ("x.pth", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git-lfs pointer.*git lfs pull"),
    "lfs safetensors": ("x.safetensors", lambda: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "page": ("x.pth", lambda: b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
    "page safetensors": ("x.safetensors", lambda: b"<html><head>", "is a web page"),
    "xml": ("x.pth", lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is XML"),
    "json": ("x.pth", lambda: b'{"error": "not found"}', "is a JSON file"),
    "configuration": ("config.json", lambda: b'{"model_type": "beit3"}', "is a JSON file"),
    "text": ("x.pth", lambda: b"404: Not Found", "is a text file .*'404: Not Found'"),
    "yaml": ("config.yaml", lambda: "größe: 3\n".encode(), "is a text file"),
    "gzip": ("x.pth.gz", lambda: gzip.compress(WHOLE), "is a gzip archive; unpack it"),
    "bzip2": ("x.pth", lambda: bz2.compress(WHOLE), "is a bzip2 archive"),
    "xz": ("x.pth", lambda: lzma.compress(WHOLE), "is an xz archive"),
    "tar": ("x.tar", lambda: tarred("x.pth"), "is a tar archive; unpack it"),
    "zip of a checkpoint": ("x.pth", lambda: zipped("m/beit3.pth"), r"is a zip archive \(it holds 'm/beit3\.pth'\); unpack it"),
    "zip of anything": ("x.pth", lambda: zipped("a.txt"), "is a zip archive without"),
    "cut zip": ("x.pth", lambda: WHOLE[: len(WHOLE) // 2], "not a whole PyTorch checkpoint: the end.*copy it again"),
    "TorchScript": ("x.pt", scripted, r"is a TorchScript archive.*torch\.jit\.load"),
    "npz": ("x.pth", numpy_archive, "is a NumPy archive"),
    "keras": ("x.keras", lambda: zipped("metadata.json", "model.weights.h5"), "is a Keras model"),
    "office": ("x.pth", lambda: zipped("[Content_Types].xml", "word/document.xml"), "office document"),
    "hdf5": ("x.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "gguf": ("x.bin", lambda: b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file"),
    "onnx": ("x.bin", lambda: b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(100), "is an ONNX model"),
    "tflite": ("x.bin", lambda: b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
    "TensorFlow": ("model.ckpt.index", lambda: bytes([1]) * 100 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "is a TensorFlow checkpoint"),
    "tokenizer": ("beit3.spm", lambda: b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2", "SentencePiece tokenizer.*--tokenizer"),
    "image": ("x.pth", lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "is an image"),
    "unfinished download": ("x.pth.part", lambda: WHOLE[:900], "is an unfinished download"),
    "binary": ("x.pth", lambda: bytes(range(1, 256)) * 9, "not a whole PyTorch checkpoint"),
    "binary safetensors": ("x.safetensors", lambda: bytes(range(1, 256)) * 9, "not a whole safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_is_named_for_what_it_is(tmp_path, kind):
    name, content, message = KINDS[kind]
    (tmp_path / name).write_bytes(content())
    text = refused(tmp_path / name, message)
    assert "; " in text, "every refusal has a mend"


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x"])
def test_the_content_decides_and_not_the_suffix(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert_whole(tmp_path / name)
    torch.save({"model": WEIGHTS}, tmp_path / name)
    assert_whole(tmp_path / name)


def test_folders_say_what_they_are(tmp_path):
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        return tmp_path / name

    refused(folder("run", "last.pth", "best.pth"), r"is a folder; name the checkpoint file in it, e\.g\. best\.pth")
    refused(folder("none"), "is a folder.*no .pth")
    refused(folder("dcp", ".metadata", "__0_0.distcp"), "distributed checkpoint.*dcp_to_torch")
    refused(folder("tf", "saved_model.pb"), "TensorFlow")
    refused(folder("unpacked", "data.pkl", "version"), "an unpacked checkpoint")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "is no regular file")
    (tmp_path / "link.pth").symlink_to("gone.pth")
    refused(tmp_path / "link.pth", r"is a link to gone\.pth, which is not there")
    refused(tmp_path / "no.pth", "checkpoint not found; released files are listed by: beit3-bench models")
    with pytest.raises(BenchError, match=r"https:/\S+: is an address; download the file"):
        read_checkpoint(Path("https://example.org/x.pth"))
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "x.pth", "checkpoint not found")


# ---- damage ------------------------------------------------------------------------------------------------------------


def forms() -> dict[str, bytes]:
    arguments = {"lr": np.float64(1e-3), "betas": (0.9, 0.98)}
    content = {"model": WEIGHTS, "args": arguments, METADATA_KEY: {"head": "retrieval"}}
    return {
        "zip": saved(content),
        "legacy": saved(content, _use_new_zipfile_serialization=False),
        "pickle": pickle.dumps(content),
    }


def spoilt(whole: bytes, chance: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(chance.choice((1, 1, 3, 20))):
        place, length = chance.randrange(len(content) or 1), chance.choice((0, 1, 1, 4, 100))
        content[place : place + length] = chance.randbytes(chance.choice((0, 1, 1, 4, length)))
    return bytes(content[: chance.randrange(len(content))] if chance.random() < 0.2 else content)


@pytest.mark.parametrize("form", [*forms(), "safetensors", "index"])
@pytest.mark.parametrize(
    "seeds", [pytest.param(range(100), id="few"), pytest.param(range(100, 600), id="many", marks=pytest.mark.slow)]
)
def test_damaged_files_are_refused_in_one_line_or_read(tmp_path, form, seeds):
    path = tmp_path / ("model.safetensors.index.json" if form == "index" else f"x.{form}")
    if form == "index":
        write_shards(tmp_path)
    elif form == "safetensors":
        save_file(WEIGHTS, path, metadata={METADATA_KEY: "{}"})
    else:
        path.write_bytes(forms()[form])
    whole = path.read_bytes()
    refusals: list[str] = []
    assert_whole(path)
    for seed in seeds:
        path.write_bytes(spoilt(whole, random.Random(f"{form} {seed}")))
        try:
            for value in read_checkpoint(path).tensors.values():
                value.float().sum()
        except BenchError as error:
            refusals.append(str(error))
    assert [line for line in refusals if "\n" in line or str(tmp_path) not in line] == []
    assert len(refusals) > len(seeds) / 4


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_whole_file_on_a_machine_without_memory_is_not_called_damaged(tmp_path, monkeypatch, name):
    path = tmp_path / name
    save_file(WEIGHTS, path) if path.suffix == ".safetensors" else torch.save({"model": WEIGHTS}, path)

    def short(*arguments: object, **options: object) -> None:
        raise RuntimeError("unable to mmap 900 bytes from file <x.pth>: Cannot allocate memory (12)")

    monkeypatch.setattr("safetensors.safe_open", short)
    monkeypatch.setattr("beit3_bench.backbones.checkpoint_files._mapped", short)
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        read_checkpoint(path)
