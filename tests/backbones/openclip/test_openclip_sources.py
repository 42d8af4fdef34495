"""What SOURCE can be, which weights a file is, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from native import invoke
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_openclip import CONFIGS, TEXT, VISION, write_tokenizer

from beit3_bench import load
from beit3_bench.backbones.openclip import loading
from beit3_bench.backbones.openclip.pixels import OpenClipPixels
from beit3_bench.backbones.openclip.sources import place_of
from beit3_bench.backbones.openclip.texts import OpenClipReader
from beit3_bench.backbones.openclip.weights import OPENAI_SHA256, WEIGHTS, tag_of
from beit3_bench.backbones.registry import find_family, locate
from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError


def texts_of(source, **options) -> np.ndarray:
    return load(source, "flickr30k", device="cpu", **options).embed(texts=["a red photo", "Of the blue"])


@pytest.fixture
def folder(zoo, tmp_path: Path) -> Path:
    """tiny-siglip's folder, to be spoiled."""
    return Path(shutil.copytree(zoo.folder / "tiny-siglip", tmp_path / "siglip"))


# ---- the forms of SOURCE ----------------------------------------------------------------------------------------------------


def test_all_forms_of_a_source_name_the_same_model(zoo, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    weights = folder / "open_clip_model.safetensors"
    expected = texts_of(f"openclip:{folder}")
    for source in (
        f"openclip:local-dir:{folder}",
        f"openclip:local-dir {folder}",
        f"openclip:{weights}",
        f"openclip:tiny-siglip/{weights}",
        "openclip:tiny-siglip/siglip/open_clip_model.safetensors",
        "openclip:siglip",
        weights,
    ):
        assert np.array_equal(texts_of(source), expected), source
    model = load(f"openclip:local-dir:{folder}", "flickr30k", device="cpu")
    assert model.card.preset == "tiny-siglip"  # the config is that of a known architecture


def test_a_source_is_cut_behind_a_known_name(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"x")
    assert place_of("ViT-B/32/x.pt") == place_of("ViT-B-32/x.pt")
    assert place_of(f"ViT-B-32/{tmp_path}/x.pt").weights == tmp_path / "x.pt"
    assert place_of(f"ViT-B-32{tmp_path}/x.pt").weights == tmp_path / "x.pt"
    assert place_of("ViT-B-32-quickgelu/x.pt").architecture == "ViT-B-32-quickgelu"


def test_a_file_beside_a_config_is_claimed(folder):
    family, source = locate(folder / "open_clip_model.safetensors")
    assert family is None
    assert find_family(source).name == "openclip"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("openclip:ViT-B-33/x.pt", "knows no architecture 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("openclip:tiny-clip", "names an architecture without weights; write openclip:tiny-clip/FILE"),
        ("openclip:tiny-clip/nothing.pt", "nothing.pt: checkpoint not found"),
        ("openclip:nothing", "no such folder or file"),
        ("openclip:local-dir:nothing", "folder not found"),
    ],
)
def test_a_source_that_names_nothing_is_refused(zoo, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=message):
        load(source, "flickr30k", device="cpu")


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "has no model_cfg with embed_dim"),
        (json.dumps({"model_cfg": {**content["model_cfg"], "text_cfg": 3}}), "no model_cfg with text_cfg"),
        (json.dumps({**content, "preprocess_cfg": [1]}), "preprocess_cfg is a list"),
        (json.dumps({**content, "preprocess_cfg": {"mean": "x", "std": 1}}), "mean 'x' of its preprocessing"),
        (json.dumps({**content, "preprocess_cfg": {"resize_mode": "naflex"}}), "resize_mode 'naflex'"),
        (json.dumps({"model_cfg": {**content["model_cfg"], "surprise": 1}}), "open_clip cannot build .*surprise"),
    ):
        config.write_text(text)
        with pytest.raises(BenchError, match=message):
            texts_of(f"openclip:{folder}")
    config.unlink()
    with pytest.raises(BenchError, match=r"has no open_clip_config\.json"):
        texts_of(f"openclip:{folder}")
    config.write_text(json.dumps(content))
    (folder / "open_clip_model.safetensors").rename(folder / "a.bin")
    shutil.copy(folder / "a.bin", folder / "b.bin")
    with pytest.raises(BenchError, match=r"several files of weights \(a\.bin, b\.bin\)"):
        texts_of(f"openclip:{folder}")
    for name in ("a.bin", "b.bin"):
        (folder / name).unlink()
    with pytest.raises(BenchError, match="but no weights"):
        texts_of(f"openclip:{folder}")


