"""Parity with the official BEiT-3 code: every tensor of tests/golden/beit3 that a model computes (README.md there)."""

from __future__ import annotations

import beit3_golden as golden
import pytest
import torch
import torch.nn.functional as F
from beit3_golden import assert_golden, images, inputs, outputs, tensors
from torch import Tensor

from beit3_bench.backbones import load_checkpoint
from beit3_bench.backbones.beit3.checkpoint import VISION_POSITIONS, official_names
from beit3_bench.backbones.beit3.generation import Decoding, decode_step, encode_images, search
from beit3_bench.backbones.beit3.multiway import Streams

pytestmark = pytest.mark.isa
PATCHES = golden.CONFIG.num_patches
BEAM_CASES = golden.document("beam")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def joined(streams: Streams) -> Tensor:
    """Image and text hidden states in the official order, one sequence."""
    return torch.cat([x for x in streams if x is not None], dim=1)


def text_of(task: str, mask: str = "int64") -> tuple[Tensor, Tensor | None]:
    """Token ids and padding mask of a task; mask: ``int64``, ``bool`` or ``none``."""
    padding = inputs()[f"{task}.padding_mask"]
    return inputs()[f"{task}.tokens"], {"int64": padding, "bool": padding.bool(), "none": None}[mask]


# ---- encoder ----------------------------------------------------------------------------------------------------------


def test_vision_only_encoder_output():
    assert_golden("backbone.vision_only", joined(golden.model("retrieval").beit3(images("retrieval"))))


def test_masked_patches_take_the_mask_token_before_positions():
    masked = inputs()["vision_masked_position"]
    ours = golden.model("retrieval").beit3(inputs()["images"][: len(masked)], masked_patches=masked)
    assert_golden("backbone.vision_only_masked_patches", joined(ours))


@pytest.mark.parametrize(
    ("name", "mask"), [("language_only", "int64"), ("language_only", "bool"), ("language_only_no_mask", "none")]
)
def test_language_only_encoder_output_including_pad_rows(name, mask):
    tokens, padding = text_of("retrieval", mask)
    assert_golden(f"backbone.{name}", joined(golden.model("retrieval").beit3(token_ids=tokens, padding_mask=padding)))


@pytest.mark.parametrize(("name", "mask"), [("fused", "int64"), ("fused", "bool"), ("fused_no_mask", "none")])
def test_fused_encoder_output_including_pad_rows(name, mask):
    tokens, padding = text_of("retrieval", mask)
    assert_golden(f"backbone.{name}", joined(golden.model("retrieval").beit3(images("retrieval"), tokens, padding)))


def test_pad_rows_would_betray_embeddings_that_are_not_zeroed():
    """The comparison above is meant to see PAD rows: without the zeroing they move far, and only they."""
    tokens, padding = text_of("retrieval")
    beit3 = golden.model("retrieval").beit3
    mask = beit3.attention_mask(padding, 0, tokens.shape[1], False, tokens.device)
    text = beit3.embed_text(tokens)
    for layer in beit3.encoder.layers:
        _, text = layer(None, text, mask)
    ours, padded = beit3.encoder.finish("B", text), padding.bool()
    assert_golden("backbone.language_only", ours, where=~padded)
    assert (ours - outputs()["backbone.language_only"]).abs()[padded].max() > 0.1


