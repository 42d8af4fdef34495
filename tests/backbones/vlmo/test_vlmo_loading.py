"""From a file to a network: shapes of the official classes, wrappers, and files that do not fit."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from vlmo_golden import (
    FOLDER,
    HEADS,
    IMAGES,
    MANIFESTS,
    VOCABULARY,
    assert_golden,
    document,
    inputs,
    state,
    tensors,
    write_file,
)

from beit3_bench import load
from beit3_bench.backbones.registry import find_family, locate
from beit3_bench.backbones.vlmo.config import PRESETS, Settings, VLMoConfig, shape_of_file
from beit3_bench.backbones.vlmo.loading import build, official_state_dict
from beit3_bench.errors import BenchError

NAME = re.compile(r"vlmo_(base_plus|base|large)_(\w+)_(\d+)\.txt")
FULL = sorted(path.name for path in MANIFESTS.glob("vlmo_*.txt"))
LAST = {"retrieval": 0, "vqav2": 3129, "nlvr2": 2}


def full_size(name):
    """Tensors of an official class, without values."""
    lines = (MANIFESTS / name).read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape in pairs}


def built(weights, head):
    return build(head, shape_of_file(weights, "file", Settings()), LAST[head], weights, "file")


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_of_the_official_classes_has_its_place(name):
    preset, task, size = NAME.fullmatch(name).groups()
    head, weights = HEADS[task], full_size(name)
    module, filled, resized = built(weights, head)
    assert module.config == VLMoConfig.preset(preset, image_size=int(size), token_types=3 if head == "nlvr2" else 2)
    assert (filled.missing, filled.unexpected, resized) == ([], [], {})
    unread = {n for n in weights if task == "pretrain" and n.startswith(("mlm_", "itm_", "itc_vl_", "logit_vl_"))}
    assert set(official_state_dict(module)) == set(weights) - unread
    millions = {"base": 177, "base_plus": 168, "large": 565}[preset]
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize("name", ["vlmo_base_irtr_384.txt", "vlmo_base_vqa_480.txt", "vlmo_base_plus_nlvr2_384.txt"])
def test_one_name_too_few_or_too_many_is_named(name):
    head, whole = HEADS[NAME.fullmatch(name)[2]], full_size(name)
    for absent in whole:
        with pytest.raises(BenchError, match=re.escape(absent)):
            built({key: value for key, value in whole.items() if key != absent}, head)
    strays = ("foo", "relative_position", "vqa_classifier.4.weight")
    layers = ("3.norm3.weight", "2.norm2_vl.bias", "12345.norm1.bias")
    for extra in (*strays, *(f"transformer.blocks.{layer}" for layer in layers)):
        with pytest.raises(BenchError, match=rf"1 unexpected \({re.escape(extra)}\)"):
            built({**whole, extra: torch.empty(3, device="meta")}, head)
    for misshapen in ("transformer.norm.weight", "pooler.dense.weight"):
        with pytest.raises(BenchError, match=rf"1 of another shape \({misshapen} \(3,\) instead of"):
            built({**whole, misshapen: torch.empty(3, device="meta")}, head)


def test_index_buffers_are_ignored_and_tell_the_image_size():
    weights = {**state("relpos", "irtr"), **tensors("relpos.index_buffers")}
    shape = shape_of_file(weights, "file", Settings())
    assert (shape.grid, shape.config.initial_text_length, shape.notes) == (5, 20, ())
    assert build("retrieval", shape, 0, weights, "file")[1].unexpected == []


def test_what_a_table_does_not_tell_is_said_or_taken_with_a_note():
    weights = state("relpos", "irtr")
    guessed = shape_of_file(weights, "file", Settings())
    assert guessed.grid == 5
    assert "taken to be for 5x5 patches and texts of 20 tokens" in guessed.notes[0]
    assert shape_of_file(weights, "file", Settings(image_size=40)).notes == ()
    said = shape_of_file(weights, "file", Settings(initial_text_length=36))
    assert (said.grid, said.notes) == (4, ())
    with pytest.raises(BenchError, match="126 rows, which are not those of a square image and of texts of 21 tokens"):
        shape_of_file(weights, "file", Settings(initial_text_length=21))


@pytest.mark.parametrize("wrap", ["flat", "state_dict", "module", "model", "lightning"])
def test_wrappers_of_training_frameworks(wrap, tmp_path):
    weights = state("abspos", "irtr")
    content = {
        "flat": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "module": {"module": {f"module.{name}": value for name, value in weights.items()}, "optimizer": {}},
        "model": {"model": weights},
        "lightning": {"state_dict": weights, "optimizer_states": [{"state": {}}], "hyper_parameters": {"config": {}}},
    }[wrap]
    path = write_file(tmp_path / "vlmo.pt", content)
    model = load(path, "flickr30k", num_heads=4, device="cpu")
    assert_golden("abspos.irtr.image_cls_feats", torch.from_numpy(model.embed(images=IMAGES)))
    assert model.card.preset is None
    assert model.card.protocol == "dual encoder"


def test_the_api_gives_the_golden_values(tmp_path):
    for arch in ("relpos", "abspos"):
        texts = document("data")["archs"][arch]["texts"]
        size = document("manifest")["config"]["archs"][arch]["image_size"]
        how = {"num_heads": 4, "image_size": size, "device": "cpu", "tokenizer": VOCABULARY}
        path = write_file(tmp_path / f"{arch}.pt", state(arch, "irtr"))
        model = load(f"vlmo:{path}", "coco-retrieval", **how)
        assert_golden(f"{arch}.irtr.image_cls_feats", torch.from_numpy(model.embed(images=IMAGES)))
        assert_golden(f"{arch}.irtr.text_cls_feats", torch.from_numpy(model.embed(texts=texts)))
        ids, padding = inputs(arch, "text_ids"), 1 - inputs(arch, "text_masks")
        with torch.inference_mode():
            assert_golden(f"{arch}.irtr.text_cls_feats", model.module.encode_text(ids, padding))

        answers = [f"answer {n}" for n in range(document("manifest")["config"]["archs"][arch]["num_answers"])]
        path = write_file(tmp_path / f"{arch}-vqa.pt", state(arch, "vqa"))
        model = load(path, "vqav2", answers=answers, **how)
        predicted = tensors("outputs")[f"{arch}.vqa.pred"].tolist()
        assert model.answer(IMAGES[:6], texts[:6]) == [answers[n] for n in predicted]

        path = write_file(tmp_path / f"{arch}-nlvr2.pt", state(arch, "nlvr2"))
        model = load(path, "nlvr2", **how)
        logits = tensors("outputs")[f"{arch}.nlvr2.logits"]
        labels = [label for label, _ in model.classify(list(zip(IMAGES[:6], IMAGES[6:12], strict=True)), texts[:6])]
        assert labels == [("False", "True")[n] for n in logits.argmax(dim=-1).tolist()]
        assert model.labels == ("False", "True")


def test_a_released_file_reads_as_it_is():
    family, source = locate(FOLDER / "vlmo_abspos_irtr.pt")
    assert family is None
    assert find_family(source).name == "vlmo"
    model = load(source.path, "flickr30k", num_heads=4, device="cpu")
    assert_golden("abspos.irtr.image_cls_feats", torch.from_numpy(model.embed(images=IMAGES)))


def test_a_head_may_get_another_image_size(tmp_path):
    path = write_file(tmp_path / "vqa.pt", state("relpos", "vqa"))
    model = load(path, "vqav2", image_size=56, device="cpu", answers=[str(n) for n in range(17)])
    assert model.model.resized == {"relative_position_bias_table": "5x5 -> 7x7"}
    ids, padding = inputs("relpos", "text_ids")[:2], 1 - inputs("relpos", "text_masks")[:2]
    with torch.inference_mode():
        assert_golden("relpos.interp56.vqa_logits", model.module(inputs("relpos", "images_56"), ids, padding))


# ---- files that do not fit ----------------------------------------------------------------------------------------------


def refused(path, task, **options):
    with pytest.raises(BenchError) as error:
        load(path, task, device="cpu", **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_files_of_other_systems_are_refused_with_names_of_theirs(tmp_path):
    albef = {
        "visual_encoder.blocks.0.norm1.weight": torch.ones(3),
        "text_encoder.embeddings.x": torch.ones(3),
        "temp": torch.ones(1),
    }
    path = write_file(tmp_path / "albef.pth", albef)
    line = refused(f"vlmo:{path}", "flickr30k")
    assert line.startswith(
        f"{path}: tensor 'transformer.patch_embed.proj.weight' is missing; this is no VLMo checkpoint"
    )
    assert "it has temp, text_encoder.embeddings.x, visual_encoder.blocks.0.norm1.weight" in line
    assert "is of no known family (beit3, vlmo" in refused(path, "flickr30k")
    vilt = {f"transformer.blocks.0.{part}.weight": torch.ones(3, 3) for part in ("norm2", "mlp.fc1", "attn.qkv")}
    assert "is of no known family" in refused(write_file(tmp_path / "vilt.ckpt", vilt), "flickr30k")


def test_heads_of_other_tasks_and_of_other_lengths_are_refused(tmp_path):
    retrieval = write_file(tmp_path / "irtr.pt", state("relpos", "irtr"))
    line = refused(retrieval, "vqav2")
    assert (
        line
        == f"{retrieval}: holds the head of retrieval, vqav2 needs tensors vqa_classifier.*; give a checkpoint of vqav2"
    )
    vqa = write_file(tmp_path / "vqa.pt", state("relpos", "vqa"))
    assert "holds the head of vqav2, nlvr2 needs tensors nlvr2_classifier.*" in refused(vqa, "nlvr2")
    assert "its head has 17 answers, answers has 3" in refused(vqa, "vqav2", answers=["a", "b", "c"])


def test_a_tokenizer_that_is_missing_or_of_another_length(tmp_path):
    path = write_file(tmp_path / "irtr.pt", state("relpos", "irtr"))
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY.read_bytes() + b"more\n")
    line = refused(path, "flickr30k")
    assert f"has 203 token embeddings, but {tmp_path}/vocab.txt has 204 entries" in line
    (tmp_path / "vocab.txt").unlink()
    assert f"there is no {tmp_path}/vocab.txt" in refused(path, "flickr30k")


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        ("flickr30k", {}, "the number of attention heads does not show in a file of width 32"),
        ("flickr30k", {"num_heads": 5}, "a width of 32 does not divide into 5 heads"),
        ("flickr30k", {"num_heads": 4, "image_size": 33}, "an image of 33 pixels does not divide into patches of 8"),
        ("flickr30k", {"num_heads": 4, "max_text_length": 11}, "has positions for texts of 10 tokens, not of 11"),
        ("flickr30k", {"num_heads": 4, "preset": "base"}, "is not a VLMo base: 3 layers of width 32"),
        (
            "coco-caption",
            {},
            "is of no known family|offers embed, answer, classify, give patches; coco-caption asks caption",
        ),
        ("imagenet-linear", {}, "VLMo has no head for it"),
    ],
)
def test_options_that_do_not_fit(task, options, line, tmp_path):
    path = write_file(tmp_path / "irtr.pt", state("abspos", "irtr"))
    assert re.search(line, refused(f"vlmo:{path}", task, **options))


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("transformer.patch_embed.proj.weight", (32, 3, 0, 0), "'transformer.patch_embed.proj.weight' is empty"),
        ("transformer.patch_embed.proj.weight", (32, 3), "has 2 dimensions instead of 4"),
        (
            "transformer.pos_embed",
            (1, 19, 32),
            "'transformer.pos_embed' has 19 rows, which are not those of a square image",
        ),
        ("token_type_embeddings.weight", (1, 32), "has 1 rows, flickr30k needs 2"),
        ("text_embeddings.word_embeddings.weight", (0, 32), "has 0 token embeddings"),
        ("transformer.blocks.1.attn.qkv.weight", (96, 31), "1 of another shape"),
        ("transformer.blocks.1.attn.q_bias", (31,), "1 of another shape"),
    ],
)
def test_misshapen_tensors(name, shape, line, tmp_path):
    path = write_file(tmp_path / "irtr.pt", {**state("abspos", "irtr"), name: torch.zeros(shape)})
    assert line in refused(path, "flickr30k", num_heads=4)


def test_files_without_whole_parts(tmp_path):
    weights = state("abspos", "irtr")
    without = {name: value for name, value in weights.items() if "_vl." not in name}
    path = write_file(tmp_path / "irtr.pt", without)
    assert "has no vision-language expert in its last layer" in refused(path, "flickr30k", num_heads=4)
    without = {name: value for name, value in state("relpos", "irtr").items() if "blocks.2." not in name}
    path = write_file(tmp_path / "relpos.pt", without)
    assert "no vision-language expert in its last layer" in refused(path, "flickr30k")


def test_numbers_that_are_no_floats_and_heads_that_are_none(tmp_path):
    weights = state("abspos", "irtr")
    path = write_file(tmp_path / "irtr.pt", weights)
    assert "does not divide into 0 heads" in refused(path, "flickr30k", num_heads=0)
    whole = {**weights, "pooler.dense.bias": torch.zeros(32, dtype=torch.int64)}
    path = write_file(tmp_path / "int.pt", whole)
    assert "pooler.dense.bias torch.int64 instead of floating-point numbers" in refused(path, "flickr30k", num_heads=4)
    pair = {**state("relpos", "nlvr2"), "token_type_embeddings.weight": torch.zeros(2, 48)}
    assert "has 2 rows, nlvr2 needs 3" in refused(write_file(tmp_path / "nlvr2.pt", pair), "nlvr2")


def test_heads_that_the_table_contradicts(tmp_path):
    path = write_file(tmp_path / "irtr.pt", state("relpos", "irtr"))
    assert "is for 4 heads, not 8; leave num_heads out" in refused(path, "flickr30k", num_heads=8)


def test_missing_tensors_that_are_allowed_keep_random_values(tmp_path):
    weights = state("relpos", "vqa")
    path = write_file(tmp_path / "vqa.pt", {n: v for n, v in weights.items() if not n.startswith("vqa_classifier")})
    model = load(path, "vqav2", allow_missing=["vqa_classifier.*"], answers=["a", "b"], device="cpu")
    assert model.model.random
    assert len(model.model.missing) == 6
    assert any("6 tensors kept random values" in note for note in model.notes)
    assert set(model.answer(IMAGES[:2], ["what", "who"])) <= {"a", "b"}


def test_presets_are_the_official_architectures():
    assert set(PRESETS) == {"base", "base_plus", "large"}
    for name in PRESETS:
        assert VLMoConfig.preset(name).preset_name == name


@pytest.mark.parametrize("length", [0, 1, 2, -4])
def test_a_length_of_texts_that_cannot_be_is_refused(tmp_path, length):
    path = write_file(tmp_path / "irtr.pt", state("relpos", "irtr"))
    assert "give a max_text_length of 3 to" in refused(path, "flickr30k", max_text_length=length)