def test_a_config_that_names_the_hub_opens_no_connection(folder, no_network):
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    config.write_text(json.dumps(content))
    with pytest.raises(BenchError, match="its text tower is 'roberta-base'"):
        texts_of(f"openclip:{folder}")
    content["model_cfg"]["text_cfg"].pop("hf_model_name")
    content["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:nobody/nothing"
    config.write_text(json.dumps(content))
    with pytest.raises(BenchError, match="open_clip cannot build"):
        texts_of(f"openclip:{folder}")


# ---- weights ----------------------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture_name_their_first_tensors(zoo):
    with pytest.raises(
        BenchError,
        match=r"is not of tiny-custom: it lacks visual\.class_embedding, .* more; has other tensors \(logit_bias",
    ):
        texts_of(f"openclip:tiny-custom/{zoo.weights('tiny-siglip')}")
    with pytest.raises(BenchError, match=r"is not of ViT-S-32: it lacks .* more; has other shapes \(.* more\)"):
        texts_of(f"openclip:ViT-S-32/{zoo.weights('tiny-clip')}")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_one_tensor_more_less_or_of_another_shape_is_named(zoo, tmp_path, change):
    tensors = load_file(zoo.weights("tiny-clip"))
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[f"{name}s"] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BenchError, match=name) as caught:
        texts_of(f"openclip:tiny-clip/{tmp_path / 'x.safetensors'}")
    assert "\n" not in str(caught.value)
    if change != "extra":
        model = load(
            f"openclip:tiny-clip/{tmp_path / 'x.safetensors'}", "flickr30k", device="cpu", allow_missing=("*c_fc*",)
        )
        assert any("this measures no trained model" in note for note in model.notes)


def test_older_and_wrapped_files_are_read(zoo, tmp_path):
    tensors = load_file(zoo.weights("tiny-custom"))
    older = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in older.items()}}, tmp_path / "epoch_3.pt")
    assert np.array_equal(
        texts_of(f"openclip:tiny-custom/{tmp_path / 'epoch_3.pt'}"), texts_of(zoo.source("tiny-custom"))
    )


