"""What the Multiway layers and heads promise beyond parity: padding, order, shortcuts, training mode, the paper's form."""

from __future__ import annotations

import math

import pytest
import random_beit3 as small
import torch
from torch import Tensor, nn

from beit3_bench.backbones import BEiT3Config, build_model
from beit3_bench.backbones.beit3.models import HEADS
from beit3_bench.backbones.beit3.multiway import Streams
from beit3_bench.backbones.beit3.params import parameter_breakdown
from beit3_bench.errors import BenchError

LENGTHS = [5, 9, 3, 7]
NATIVE = ("retrieval", "vqav2", "nlvr2", "imagenet-linear", "coco-caption")
forms = pytest.mark.parametrize("form", small.FORMS)


def text_outputs(model: nn.Module, task: str, images: Tensor, ids: Tensor, padding: Tensor | None) -> Tensor:
    """What a task reads from images and texts, one row per text."""
    if task == "retrieval":
        return model.encode_text(ids, padding)
    if task == "nlvr2":
        return model(images, images.flip(-1), ids, padding)
    if task == "coco-caption":
        return model(images, ids, padding)[:, : min(LENGTHS)].flatten(1)
    return model(images, ids, padding)


with_text = pytest.mark.parametrize("task", [t for t in NATIVE if t != "imagenet-linear"])


@forms
@with_text
@torch.no_grad()
def test_outputs_do_not_depend_on_how_far_texts_are_padded(form, task):
    model = small.build(task, form)
    images = small.pictures(model, len(LENGTHS))
    expected = text_outputs(model, task, images, *small.texts(LENGTHS))
    assert expected.std() > 0.01
    for width in (max(LENGTHS) + 1, 64):
        torch.testing.assert_close(
            text_outputs(model, task, images, *small.texts(LENGTHS, width)), expected, atol=3e-5, rtol=0
        )
    alone = [
        text_outputs(model, task, images[i : i + 1], ids[None, :length], None)
        for i, (ids, length) in enumerate(zip(small.texts(LENGTHS)[0], LENGTHS, strict=True))
    ]
    torch.testing.assert_close(torch.cat(alone), expected, atol=3e-5, rtol=0)


@forms
@with_text
@torch.no_grad()
def test_outputs_follow_a_permuted_batch(form, task):
    model = small.build(task, form)
    images, (ids, padding) = small.pictures(model, len(LENGTHS)), small.texts(LENGTHS)
    order = torch.tensor([2, 0, 3, 1])
    ours = text_outputs(model, task, images[order], ids[order], padding[order])
    torch.testing.assert_close(ours, text_outputs(model, task, images, ids, padding)[order], atol=3e-5, rtol=0)


@with_text
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.uint8, torch.float32])
@torch.no_grad()
def test_padding_mask_may_be_of_any_type(task, kind):
    model = small.build(task)
    images, (ids, padding) = small.pictures(model, len(LENGTHS)), small.texts(LENGTHS)
    expected = text_outputs(model, task, images, ids, padding)
    assert torch.equal(text_outputs(model, task, images, ids, padding.to(kind)), expected)


@with_text
@torch.no_grad()
def test_no_mask_equals_a_mask_without_padding(task):
    model = small.build(task)
    images, (ids, padding) = small.pictures(model, 3), small.texts([6, 6, 6])
    assert not padding.any()
    with_mask = text_outputs(model, task, images, ids, padding)
    torch.testing.assert_close(with_mask, text_outputs(model, task, images, ids, None), atol=3e-5, rtol=0)


@forms
@torch.no_grad()
def test_image_index_equals_repeated_images(form):
    model = small.build("vqav2", form)
    images, (ids, padding) = small.pictures(model, 3), small.texts(LENGTHS)
    index = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(
        model(images, ids, padding, index), model(images[index], ids, padding), atol=1e-6, rtol=0
    )