class TestTrace:
    """Two fused pairs, layer by layer."""

    @pytest.fixture
    def fused(self):
        """Inputs of every layer, and the final states."""
        beit3 = golden.model("retrieval").beit3
        tokens, padding = (x[:2] for x in text_of("retrieval"))
        image, text = beit3.embed_image(images("retrieval")[:2]), beit3.embed_text(tokens, padding)
        mask = beit3.attention_mask(padding, PATCHES + 1, tokens.shape[1], False, tokens.device)
        states = [Streams(image, text)]
        for layer in beit3.encoder.layers:
            states.append(Streams(*layer(*states[-1], mask)))
        return beit3, states, mask

    def test_token_embeddings_before_positions(self):
        beit3 = golden.model("retrieval").beit3
        tokens = text_of("retrieval")[0][:2]
        ours = torch.cat([beit3.vision_embed(images("retrieval")[:2]), beit3.text_embed(tokens)], dim=1)
        assert_golden("trace.fused2.token_embedding_before_positions", ours)

    def test_embeddings_with_positions_and_zeroed_pads(self, fused):
        assert_golden("trace.fused2.layer_0_in", joined(fused[1][0]))

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_output_of_each_layer(self, fused, index):
        assert_golden(f"trace.fused2.layer_{index}_out", joined(fused[1][index + 1]))

    def test_final_norm(self, fused):
        beit3, states, _ = fused
        ours = Streams(beit3.encoder.finish("A", states[-1].image), beit3.encoder.finish("B", states[-1].text))
        assert_golden("trace.fused2.encoder_out", joined(ours))

    def test_inside_the_first_layer(self, fused):
        beit3, states, mask = fused
        layer = beit3.encoder.layers[0]
        attn = layer.self_attn
        parts = dict(zip("AB", states[0], strict=True))
        q, k, v = zip(*(attn.project(b, layer.self_attn_layer_norm.of(b)(x)) for b, x in parts.items()), strict=True)
        q, k, v = (torch.cat(x, dim=2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) * golden.CONFIG.head_dim**-0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        assert_golden("trace.fused2.layer_0.attn_weights_hbts", weights.transpose(0, 1).contiguous())
        merged = (weights @ v).transpose(1, 2).flatten(2)
        assert_golden("trace.fused2.layer_0.before_inner_attn_ln", merged)
        out = {
            "A": attn.merge("A", (weights @ v)[:, :, : PATCHES + 1]),
            "B": attn.merge("B", (weights @ v)[:, :, PATCHES + 1 :]),
        }
        assert_golden("trace.fused2.layer_0.attn_out", torch.cat(list(out.values()), dim=1))
        grown = {b: parts[b] + out[b] for b in parts}
        ffn = [layer.feed_forward(x, b, None) - x for b, x in grown.items()]
        assert_golden("trace.fused2.layer_0.ffn_out", torch.cat(ffn, dim=1))


# ---- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["int64", "bool"])
def test_retrieval_embeddings(mask):
    model = golden.model("retrieval")
    assert_golden("retrieval.vision_cls", model.encode_image(images("retrieval")))
    assert_golden("retrieval.language_cls", model.encode_text(*text_of("retrieval", mask)))


@pytest.mark.parametrize("mask", ["int64", "bool"])
def test_vqav2_logits(mask):
    assert_golden("vqav2.logits", golden.model("vqav2")(images("vqav2"), *text_of("vqav2", mask)))


def test_vqav2_encoder_and_pooled_vision_cls():
    model = golden.model("vqav2")
    streams = model.beit3(images("vqav2"), *text_of("vqav2"))
    assert_golden("vqav2.encoder_out", joined(streams))
    assert_golden("vqav2.pooled", model.pooler(streams.image[:, 0]))


@pytest.mark.parametrize("mask", ["int64", "bool"])
def test_nlvr2_logits(mask):
    left, right = (inputs()["images"][golden.rows("nlvr2")[side]] for side in "ab")
    ours = golden.model("nlvr2")(left, right, *text_of("nlvr2", mask))
    assert_golden("nlvr2.logits", ours)


def test_nlvr2_encoder_of_both_images():
    tokens, padding = text_of("nlvr2")
    both = inputs()["images"][[*golden.rows("nlvr2")["a"], *golden.rows("nlvr2")["b"]]]
    ours = golden.model("nlvr2").beit3(both, tokens.repeat(2, 1), padding.repeat(2, 1))
    assert_golden("nlvr2.encoder_out", joined(ours))


def test_imagenet_encoder_and_logits():
    model = golden.model("imagenet")
    assert_golden("imagenet.encoder_out", joined(model.beit3(images("imagenet"))))
    assert_golden("imagenet.logits", model(images("imagenet")))


@pytest.mark.parametrize("mask", ["int64", "bool"])
def test_captioning_logits_at_masked_positions(mask):
    given = inputs()
    _, padding = text_of("captioning", mask)
    ours = golden.model("captioning")(
        images("captioning"), given["captioning.masked_tokens"], padding, given["captioning.language_masked_pos"]
    )
    assert_golden("captioning.masked_logits", ours)


def test_captioning_encoder_and_logits_at_every_position():
    model, given = golden.model("captioning"), inputs()
    masked, padding = given["captioning.masked_tokens"], given["captioning.padding_mask"]
    assert_golden("captioning.encoder_out", joined(model.beit3(images("captioning"), masked, padding, causal=True)))
    ours = model(images("captioning")[-2:], masked[-2:], padding[-2:])
    assert_golden("captioning.all_logits_last2", ours)


# ---- gradients --------------------------------------------------------------------------------------------------------


def gradient_norms(model: torch.nn.Module) -> dict[str, float | None]:
    """L2 norm per official tensor; None where a parameter takes no part."""
    norms: dict[str, float | None] = {}
    parameters = dict(model.named_parameters())
    for name, group in official_names(model).items():
        gradient = parameters[name].grad
        parts = (
            [None] * len(group) if gradient is None else gradient.chunk(len(group)) if len(group) > 1 else [gradient]
        )
        norms.update({n: None if part is None else part.norm().item() for n, part in zip(group, parts, strict=True)})
    return norms


def training_loss(task: str, model: torch.nn.Module) -> Tensor:
    given = inputs()
    if task == "vqav2":
        logits = model(images("vqav2"), *text_of("vqav2"))
        return F.binary_cross_entropy_with_logits(logits, given["vqav2.labels"]) * logits.shape[1]
    if task == "nlvr2":
        left, right = (given["images"][golden.rows("nlvr2")[side]] for side in "ab")
        return F.cross_entropy(model(left, right, *text_of("nlvr2")), given["nlvr2.label"])
    if task == "imagenet":
        return F.cross_entropy(model(images("imagenet")), given["imagenet.label"], label_smoothing=0.1)
    image, text, scale = model(images("retrieval"), *text_of("retrieval"))
    logits, labels = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("task", ["retrieval", "vqav2", "nlvr2", "imagenet"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_norm_of_every_tensor_and_which_have_none(task, checkpointed):
    record = golden.document("losses")["train_batch"][task]
    model = golden.build(task, golden.CONFIG.replace(checkpoint_activations=checkpointed)).train()
    with torch.enable_grad():
        loss = training_loss(task, model)
        loss.backward()
    assert loss.item() == pytest.approx(record["loss"], rel=1e-4)
    ours, expected = gradient_norms(model), record["grad_l2"]
    assert ours.keys() == expected.keys()
    # A parameter without gradient is not decayed by AdamW, one with a zero gradient is.
    assert {n for n, x in ours.items() if x is None} == {n for n, x in expected.items() if x is None}
    assert {n for n, x in ours.items() if x == 0} == {n for n, x in expected.items() if x == 0}
    for name, norm in expected.items():
        if norm is not None:
            assert ours[name] == pytest.approx(norm, rel=1e-4, abs=1e-5), name


def test_captioning_gives_the_unread_image_stream_zero_gradients():
    expected = golden.document("losses")["train_batch"]["captioning"]["grad_l2"]
    model, given = golden.build("captioning").train(), inputs()
    tokens, padding = given["captioning.masked_tokens"], given["captioning.padding_mask"]
    with torch.enable_grad():
        logits = model(images("captioning"), tokens, padding, given["captioning.language_masked_pos"])
        logits.square().sum().backward()
    ours = gradient_norms(model)
    assert {n for n, x in ours.items() if x is None} == {n for n, x in expected.items() if x is None}
    assert {n for n, x in ours.items() if x == 0} == {n for n, x in expected.items() if x == 0}


# ---- generation -------------------------------------------------------------------------------------------------------


def test_incremental_logits_of_teacher_forced_captions():
    model = golden.model("captioning")
    tokens = inputs()["captioning.tokens"][:2]
    cache = encode_images(model.beit3, images("captioning")[:2])
    steps = [
        model.mlm_head(decode_step(model.beit3, cache, tokens[:, s : s + 1], golden.CONFIG.mask_token_id, s))[:, 0]
        for s in range(outputs()["captioning.incremental_mask_logits"].shape[1])
    ]
    assert_golden("captioning.incremental_mask_logits", torch.stack(steps, dim=1))


def test_logits_of_every_beam_in_the_first_steps_of_the_official_search():
    """Three beams per image: ids fed and logits read at the [MASK], while no image has finished in the official trace."""
    model, trace = golden.build("captioning"), tensors("beam")
    logits, fed = trace["beam.trace.mask_logits_first4steps"], trace["beam.trace.text_ids"][:4, :, 0]
    seen: list[Tensor] = []
    model.mlm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    search(model, images("captioning"), Decoding(3, 12, 0.6))
    compared = 0
    for step, (ours, expected, words) in enumerate(zip(seen, logits, fed, strict=False)):
        if len(ours) < 6 or (words == golden.CONFIG.pad_token_id).any():
            break
        # Before the second word the three beams of an image are one beam and two fillers with the same logits.
        assert_golden(f"beam.trace[{step}]", ours.flatten(0, 1), expected, like="captioning.incremental_mask_logits")
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize(
    "case", BEAM_CASES, ids=lambda c: f"beams{c['num_beams']}-lp{c['length_penalty']}-max{c['max_len']}"
)
def test_beam_search_ids_and_scores(case):
    model = golden.model("captioning")
    captions = model.generate(images("captioning"), case["num_beams"], case["max_len"], case["length_penalty"])
    padded = [ids + [golden.CONFIG.pad_token_id] * (case["max_len"] - len(ids)) for ids in captions]
    assert padded == tensors("beam")[case["tensor"]].tolist()
    hypotheses = search(
        model, images("captioning"), Decoding(case["num_beams"], case["max_len"], case["length_penalty"])
    )
    assert [h.ids for h in hypotheses] == captions
    assert [h.score for h in hypotheses] == pytest.approx(case["normalised_score"], abs=5e-5)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_beam_search_is_the_same_for_every_batch_size_and_order(batch):
    model, decoding = golden.model("captioning"), Decoding(3, 12, 0.6)
    expected = [ids[: ids.index(2) + 1] for ids in tensors("beam")["beam.case1.token_ids"].tolist()]
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    ours = [h.ids for part in images("captioning")[order].split(batch) for h in search(model, part, decoding)]
    assert ours == [expected[i] for i in order]


# ---- position interpolation, checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [96, 160, 32])
def test_interpolated_positions_and_what_they_give(size):
    given, name = tensors("interpolation"), f"interp.{size}."
    config, grid = golden.CONFIG.replace(image_size=size), size // golden.CONFIG.patch_size
    retrieval = golden.build_model("retrieval", config)
    report = load_checkpoint(retrieval, golden.official_state("retrieval"))
    assert report.resized == {VISION_POSITIONS: f"4x4 -> {grid}x{grid}"}
    assert report.missing == []
    table = retrieval.beit3.encoder.embed_positions["A"].weight
    assert_golden("positions", table, given[f"{name}embed_positions.A.weight"], like="retrieval.vision_cls")
    pictures = given[f"{name}images"]
    assert_golden(
        "vision_cls",
        retrieval.encode_image(pictures),
        given[f"{name}retrieval.vision_cls"],
        like="retrieval.vision_cls",
    )
    vqav2 = golden.build("vqav2", config)
    tokens, padding = (x[: len(pictures)] for x in text_of("vqav2"))
    assert_golden("logits", vqav2(pictures, tokens, padding), given[f"{name}vqav2.logits"], like="vqav2.logits")


def test_a_head_of_another_shape_keeps_its_own_weights_when_allowed():
    given = tensors("interpolation")
    model = golden.build_model("imagenet-linear", golden.CONFIG, num_classes=6)
    model.head.weight.copy_(given["other_head.head.weight"])
    model.head.bias.copy_(given["other_head.head.bias"])
    report = load_checkpoint(model, golden.official_state("imagenet"), allow_missing=["head.*"])
    assert report.missing == ["head.weight", "head.bias"]
    assert report.unexpected == []
    assert_golden("logits", model(inputs()["images"][:3]), given["other_head.logits"], like="imagenet.logits")


# ---- what the official evaluation handlers print --------------------------------------------------------------------------


def test_vqav2_predictions_and_score_of_the_handler():
    record = golden.document("eval_handlers")
    logits = golden.model("vqav2")(images("vqav2"), *text_of("vqav2"))
    best = logits.argmax(dim=1)
    assert [f"ans{i}" for i in best.tolist()] == [r["answer"] for r in record["vqav2_predictions"]["result"]]
    labels = inputs()["vqav2.labels"].clone()
    for row, answer, value in record["vqav2_score"]["labels_changed"]:
        labels[row, answer] = value
    score = labels.gather(1, best.unsqueeze(1)).mean().item() * 100
    assert score == pytest.approx(record["vqav2_score"]["result"]["score"], abs=1e-4)


def test_nlvr2_and_imagenet_accuracy_of_the_handlers():
    record, pool = golden.document("eval_handlers"), inputs()["images"]
    logits = golden.model("nlvr2")(pool[golden.rows("nlvr2")["a"]], pool[golden.rows("nlvr2")["b"]], *text_of("nlvr2"))
    right = (logits.argmax(dim=1) == inputs()["nlvr2.label"]).float().mean().item()
    assert right * 100 == pytest.approx(record["nlvr2"]["result"]["acc"])
    labels = inputs()["imagenet.label"].unsqueeze(1)
    top5 = golden.model("imagenet")(images("imagenet")).topk(5, dim=1).indices == labels
    assert top5[:, 0].float().mean().item() * 100 == pytest.approx(record["imagenet"]["result"]["acc1"])
    assert top5.any(dim=1).float().mean().item() * 100 == pytest.approx(record["imagenet"]["result"]["acc5"])


def test_retrieval_features_and_scores_of_the_handler():
    given, model = tensors("retrieval_eval"), golden.model("retrieval")
    ids, first = torch.unique(given["retrieval_eval.image_id"], return_inverse=True)
    row_of = torch.empty_like(ids)
    for caption in range(len(first) - 1, -1, -1):  # backwards, so that the first occurrence of an image stays
        row_of[first[caption]] = given["retrieval_eval.image_row"][caption]
    image = model.encode_image(inputs()["images"][row_of])
    text = model.encode_text(given["retrieval_eval.tokens"], given["retrieval_eval.padding_mask"])
    assert_golden(
        "image features", image, given["retrieval_eval.image_features_by_sorted_id"], like="retrieval.vision_cls"
    )
    assert_golden("text features", text, given["retrieval_eval.text_features"], like="retrieval.language_cls")
    assert_golden("scores", image @ text.T, given["retrieval_eval.scores"], like="retrieval.vision_cls")
    norm = torch.cat([image, text]).norm(dim=1)
    assert torch.allclose(norm, torch.ones_like(norm), atol=1e-6)
    assert F.cosine_similarity(image[:1], image[1:]).max() < 0.9999