def test_a_torchscript_archive_is_read_and_nothing_in_it_runs(zoo, tmp_path, monkeypatch):
    """OpenAI's form: traced, in float16, with three numbers beside the weights; its activation is QuickGELU."""
    import open_clip

    module = open_clip.create_model("tiny-clip-quickgelu", load_weights=False).eval()
    for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        vars(module).pop(name, None)
        module.register_buffer(name, torch.tensor(number))
    expected = module.state_dict()
    inputs = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.trace_module(module.half().float(), inputs).save(str(tmp_path / "x.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the archive was executed"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("the archive was unpickled"))
    model = load(f"openclip:tiny-clip/{tmp_path / 'x.pt'}", "flickr30k", device="cpu")
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, expected[name].half().float() if tensor.is_floating_point() else expected[name])
    assert any("trained with QuickGELU" in note for note in model.notes)
    with torch.inference_mode():
        ids = open_clip.get_tokenizer("tiny-clip")(["a cat"])
        own = module.encode_text(ids, normalize=True).numpy()
    assert np.abs(model.embed(texts=["a cat"]) - own).max() < 1e-6
    (tmp_path / "cut.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-2000])
    with pytest.raises(BenchError, match="not a whole"):
        load(f"openclip:tiny-clip/{tmp_path / 'cut.pt'}", "flickr30k", device="cpu")


# ---- which weights they are ---------------------------------------------------------------------------------------------------


def test_the_named_activation_is_taken_and_said(zoo):
    plain = load(zoo.source("tiny-clip"), "flickr30k", device="cpu")
    quick = load(f"openclip:tiny-clip-quickgelu/{zoo.weights('tiny-clip')}", "flickr30k", device="cpu")
    assert any("name tiny-clip-quickgelu" in note for note in plain.notes)
    assert quick.notes == []
    assert plain.identity.architecture != quick.identity.architecture
    assert not np.allclose(plain.embed(texts=["a cat"]), quick.embed(texts=["a cat"]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tag", "quick", "mode", "mean", "notes"),
    [
        ("ViT-B-32", "openai", True, "shortest", 0.48145466, 1),
        ("ViT-B-32-quickgelu", "openai", True, "shortest", 0.48145466, 0),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", False, "shortest", 0.48145466, 1),
        ("ViT-L-14", "laion2b_s32b_b82k", False, "shortest", 0.5, 0),
        ("ViT-L-14", None, False, "shortest", 0.48145466, 2),
        ("ViT-B-16-SigLIP", None, False, "squash", 0.5, 0),
        ("PE-Core-B-16", None, False, "squash", 0.5, 0),
        ("ViT-H-14-quickgelu", "dfn5b", True, "squash", 0.48145466, 0),
    ],
)
def test_activation_and_pixels_are_those_of_the_weights(name, tag, quick, mode, mean, notes):
    import open_clip

    architecture = loading.Architecture(name, open_clip.get_model_config(name))
    loading._decide(open_clip, architecture, tag, None, scripted=False)
    assert architecture.config.get("quick_gelu", False) is quick
    assert (architecture.pixels["resize_mode"], architecture.pixels["mean"][0]) == (mode, mean)
    assert len(architecture.notes) == notes


def test_an_unknown_tag_is_refused(zoo):
    with pytest.raises(BenchError, match=r"-o tag=laion: open_clip has no such weights of tiny-clip"):
        texts_of(zoo.source("tiny-clip"), tag="laion")


def test_the_registry_says_what_every_file_is():
    import open_clip

    for file in WEIGHTS:
        known = open_clip.get_pretrained_cfg(file.preset, tag_of(file))
        assert known, file.name
        config = open_clip.get_model_config(file.preset)
        assert config["vision_cfg"].get("image_size", 224) == file.image_size
        assert (known["resize_mode"] == "squash") is (file.preprocessing == "squash"), file.name
        assert known["hf_hub"].rstrip("/") in file.url or known["url"] == file.url
        assert find_released(file.file) is file
        assert file.licence
        assert file.note
    assert sum(bool(file.sha256) for file in WEIGHTS) == len(OPENAI_SHA256)


def test_a_file_with_a_released_name_needs_no_architecture_and_is_known_by_its_content(zoo, tmp_path, monkeypatch):
    file = find_released("ViT-B-32.openai")
    assert place_of_renamed(tmp_path, file.file).architecture == "ViT-B-32"
    content = zoo.weights("tiny-clip").read_bytes()
    (tmp_path / "ViT-L-14.laion2b_s32b_b82k.bin").write_bytes(content)
    (tmp_path / "ViT-B-32.pt").write_bytes(content)
    with pytest.raises(BenchError, match="is not of ViT-L-14"):
        texts_of(tmp_path / "ViT-L-14.laion2b_s32b_b82k.bin")
    released, notes = loading._released(tmp_path / "ViT-B-32.pt", "00" * 32)
    assert released is None
    assert "sha256 is another" in notes[0]
    assert loading._released(tmp_path / "renamed.pt", file.sha256) == (file, [])


def place_of_renamed(folder: Path, name: str):
    (folder / name).write_bytes(b"x")
    return place_of(str(folder / name))


# ---- pixels and texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize(
    ("resize", "interpolation"), [("shortest", "bicubic"), ("squash", "bilinear"), ("longest", "bicubic")]
)
def test_pixels_are_those_of_open_clip_s_transform(tmp_path, mode, resize, interpolation):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = OpenClipPixels(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation, resize, 7)
    transform = image_transform_v2(PreprocessCfg(**pixels.to_dict()), is_train=False)
    generator = np.random.default_rng(0)
    for size in ((37, 61), (200, 33), (20, 20), (640, 40), (3, 90)):
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
        path = tmp_path / f"{size[0]}.{'tif' if mode == 'CMYK' else 'png'}"
        image.save(path)
        before = transform.transforms[:-2]
        expected = Image.open(path)
        for step in before:
            expected = step(expected)
        found = pixels.load(path)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))
        assert torch.equal(pixels.normalise(found[None])[0], transform(Image.open(path)))


def test_siglip_texts_are_made_canonical_and_padded(zoo):
    model = load(zoo.source("tiny-siglip"), "flickr30k", device="cpu")
    both = model.embed(texts=["A Photo.", "a photo", "a_photo!", "a red photo"])
    assert np.array_equal(both[0], both[1])
    assert np.array_equal(both[0], both[2])
    assert not np.allclose(both[0], both[3])
    reader = model.model.ability.reader
    assert isinstance(reader, OpenClipReader)
    ids = next(iter(reader._ids.values()))
    assert len(ids) == 64
    assert ids[-1] == 1


