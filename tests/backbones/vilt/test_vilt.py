"""ViLT against transformers' own implementation, its images, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from exactness import row_lines
from native import invoke
from PIL import Image
from random_vilt import save_vilts, scrambled

from beit3_bench import load
from beit3_bench.backbones.registry import find_family, get_family, locate
from beit3_bench.backbones.vilt.images import AspectKept
from beit3_bench.backbones.vilt.loading import random_model
from beit3_bench.backbones.vilt.model import ViLTConfig, patches_of
from beit3_bench.errors import BenchError

CONFIG = ViLTConfig(
    width=64, depth=2, heads=1, ffn=128, patch_size=8, grid=4, vocab_size=120, max_text_length=12, token_types=3
)
"""Shorter side 32, longer at most 53: 4 x 6 patches."""


def as_transformers(state):
    """Official names -> those of transformers."""
    renamed = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            prefix, _, kind = name.partition(".attn.qkv.")
            number = prefix.rsplit(".", 1)[1]
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"vilt.encoder.layer.{number}.attention.attention.{part}.{kind}"] = third
            continue
        for old, new in (
            ("transformer.blocks.", "vilt.encoder.layer."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.output.dense."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            ("transformer.norm.", "vilt.layernorm."),
            ("transformer.cls_token", "vilt.embeddings.cls_token"),
            ("transformer.pos_embed", "vilt.embeddings.position_embeddings"),
            ("transformer.patch_embed.proj.", "vilt.embeddings.patch_embeddings.projection."),
            ("pooler.", "vilt.pooler."),
            ("vqa_classifier.", "classifier."),
            ("nlvr2_classifier.", "classifier."),
        ):
            name = name.replace(old, new)
        if name.startswith(("text_embeddings.", "token_type_embeddings.")):
            name = f"vilt.embeddings.{name}"
        renamed[name] = value
    return renamed


def theirs(kind, model, head="classifier", **changes):
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.ViltConfig(
        vocab_size=c.vocab_size, type_vocab_size=2, modality_type_vocab_size=c.token_types, max_position_embeddings=c.max_text_length,
        hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.ffn, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, image_size=c.image_size,
        patch_size=c.patch_size, max_image_length=-1, **changes,
    )  # fmt: skip
    other = getattr(transformers, kind)(config).eval()
    missing, unexpected = other.load_state_dict(as_transformers(model.state_dict()), strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    other.vilt.embeddings.text_embeddings.LayerNorm.eps = 1e-12  # BERT's, as in the official code
    for module in getattr(other, head).modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    return other


def unequal(generator):
    """Two images of unequal size in one tensor, with their sizes and the mask that transformers takes."""
    sizes = torch.tensor([[32, 48], [40, 32]])
    images = torch.zeros(2, 3, 40, 48)
    mask = torch.zeros(2, 40, 48, dtype=torch.long)
    for image, seen, (height, width) in zip(images, mask, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        seen[:height, :width] = 1
    return images, sizes, mask


@pytest.fixture
def texts():
    ids = torch.randint(5, CONFIG.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    padding = torch.arange(9) >= torch.tensor([[9], [6]])
    return ids, padding


def test_answers_equal_those_of_transformers_for_images_of_unequal_size(texts):
    model, (ids, padding) = scrambled(random_model("vqav2", CONFIG, 7)), texts
    images, sizes, mask = unequal(torch.Generator().manual_seed(2))
    other = theirs("ViltForQuestionAnswering", model, num_labels=7)
    with torch.no_grad():
        expected = other(ids, (~padding).long(), pixel_values=images, pixel_mask=mask).logits
        logits = model(images, ids, padding, sizes=sizes)
        alone = model(images[:1, :, :32], ids[:1], sizes=None)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, expected[:1], rtol=1e-5, atol=1e-5)


def test_two_images_equal_those_of_transformers(texts):
    model, (ids, padding) = scrambled(random_model("nlvr2", CONFIG, 2)), texts
    images, sizes, mask = unequal(torch.Generator().manual_seed(4))
    swapped = [1, 0]
    other = theirs("ViltForImagesAndTextClassification", model, num_labels=2, num_images=2)
    pairs, masks = torch.stack([images, images[swapped]], dim=1), torch.stack([mask, mask[swapped]], dim=1)
    with torch.no_grad():
        expected = other(ids, (~padding).long(), pixel_values=pairs, pixel_mask=masks).logits
        logits = model(images, images[swapped], ids, padding, sizes=(sizes, sizes[swapped]))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, model(images[swapped], images, ids, padding, sizes=(sizes[swapped], sizes)))


def test_scores_of_pairs_equal_those_of_transformers(texts):
    model, (ids, padding) = scrambled(random_model("retrieval", CONFIG, 1)), texts
    images, sizes, mask = unequal(torch.Generator().manual_seed(6))
    other = theirs("ViltForImageAndTextRetrieval", model, "rank_output")
    with torch.no_grad():
        expected = other(ids, (~padding).long(), pixel_values=images, pixel_mask=mask).logits[:, 0]
        scores = model.match(images, ids, padding, sizes=sizes)
        alone = model.rank((model.embed_image(model.cut(images[:1, :, :32]))[0], None), ids[:1])
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((640, 427), (576, 384)),
        ((1000, 200), (608, 128)),
        ((2000, 10), (608, 32)),
        ((384, 384), (384, 384)),
    ],
)
def test_sizes_are_those_of_the_official_transform(size, target):
    images = AspectKept(384, 32)

    def official(width, height, shorter=384, longer=639):
        """`MinMaxResize` of transforms/utils.py."""
        scale = shorter / min(width, height)
        new_h, new_w = (shorter, scale * width) if height < width else (scale * height, shorter)
        if max(new_h, new_w) > longer:
            scale = longer / max(new_h, new_w)
            new_h, new_w = new_h * scale, new_w * scale
        new_h, new_w = int(new_h + 0.5), int(new_w + 0.5)
        return new_w // 32 * 32, new_h // 32 * 32

    assert images.longest == 639
    if min(official(*size)):  # else the official code cannot resize it
        target = official(*size)
    assert images.target(*size) == target
    assert images.pixels(Image.new("RGB", size)).shape == (3, target[1], target[0])


def test_patches_stand_one_behind_the_other_and_then_padding():
    images = torch.arange(2 * 3 * 16 * 24, dtype=torch.float32).view(2, 3, 16, 24)
    whole = patches_of(images, 8)
    part = patches_of(images, 8, torch.tensor([[16, 24], [16, 16]]))
    assert whole.grids.tolist() == [[2, 3]] * 2
    assert torch.equal(part.values[0], whole.values[0])
    assert torch.equal(part.values[1, :4], whole.values[1, [0, 1, 3, 4]])
    convolution = torch.nn.Conv2d(3, 5, 8, 8)
    expected = convolution(images).flatten(2).transpose(1, 2)
    product = whole.values @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-1)


# ---- through the command line ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(native, tmp_path_factory):
    return save_vilts(tmp_path_factory.mktemp("vilt"), native)


def rows_of(native, files, task, folder, size):
    run = invoke(
        "run", "--task", task, "--checkpoint", files / f"{task}.ckpt", "--data-root", native.root(task), "--batch-size", size,
        "--device", "cpu", "--workers", 0, "--output", folder, *(("--split", "val") if task == "vqav2" else ()),
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    return sorted(row_lines(folder)), json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("task", ["vqav2", "nlvr2"])
def test_rows_do_not_depend_on_the_batch(native, files, task, tmp_path):
    rows, result = rows_of(native, files, task, tmp_path / "1", 1)
    assert result["model"]["family"] == "vilt"
    assert rows
    for size in (3, 16):
        assert rows_of(native, files, task, tmp_path / str(size), size)[0] == rows


def test_a_model_asked_alone_gives_what_its_module_gives(native, files, tmp_path):
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)).save(image)
    model = load(files / "nlvr2.ckpt", "nlvr2", device="cpu")
    (label, score), *_ = model.classify([(image, image)], ["There is something."])[0:1]
    assert label in ("True", "False")
    assert np.isfinite(score)


def test_files_of_other_heads_families_and_shapes_are_refused_in_a_line(native, files, tmp_path):
    def refusal(task, checkpoint, *more):
        run = invoke(
            "run", "--task", task, "--checkpoint", checkpoint, "--data-root", native.root(task), "--tokenizer", files / "vocab.txt",
            "--output", tmp_path / "run", *more,
        )  # fmt: skip
        assert run.exit_code == 2, run.output
        return run.stderr

    assert "holds the head of vqav2, nlvr2 needs tensors nlvr2_classifier.*" in refusal("nlvr2", files / "vqav2.ckpt")
    assert "holds the head of vqav2, flickr30k needs tensors rank_output.*" in refusal(
        "flickr30k", files / "vqav2.ckpt"
    )
    assert "holds the head of retrieval, vqav2 needs tensors vqa_classifier.*" in refusal(
        "vqav2", files / "retrieval.ckpt"
    )
    assert "holds the head of retrieval, nlvr2 needs tensors" in refusal("nlvr2", files / "pretrained.ckpt")
    assert "vilt offers answer, classify, match, give patches; imagenet asks embed" in refusal(
        "imagenet", files / "retrieval.ckpt"
    )
    assert "vilt offers answer, classify, match, give patches; coco-caption asks" in refusal(
        "coco-caption", files / "retrieval.ckpt"
    )
    assert "ViLT has no head for it" in refusal("snli-ve", files / "vqav2.ckpt")
    assert "takes its size from the checkpoint" in refusal("vqav2", files / "vqav2.ckpt", "--image-size", 64)
    state = torch.load(files / "vqav2.ckpt")["state_dict"]
    for change, message in (
        ({"transformer.norm.weight": None}, "1 missing (transformer.norm.weight)"),
        ({"transformer.extra": torch.zeros(2)}, "1 unexpected (transformer.extra)"),
        ({"transformer.pos_embed": torch.zeros(1, 16, 64)}, "has 16 positions"),
    ):
        torch.save({**{k: v for k, v in state.items() if k not in change}, **{k: v for k, v in change.items() if v is not None}},
                   tmp_path / "spoilt.ckpt")  # fmt: skip
        assert message in refusal("vqav2", f"vilt:{tmp_path / 'spoilt.ckpt'}")


def test_the_family_is_known_by_its_names(files):
    _, source = locate(files / "nlvr2.ckpt")
    assert find_family(source).name == "vilt"
    assert not get_family("vlmo").claims(source)


def test_num_heads_that_do_not_divide_the_width_are_refused(files):
    with pytest.raises(BenchError, match="num_heads=3: the width 64"):
        load(files / "nlvr2.ckpt", "nlvr2", device="cpu", num_heads=3)
