"""Every tensor that VLMo's official code gave, within the noise of float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from vlmo_golden import (
    ARCHITECTURES,
    IMAGES,
    assert_golden,
    document,
    inputs,
    model,
    state,
    tensors,
    tolerance,
)

from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.vlmo.model import TEXT_EPS, lengths_of, relative_positions

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return request.param


def six(arch):
    """Images, token ids and padding of the first six pairs."""
    return inputs(arch, "images")[:6], inputs(arch, "text_ids")[:6], 1 - inputs(arch, "text_masks")[:6]


def fused(net, images, ids, padding):
    """All tokens behind the final norm: the image's and the text's."""
    states = net.encode(net.embed_image(images), net.embed_text(ids), lengths_of(padding), vl=True)
    return net.transformer.norm(states).split([net.config.image_tokens, ids.shape[1]], dim=1)


def projected(net, weights, states, name):
    first = net.transformer.norm(states)[:, 0]
    return F.normalize(F.linear(first, weights[f"{name}.fc.weight"]), dim=-1)


def test_one_modality_with_its_own_and_with_the_shared_experts(arch):
    net, weights = model(arch, "pretrain"), state(arch, "pretrain")
    images, ids, padding = six(arch)
    image, text, lengths = net.embed_image(images), net.embed_text(ids), lengths_of(padding)
    for kind, feats, parts in (
        ("image", "image_feats", (image, None, None)),
        ("text", "text_feats", (None, text, lengths)),
    ):
        states = net.encode(*parts, vl=False)
        assert_golden(f"{arch}.{kind}.{feats}", net.transformer.norm(states))
        assert_golden(f"{arch}.{kind}.raw_cls_feats", states[:, 0])
        both = net.encode(*parts, vl=True)
        assert_golden(f"{arch}.{kind}.cls_vlffn_feats", projected(net, weights, both, f"itc_vl_{kind}_proj"))
    assert_golden(f"{arch}.image.cls_feats", net.encode_image(images))
    assert_golden(f"{arch}.text.cls_feats", net.encode_text(ids, padding))
    scale = weights["logit_scale"].exp()
    assert_golden(f"{arch}.itc.logits_per_image", scale * net.encode_image(images) @ net.encode_text(ids, padding).t())
    vl = [
        projected(net, weights, net.encode(*parts, vl=True), f"itc_vl_{kind}_proj")
        for kind, parts in (("image", (image, None, None)), ("text", (None, text, lengths)))
    ]
    assert_golden(f"{arch}.itc.vl_logits_per_image", weights["logit_vl_scale"].exp() * vl[0] @ vl[1].t())


def matching(net, weights, images, ids, padding):
    """ITM logits of pairs, by the head of pre-training."""
    pooled = net.pooler(net.fused_state(net.embed_image(images), ids, padding))
    return F.linear(pooled, weights["itm_score.fc.weight"], weights["itm_score.fc.bias"])


def test_image_and_text_fused(arch):
    net, weights = model(arch, "pretrain"), state(arch, "pretrain")
    image, text = fused(net, *six(arch))
    assert_golden(f"{arch}.fused.image_feats", image)
    assert_golden(f"{arch}.fused.text_feats", text)
    assert_golden(f"{arch}.fused.raw_cls_feats", text[:, 0])
    assert_golden(f"{arch}.fused.cls_feats", net.pooler(text[:, 0]))
    assert_golden(f"{arch}.fused.itm_logits", matching(net, weights, *six(arch)))
    head = {name.removeprefix("mlm_score."): value for name, value in weights.items() if name.startswith("mlm_score.")}
    hidden = F.gelu(F.linear(text, head["transform.dense.weight"], head["transform.dense.bias"]))
    norm = (head["transform.LayerNorm.weight"], head["transform.LayerNorm.bias"])
    hidden = F.layer_norm(hidden, hidden.shape[-1:], *norm, eps=TEXT_EPS)
    assert_golden(f"{arch}.fused.mlm_logits", F.linear(hidden, head["decoder.weight"], head["bias"]))


def test_retrieval(arch):
    net = model(arch, "irtr")
    images = net.encode_image(inputs(arch, "images"))
    texts = net.encode_text(inputs(arch, "text_ids"), 1 - inputs(arch, "text_masks"))
    assert_golden(f"{arch}.irtr.image_cls_feats", images)
    assert_golden(f"{arch}.irtr.text_cls_feats", texts)
    assert_golden(f"{arch}.irtr.scores", images @ texts.t())
    owner = inputs(arch, "text_img_index")
    expected = document("recalls")["recalls"][f"{arch}.irtr"]
    scores = images @ texts.t()
    for k in (1, 5, 10):
        found = owner[scores.topk(k, dim=1).indices] == torch.arange(len(images))[:, None]
        assert found.any(1).float().mean().item() == pytest.approx(expected[f"tr_r{k}"])
        found = scores.topk(k, dim=0).indices == owner[None, :]
        assert found.any(0).float().mean().item() == pytest.approx(expected[f"ir_r{k}"])


def test_image_text_matching_of_the_best_by_cosine(arch):
    """Official `compute_irtr_recall_with_rerank`: nothing calls it there; it holds the fused pass to all pairs."""
    net, weights, wanted = model(arch, "pretrain"), state(arch, "pretrain"), tensors("outputs")
    images, ids, padding = inputs(arch, "images"), inputs(arch, "text_ids"), 1 - inputs(arch, "text_masks")
    cosine = net.encode_image(images) @ net.encode_text(ids, padding).t()
    torch.testing.assert_close(cosine, wanted[f"{arch}.rerank.itc_scores"], rtol=0, atol=1e-5)
    for direction, scores in (("i2t", cosine), ("t2i", cosine.t())):
        expected = wanted[f"{arch}.rerank.itm_scores_{direction}"]
        best = scores.topk(document("recalls")["k_test"], dim=1).indices
        assert torch.equal(best.sort(dim=1).values, (expected > -100).nonzero()[:, 1].view(best.shape))
        query = torch.arange(len(scores))[:, None].expand_as(best).flatten()
        image, text = (query, best.flatten()) if direction == "i2t" else (best.flatten(), query)
        logits = matching(net, weights, images[image], ids[text], padding[text])[:, 1]
        atol = 2 * tolerance(f"{arch}.fused.itm_logits")
        torch.testing.assert_close(logits, expected[query, best.flatten()], rtol=0, atol=atol)


def test_answers(arch):
    logits = model(arch, "vqa")(*six(arch))
    assert_golden(f"{arch}.vqa.logits", logits)
    assert torch.equal(logits.argmax(dim=-1), tensors("outputs")[f"{arch}.vqa.pred"])
    data = document("data")["archs"][arch]
    targets = torch.zeros_like(logits)
    for row, labels, scores in zip(targets, data["vqa_labels"], data["vqa_scores"], strict=True):
        row[labels] = torch.tensor(scores)
    loss = F.binary_cross_entropy_with_logits(logits, targets) * logits.shape[1]
    torch.testing.assert_close(loss, tensors("outputs")[f"{arch}.vqa.loss"], rtol=1e-6, atol=1e-6)
    soft = targets.gather(1, logits.argmax(dim=-1, keepdim=True)).mean()
    torch.testing.assert_close(soft, tensors("outputs")[f"{arch}.vqa.score"])


def test_questions_may_share_an_image(arch):
    net = model(arch, "vqa")
    images, ids, padding = six(arch)
    index = torch.tensor([0, 0, 1, 5, 5, 5])
    shared = net(images[[0, 2, 5]], ids, padding, torch.tensor([0, 0, 1, 2, 2, 2]))
    torch.testing.assert_close(shared, net(images[index * 0 + torch.tensor([0, 0, 2, 5, 5, 5])], ids, padding))


def test_pairs_of_images(arch):
    images, ids, padding = six(arch)
    logits = model(arch, "nlvr2")(images, inputs(arch, "images")[6:12], ids, padding)
    assert_golden(f"{arch}.nlvr2.logits", logits)
    answers = torch.tensor(document("data")["archs"][arch]["nlvr2_answers"])
    loss = F.cross_entropy(logits, answers.long())
    torch.testing.assert_close(loss, tensors("outputs")[f"{arch}.nlvr2.loss"], rtol=1e-6, atol=1e-6)
    right = (logits.argmax(dim=-1) == answers.long()).float()
    for split, rows in (("dev", right[1::2]), ("test", right[0::2])):
        torch.testing.assert_close(rows.mean(), tensors("outputs")[f"{arch}.nlvr2.{split}_accuracy"])


@pytest.mark.parametrize(("arch", "size"), [("relpos", 56), ("relpos", 32), ("abspos", 48), ("abspos", 24)])
def test_another_image_size(arch, size):
    net = model(arch, "vqa", size)
    name, table = {
        "relpos": ("relative_position_bias_table", net.relative_position_bias_table),
        "abspos": ("pos_embed", net.transformer.pos_embed),
    }[arch]
    torch.testing.assert_close(table, tensors("outputs")[f"{arch}.interp{size}.{name}"], rtol=0, atol=1e-6)
    ids, padding = inputs(arch, "text_ids")[:2], 1 - inputs(arch, "text_masks")[:2]
    images = inputs(arch, f"images_{size}")
    assert_golden(f"{arch}.interp{size}.vqa_logits", net(images, ids, padding))
    assert_golden(
        f"{arch}.interp{size}.fused_cls_feats", net.pooler(net.fused_state(net.embed_image(images), ids, padding))
    )


def test_a_file_with_positions_for_longer_texts():
    longer = tensors("abspos.textcut")
    net = model("abspos", "pretrain", **longer)
    assert torch.equal(
        net.text_embeddings.position_embeddings.weight, tensors("outputs")["abspos.textcut.position_embeddings"]
    )
    _, ids, padding = six("abspos")
    assert_golden("abspos.textcut.text_cls_feats", net.encode_text(ids, padding))


def test_rows_of_the_bias_table_are_those_of_the_official_index_buffers():
    config = document("manifest")["config"]["archs"]["relpos"]
    grid, length = config["image_size"] // config["patch_size"], config["max_text_len"]
    index = relative_positions(grid, length, config["max_text_len_of_initckpt"])
    image = grid**2 + 1
    official = tensors("relpos.index_buffers")
    assert torch.equal(index[:image, :image], official["relative_position_index"])
    assert torch.equal(index[image:, image:], official["text_relative_position_index"])
    text_first = torch.cat([torch.arange(image, image + length), torch.arange(image)])
    assert torch.equal(index[text_first][:, text_first], official["text_imag_relative_position_index"])


def test_pixels_are_those_of_the_official_transform(arch):
    sizes = {"relpos": {"": 40, "_56": 56, "_32": 32}, "abspos": {"": 32, "_48": 48, "_24": 24}}[arch]
    for name, size in sizes.items():
        wanted = inputs(arch, f"images{name}")
        preprocessing = Preprocessing(size)
        pixels = torch.stack([preprocessing.load(path) for path in IMAGES[: len(wanted)]])
        torch.testing.assert_close(preprocessing.normalise(pixels), wanted, rtol=0, atol=1e-6)


def test_padding_changes_nothing(arch):
    net, fusing = model(arch, "irtr"), model(arch, "vqa")
    images, ids, padding = six(arch)
    lengths = lengths_of(padding)
    together = net.encode_text(ids, padding), fusing(images, ids, padding)
    for n, length in enumerate(lengths):
        alone = net.encode_text(ids[n : n + 1, :length]), fusing(images[n : n + 1], ids[n : n + 1, :length])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[n], rtol=0, atol=2e-6)


def test_biases_are_not_kept_from_other_weights():
    with torch.inference_mode(False), torch.no_grad():
        net = model("relpos", "irtr")
        images = inputs("relpos", "images")[:2]
        before = net.encode_image(images)
        net.relative_position_bias_table.mul_(3)
        assert not torch.allclose(net.encode_image(images), before)