@pytest.mark.parametrize("kind", ["tiny-clip", "tiny-custom", "tiny-siglip", "tiny-coca"])
def test_token_ids_are_open_clip_s(zoo, kind):
    texts = ["A Photo.", "", "  café &amp; crème ", "a " * 200, "<start_of_text> x", "emoji \U0001f600", "汉字"]
    reader = load(zoo.source(kind), "flickr30k", device="cpu").model.ability.reader
    expected = zoo.reference(kind)[2](texts).numpy()
    from beit3_bench.backbones.abilities import Item

    assert np.array_equal(np.stack([reader.ids(Item(text=text)) for text in texts]), expected)


def test_a_missing_tokenizer_is_named(zoo, folder, tmp_path):
    expected = texts_of(f"openclip:{folder}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, tmp_path / name)
    with pytest.raises(BenchError, match=r"siglip/tokenizer\.json: not found; .* tokenizer of nobody/tiny-siglip"):
        texts_of(f"openclip:{folder}")
    assert np.array_equal(texts_of(f"openclip:{folder}", tokenizer=tmp_path / "tokenizer.json"), expected)
    assert np.array_equal(texts_of(f"openclip:{folder}", tokenizer=tmp_path), expected)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BenchError, match=r"tokenizer\.json: is no tokenizer that transformers reads"):
        texts_of(f"openclip:{folder}")
    write_tokenizer(folder)
    with pytest.raises(BenchError, match="leave --tokenizer out"):
        texts_of(zoo.source("tiny-clip"), tokenizer=folder / "tokenizer.json")


def test_a_tokenizer_of_another_vocabulary_is_refused(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 5
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = folder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    tensors["text.token_embedding.weight"] = tensors["text.token_embedding.weight"][:5].clone()
    save_file(tensors, weights)
    with pytest.raises(BenchError, match="has 5 token embeddings, but the tokenizer emits id"):
        texts_of(f"openclip:{folder}")


# ---- options and what is not there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny-clip", "tiny-siglip"])
def test_another_image_size_interpolates_positions(zoo, tmp_path, kind):
    model = load(zoo.source(kind), "flickr30k", device="cpu", image_size=96)
    assert (model.card.image_size, model.card.preprocessing["size"]) == (96, 96)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8))
    assert model.embed(images=[image]).shape == (1, CONFIGS[kind]["embed_dim"])


def test_options_that_mean_nothing_here_are_refused(zoo, world):
    with pytest.raises(BenchError, match="the architecture is part of the source"):
        texts_of(zoo.source("tiny-clip"), preset="base")
    with pytest.raises(BenchError, match="openclip offers embed, caption, give patches; vqav2 asks answer"):
        load(zoo.source("tiny-clip"), "vqav2", device="cpu")


def test_without_the_package_the_install_line_is_said_and_all_else_works(zoo, world, tmp_path, monkeypatch):
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "open_clip" else real(name, *a))
    for task in ("flickr30k", "imagenet"):
        words = ["run", "--task", task, "--checkpoint", zoo.source("tiny-clip"), "--data-root", world / task]
        done = invoke(*words, "--device", "cpu", "--output", tmp_path / task)
        said = done.output + str(done.exception)
        assert "pip install 'open_clip_torch>=3.2,<4'" in said, said
    listed = invoke("models")
    assert "ViT-L-14.laion2b_s32b_b82k" in listed.output


def test_a_square_is_asked_for():
    with pytest.raises(BenchError, match="no square"):
        OpenClipPixels.of({"size": [32, 48], "mean": 0.5, "std": 0.5}, "x")
    assert VISION["image_size"] == TEXT["width"] == 32


@pytest.mark.parametrize(
    ("kind", "size"), [("tiny-siglip", 33), ("tiny-siglip", 1), ("tiny-clip", 1), ("tiny-coca", 1)]
)
def test_a_size_that_a_network_cannot_take_is_refused(zoo, kind, size):
    with pytest.raises(BenchError, match=f"cannot be asked with --image-size {size} ") as error:
        load(f"openclip:{kind}/{zoo.weights(kind)}", "flickr30k", device="cpu", image_size=size)
    assert "\n" not in str(error.value)


def test_half_a_character_is_no_text(zoo):
    model = load(f"openclip:tiny-clip/{zoo.weights('tiny-clip')}", "flickr30k", device="cpu")
    with pytest.raises(BenchError, match=r"example 1: .*lone surrogates"):
        model.embed(texts=["a", "\ud800"])