@forms
@pytest.mark.parametrize("inputs", ["image", "text", "both", "causal"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_reading_first_tokens_equals_reading_all(form, inputs, padded):
    beit3 = small.build("nlvr2", form).beit3
    images = None if inputs == "text" else small.pictures(small.build("nlvr2", form), len(LENGTHS))
    ids, padding = (None, None) if inputs == "image" else small.texts(LENGTHS if padded else [6] * 4)
    arguments = (images, ids, padding if padded else None)
    whole = beit3(*arguments, causal=inputs == "causal")
    first = beit3(*arguments, causal=inputs == "causal", read="first")
    for a, b in zip(whole, first, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert b.shape[1] == 1
            torch.testing.assert_close(b, a[:, :1], atol=1e-5, rtol=0)


@forms
@torch.no_grad()
def test_captioning_image_states_do_not_see_the_text(form):
    model = small.build("coco-caption", form)
    images = small.pictures(model, 2)
    one, other = (model.beit3(images, small.texts([6, 6], seed=s)[0], causal=True) for s in (0, 1))
    assert torch.equal(one.image, other.image)
    assert not torch.allclose(one.text, other.text, atol=0.1)


@forms
@torch.no_grad()
def test_captioning_words_do_not_see_later_words(form):
    model = small.build("coco-caption", form)
    images, (ids, _) = small.pictures(model, 2), small.texts([8, 8])
    changed = ids.clone()
    changed[:, 5] = 50
    before, after = (model(images, x) for x in (ids, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-5, rtol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(1, 2)).min() > 0.01


# ---- the paper's form -------------------------------------------------------------------------------------------------


def copy_rows(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def test_shared_attention_equals_decoupled_attention_with_equal_branches():
    shared = small.build("nlvr2", "released", shared_attention=True)
    decoupled = build_model("nlvr2", shared.config.replace(shared_attention=False))
    state = shared.state_dict()
    source = {
        n: n if n in state else n.replace(".A.", ".shared.").replace(".B.", ".shared.") for n in decoupled.state_dict()
    }
    copied = {name: state[origin] for name, origin in source.items()}
    decoupled.load_state_dict(copied)
    images, (ids, padding) = small.pictures(shared, 4), small.texts(LENGTHS)
    torch.testing.assert_close(
        shared(images, images.flip(-1), ids, padding), decoupled(images, images.flip(-1), ids, padding)
    )


@torch.no_grad()
def test_vision_language_experts_serve_both_streams_of_the_top_layers_when_fused_and_none_alone():
    model = small.build("nlvr2", "giant")
    images, (ids, padding) = small.pictures(model, 4), small.texts(LENGTHS)
    layers = model.beit3.encoder.layers
    assert [layer.has_vl for layer in layers] == [False, True, True]
    assert [sorted(layer.ffn) for layer in layers] == [["A", "B"], ["A", "B", "VL"], ["A", "B", "VL"]]

    def run() -> tuple[Tensor, Tensor, Streams]:
        return (
            model.beit3(images).image,
            model.beit3(token_ids=ids, padding_mask=padding).text,
            model.beit3(images, ids, padding),
        )

    vision, language, fused = run()
    layers[1].ffn["VL"].fc2.bias.add_(1.0)
    layers[1].final_layer_norm["VL"].bias.add_(1.0)
    after = run()
    assert torch.equal(after[0], vision)
    assert torch.equal(after[1], language)
    for a, b in zip(after[2], fused, strict=True):
        assert (a - b).abs().mean() > 0.05
    for branch in "AB":
        layers[2].ffn[branch].fc2.weight.zero_()
        layers[2].final_layer_norm[branch].weight.zero_()
    unchanged = run()
    for a, b in zip(unchanged[2], after[2], strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(unchanged[0], vision, atol=0.05)
    assert not torch.allclose(unchanged[1], language, atol=0.05)


@torch.no_grad()
def test_a_vision_language_layer_with_equal_experts_equals_one_without():
    plain = small.build("vqav2", "giant", vl_layers=0)
    for layer in plain.beit3.encoder.layers:
        copy_rows(layer.ffn["B"], layer.ffn["A"])
        copy_rows(layer.final_layer_norm["B"], layer.final_layer_norm["A"])
    expert = build_model("vqav2", plain.config.replace(vl_layers=2), num_classes=7)
    expert.load_state_dict({**expert.state_dict(), **plain.state_dict()})
    for layer in expert.beit3.encoder.layers[1:]:
        copy_rows(layer.ffn["VL"], layer.ffn["A"])
        copy_rows(layer.final_layer_norm["VL"], layer.final_layer_norm["A"])
    images, (ids, padding) = small.pictures(plain, 4), small.texts(LENGTHS)
    torch.testing.assert_close(expert(images, ids, padding), plain(images, ids, padding))


def test_giant_has_the_parameters_of_the_paper():
    counts = parameter_breakdown(BEiT3Config.preset("giant"))
    millions = {part: round(counts[part] / 1e6, 1) for part in ("V-FFN", "L-FFN", "VL-FFN", "attention")}
    assert millions == {"V-FFN": 692.1, "L-FFN": 692.1, "VL-FFN": 51.9, "attention": 317.2}


@pytest.mark.parametrize(("preset", "form"), [("tiny", False), ("base", False), ("large", False), ("giant", True)])
def test_parameter_breakdown_adds_up_to_the_whole_backbone(preset, form):
    config = BEiT3Config.preset(preset)
    assert config.shared_attention == form
    with torch.device("meta"):
        backbone = build_model("retrieval", config).beit3
    counts = parameter_breakdown(config)
    total = counts.pop("total")
    assert total == sum(counts.values()) == sum(p.numel() for p in backbone.parameters())
    assert counts["word embedding"] == config.vocab_size * config.embed_dim


@pytest.mark.parametrize(("preset", "millions"), [("base", 222), ("large", 675)])
def test_released_presets_have_the_size_that_the_readme_prints_for_retrieval(preset, millions):
    """README of the release: BEiT-3 base 222M, large 675M (with both towers and their text table)."""
    total = parameter_breakdown(BEiT3Config.preset(preset, image_size=384))["total"]
    assert total / 1e6 == pytest.approx(millions, rel=0.01)


# ---- training mode ----------------------------------------------------------------------------------------------------


def test_drop_path_acts_in_training_only_and_grows_with_depth():
    model = small.build("vqav2", drop_path_rate=0.6)
    plain = small.build("vqav2")
    images, (ids, padding) = small.pictures(model, 4), small.texts(LENGTHS)
    assert [layer.drop_path_rate for layer in model.beit3.encoder.layers] == pytest.approx([0.0, 0.3, 0.6])
    with torch.no_grad():
        assert torch.equal(model(images, ids, padding), plain(images, ids, padding))
        model.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(images, ids, padding), plain(images, ids, padding), atol=1e-3)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    layer = small.build("vqav2", drop_path_rate=0.6).beit3.encoder.layers[2].train()
    torch.manual_seed(1)
    factor = layer.keep(torch.zeros(20000, 3, 1))
    assert factor.shape == (20000, 1, 1)
    assert factor.unique().tolist() == pytest.approx([0.0, 2.5])
    assert factor.mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.eval().keep(torch.zeros(4, 3, 1)) is None


def test_drop_path_is_one_draw_for_both_streams_of_a_sample():
    """A sample whose two residual branches are dropped passes a layer unchanged, image and text alike."""
    layer = small.build("vqav2", drop_path_rate=0.9).beit3.encoder.layers[2].train()
    torch.manual_seed(2)
    image, text = torch.randn(64, 5, 32), torch.randn(64, 4, 32)
    with torch.no_grad():
        new_image, new_text = layer(image, text, None)
    kept_image, kept_text = ((new != old).flatten(1).any(1) for new, old in ((new_image, image), (new_text, text)))
    assert torch.equal(kept_image, kept_text)
    assert 0 < kept_image.sum() < 40


@forms
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(form, rate):
    gradients = []
    for checkpointed in (False, True):
        model = small.build("vqav2", form, drop_path_rate=rate, checkpoint_activations=checkpointed).train()
        images, (ids, padding) = small.pictures(model, 4), small.texts(LENGTHS)
        torch.manual_seed(3)
        model(images, ids, padding).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 40
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, name=name: f"{name}: {m}")


# ---- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", HEADS)
def test_every_task_name_builds_a_model_in_eval_mode_with_gradients(task):
    model = build_model(task, small.config())
    assert not model.training
    assert all(p.requires_grad and torch.isfinite(p).all() for p in model.parameters())
    assert all(p.device.type == "cpu" for p in model.parameters())


@forms
def test_initialisation_is_the_official_one(form):
    torch.manual_seed(0)
    model = build_model("nlvr2", small.config(form, embed_dim=64, ffn_dim=512))
    again = torch.manual_seed(0) and build_model("nlvr2", model.config)
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = 0.001 if name in ("head.dense1", "head.dense2") else 1.0
            assert module.weight.abs().max() <= 0.02 * scale + 1e-9
            assert module.weight.std().item() == pytest.approx(0.0108 * scale, rel=0.2), name
            assert module.bias is None or module.bias.abs().max() == 0
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert module.eps == 1e-5
        elif isinstance(module, nn.Embedding):
            std = 64**-0.5 if name.endswith("text_embed") else 1.0
            assert module.weight.std().item() == pytest.approx(std, rel=0.1), name
    assert model.beit3.vision_embed.cls_token.abs().max() == 0
    assert model.beit3.vision_embed.proj.weight.std() > 0.01
    assert build_model("retrieval", small.config()).logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    head = build_model("imagenet-linear", small.config(), num_classes=9).head.weight
    assert 0 < head.abs().max() <= 2e-5 + 1e-9


def test_unknown_task_and_wrong_head_arguments_are_told_in_one_line():
    with pytest.raises(BenchError, match="no model for task 'vqa2'; did you mean 'vqav2'"):
        build_model("vqa2", small.config())
    with pytest.raises(BenchError, match=r"no model for task 'xyz'; known: .*vqav2"):
        build_model("xyz", small.config())
    with pytest.raises(BenchError, match="num_labels") as caught:
        build_model("vqav2", small.config(), num_labels=3)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_and_texts_beyond_the_positions_are_refused():
    model = small.build("vqav2")
    ids, _ = small.texts([4])
    with pytest.raises(BenchError, match=r"32x32 pixels, got 48x32.*--image-size"):
        model(torch.zeros(1, 3, 48, 32), ids)
    with pytest.raises(BenchError, match="1023 tokens is longer than the 1022"):
        model(small.pictures(model, 1), torch.zeros(1, 1023, dtype=torch.long))
    with torch.no_grad():
        assert torch.isfinite(model(small.pictures(model, 1), torch.full((1, 1022), 5))).all()


# ---- half precision, compilation ----------------------------------------------------------------------------------------


def forward(model: nn.Module, task: str, images: Tensor, ids: Tensor, padding: Tensor | None) -> Tensor:
    if task == "imagenet-linear":
        return model(images)
    if task == "retrieval":
        return torch.cat([model.encode_image(images), model.encode_text(ids, padding)])
    return text_outputs(model, task, images, ids, padding)


@forms
@pytest.mark.parametrize("task", NATIVE)
@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32(form, task):
    model = small.build(task, form)
    images, (ids, padding) = small.pictures(model, 4), small.texts(LENGTHS)
    exact = forward(model, task, images, ids, padding)
    with torch.autocast("cpu", torch.bfloat16):
        half = forward(model, task, images, ids, padding)
        states = model.beit3(images).image
    assert half.dtype == torch.float32, "the last layer is exact in evaluation: logits and embeddings have no ties"
    assert half.isfinite().all()
    assert (half.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01
    assert states.dtype == torch.float32, (
        "the residual stream is kept in float32 under autocast, as in the official code"
    )


@torch.no_grad()
def test_last_layers_follow_autocast_in_training_and_their_weights_in_evaluation():
    model = small.build("imagenet-linear")
    images = small.pictures(model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.float32
        assert model.train()(images).dtype == torch.bfloat16
    model = model.eval().to(torch.bfloat16)
    assert model(images.to(torch.bfloat16)).dtype == torch.bfloat16


@torch.no_grad()
def test_cls_is_not_rounded_under_autocast():
    model = small.build("retrieval")
    with torch.autocast("cpu", torch.bfloat16):
        x = model.beit3.embed_image(small.pictures(model, 1))
    exact = model.beit3.vision_embed.cls_token[0, 0] + model.beit3.encoder.embed_positions["A"].weight[2]
    assert torch.equal(x[0, 0], exact)


@pytest.mark.slow
@pytest.mark.parametrize("task", NATIVE)
@torch.no_grad()
def test_compiled_forward_is_one_graph_and_equals_the_plain_one(task):
    model = small.build(task, "giant")
    images, (ids, padding) = small.pictures(model, 4), small.texts(LENGTHS)
    expected = forward(model, task, images, ids, padding)
    torch.compiler.reset()
    compiled = torch.compile(lambda *inputs: forward(model, task, *inputs), fullgraph=True)
    torch.testing.assert_close(compiled(images, ids, padding), expected, atol=3e-5, rtol=0)
