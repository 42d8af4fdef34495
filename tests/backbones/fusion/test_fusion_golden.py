"""Every tensor that the official code of ALBEF and BLIP gave, within the noise of float32; ids, answers and captions exactly."""

from __future__ import annotations

import pytest
import torch
from fusion_golden import (
    HEADS,
    assert_golden,
    document,
    heads,
    image_of,
    images,
    inputs,
    tensors,
    tolerance,
    wanted,
    write_file,
)

from beit3_bench import load
from beit3_bench.backbones.fusion.bert import seen
from beit3_bench.backbones.fusion.heads import ADDED_TOKENS
from beit3_bench.backbones.word_cache import Cache

FAMILIES = ("albef", "blip")
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(autouse=True, scope="module")
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(family, golden name of a head, options) -> the model, from a file as it is released."""
    folder = tmp_path_factory.mktemp("files")

    def get(family, head, **options):
        if head == "vqa":
            options = {"answers": document(family, "data")["answer_list"], "answer_candidates": 6, **options}
        path = write_file(folder / family, family, head)
        return load(path, options.pop("task", HEADS[head]), device="cpu", **heads(family, head), **options)

    return get


def padding(family, name):
    return 1 - inputs(family, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_texts_alone(loaded, family):
    net = loaded(family, "retrieval").module
    pixels, ids = inputs(family, "retrieval.images"), inputs(family, "retrieval.text_ids")
    pad = padding(family, "retrieval.text_atts")
    assert_golden(family, "retrieval.image_feats", net.visual_encoder(pixels[:3]))
    count = len(wanted(family, "retrieval.text_feats"))
    real = ~pad[:count].bool().unsqueeze(-1)  # states at padding are read by nothing
    states, official = net.text_states(ids[:count], pad[:count]), wanted(family, "retrieval.text_feats")
    atol = tolerance(family, "retrieval.text_feats")
    torch.testing.assert_close(states * real, official * real, rtol=0, atol=atol)
    assert_golden(family, "retrieval.image_embeds", net.encode_image(pixels))
    assert_golden(family, "retrieval.text_embeds", net.encode_text(ids, pad))
    assert_golden(family, "retrieval.sims", net.encode_image(pixels) @ net.encode_text(ids, pad).t())


@pytest.mark.parametrize("family", FAMILIES)
def test_match_scores_of_pairs_and_of_all_candidates(loaded, family):
    """The official matrices: the match logit of the best by cosine, in BLIP's the cosine added; -100 elsewhere."""
    net = loaded(family, "retrieval").module
    pixels, ids = inputs(family, "retrieval.images"), inputs(family, "retrieval.text_ids")
    pad = padding(family, "retrieval.text_atts")
    logits = net.match(pixels[:4], ids[:4], pad[:4])
    atol = tolerance(family, "retrieval.itm_logits")
    torch.testing.assert_close(logits, wanted(family, "retrieval.itm_logits")[:, 1], rtol=0, atol=atol)
    cosine = net.encode_image(pixels) @ net.encode_text(ids, pad).t()
    k = document(family, "results")["k_test"]["retrieval"]
    for name, sims in (("score_i2t", cosine), ("score_t2i", cosine.t())):
        official = wanted(family, f"retrieval.{name}")
        best = sims.topk(k, dim=1).indices
        assert torch.equal(best.sort(dim=1).values, (official > -100).nonzero()[:, 1].view(best.shape))
        query = torch.arange(len(sims))[:, None].expand_as(best).flatten()
        image, text = (query, best.flatten()) if name == "score_i2t" else (best.flatten(), query)
        scores = net.match(pixels[image], ids[text], pad[text])
        if family == "blip":
            scores = scores + cosine[image, text]
        atol = tolerance(family, f"retrieval.{name}")
        torch.testing.assert_close(scores, official[query, best.flatten()], rtol=0, atol=atol)


def test_albef_fuses_the_states_of_a_text_without_embedding_it_again(loaded):
    net = loaded("albef", "retrieval").module
    pixels, ids = inputs("albef", "retrieval.images")[:4], inputs("albef", "retrieval.text_ids")[:4]
    pad = padding("albef", "retrieval.text_atts")[:4]
    encoder = net.text_encoder
    fused = encoder.run(net.unseen(ids, pad), seen(pad), net.look(pixels), start=encoder.config.first_cross)
    real = ~pad.bool().unsqueeze(-1)
    official, atol = wanted("albef", "retrieval.fused_feats"), tolerance("albef", "retrieval.fused_feats")
    torch.testing.assert_close(fused * real, official * real, rtol=0, atol=atol)


def test_blip_reads_enc_and_not_cls_with_an_image(loaded):
    net = loaded("blip", "retrieval").module
    pixels, ids = inputs("blip", "retrieval.images")[:4], inputs("blip", "retrieval.text_ids")[:4]
    pad = padding("blip", "retrieval.text_atts")[:4]
    with_cls = net.matched(net.text_encoder(ids, pad, net.look(pixels)))
    atol = tolerance("blip", "retrieval.itm_logits_cls_start")
    official = wanted("blip", "retrieval.itm_logits_cls_start")[:, 1]
    torch.testing.assert_close(with_cls, official, rtol=0, atol=atol)
    assert (net.match(pixels, ids, pad) - with_cls).abs().min() > 100 * atol


@pytest.mark.parametrize("size", [48, 24])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_size(loaded, family, size):
    net = loaded(family, "retrieval", image_size=size).module
    name = f"retrieval.interp{size}"
    torch.testing.assert_close(net.visual_encoder.pos_embed, wanted(family, f"{name}.pos_embed"), rtol=0, atol=1e-6)
    assert_golden(family, f"{name}.image_embeds", net.encode_image(inputs(family, f"retrieval.images_{size}")))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_questions_and_the_first_word_of_answers(loaded, family):
    net = loaded(family, "vqa").module
    pixels, ids = inputs(family, "vqa.images"), inputs(family, "vqa.question_ids")
    pad = padding(family, "vqa.question_atts")
    real = ~pad.bool().unsqueeze(-1)
    states = net.fused_states(net.look(pixels), ids, pad)
    atol = tolerance(family, "vqa.question_states")
    torch.testing.assert_close(states * real, wanted(family, "vqa.question_states") * real, rtol=0, atol=atol)
    context = net.question(pixels, ids, pad, None)
    logits = net.text_decoder.step(net.tree.tokens[:1].repeat(len(ids), 1), context, Cache())
    assert_golden(family, "vqa.first_token_logits", logits)
    first = logits.softmax(dim=-1)[:, net.tree.targets[:, 0]]
    assert_golden(family, "vqa.first_token_probs", first)


def test_blip_begins_answers_with_dec_and_not_cls(loaded):
    net = loaded("blip", "vqa").module
    pixels, ids = inputs("blip", "vqa.images"), inputs("blip", "vqa.question_ids")
    context = net.question(pixels, ids, padding("blip", "vqa.question_atts"), None)
    start = net.tree.tokens[:1]
    assert start.item() == net.config.vocab_size - ADDED_TOKENS  # [DEC], before [ENC]

    def first(token):
        return net.text_decoder.step(token.repeat(len(ids), 1), context, Cache())

    assert_golden("blip", "vqa.first_token_logits", first(start))
    atol = tolerance("blip", "vqa.first_token_logits")
    assert (first(ids[:1, 0]) - first(start)).abs().amax() > 100 * atol  # questions begin with [CLS]


def test_albef_ranks_answers(loaded):
    model = loaded("albef", "vqa")
    pad = padding("albef", "vqa.question_atts")
    scores = model.module(inputs("albef", "vqa.images"), inputs("albef", "vqa.question_ids"), pad)
    k = document("albef", "results")["k_test"]["vqa"]
    assert ((scores > float("-inf")).sum(dim=1) == k).all()
    shares, order = scores.softmax(dim=1).topk(k, dim=1)
    assert torch.equal(order, wanted("albef", "vqa.topk_ids"))
    assert_golden("albef", "vqa.topk_probs", shares)
    assert asked(model, "albef") == document("albef", "results")["vqa"]


def test_loss_of_every_answer_of_a_question(loaded):
    net = loaded("albef", "vqa").module
    pad = padding("albef", "vqa.question_atts")[:1]
    context = net.question(inputs("albef", "vqa.images")[:1], inputs("albef", "vqa.question_ids")[:1], pad, None)
    everything = torch.arange(net.tree.count).unsqueeze(0)
    assert_golden(
        "albef", "vqa.answer_nll_question0", -net.tree.log_likelihoods(net.text_decoder, context, everything)[0]
    )


def test_blip_ranks_answers(loaded):
    model = loaded("blip", "vqa")
    pad = padding("blip", "vqa.question_atts")
    scores = model.module(inputs("blip", "vqa.images"), inputs("blip", "vqa.question_ids"), pad)
    chosen = wanted("blip", "vqa.candidate_ids")
    candidates = (scores > float("-inf")).nonzero()[:, 1].view(chosen.shape)
    assert torch.equal(chosen.sort(dim=1).values, candidates)
    assert_golden("blip", "vqa.candidate_losses", -scores.gather(1, chosen))
    assert torch.equal(scores.argmax(dim=1), wanted("blip", "vqa.rank_ids"))
    assert asked(model, "blip") == document("blip", "results")["vqa_rank"]


def asked(model, family):
    """The official result list, from image files and raw questions."""
    questions = document(family, "data")["vqa"]
    answers = model.answer([image_of(family, q["image"]) for q in questions], [q["question"] for q in questions])
    return [{"question_id": q["question_id"], "answer": answer} for q, answer in zip(questions, answers, strict=True)]


def test_blip_searches_answers_as_the_official_code_does_one_by_one(loaded):
    model = loaded("blip", "vqa", answer_mode="generate")
    beams, end = model.model.ability.beams, model.model.ability.pieces.special["[SEP]"]
    pad = padding("blip", "vqa.question_atts")
    found = model.module.generated(
        inputs("blip", "vqa.images"), inputs("blip", "vqa.question_ids"), pad, None, end, beams
    )
    official = [[i for i in row if i] for row in wanted("blip", "vqa.generate_ids_single").tolist()]
    assert [hypothesis.ids for hypothesis in found] == official
    answers = [record["answer"] for record in asked(model, "blip")]
    assert answers == document("blip", "results")["vqa_generate_single"]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_of_images(loaded, family):
    model = loaded(family, "nlvr")
    pad = padding(family, "nlvr.text_atts")
    left, right, ids = (inputs(family, f"nlvr.{name}") for name in ("images0", "images1", "text_ids"))
    logits = model.module(left, right, ids, pad)
    assert_golden(family, "nlvr.logits", logits)
    data = document(family, "data")["nlvr2"]
    pairs = [tuple(image_of(family, name) for name in record["images"]) for record in data]
    said = [label for label, _ in model.classify(pairs, [record["sentence"] for record in data])]
    assert said == [("False", "True")[i] for i in logits.argmax(dim=1).tolist()]
    right_ones = sum(label == record["label"] for label, record in zip(said, data, strict=True))
    results = document(family, "results")["nlvr"]
    official = results["acc"] if family == "albef" else results["official_evaluate_if_never_swapped"]
    assert f"{right_ones / len(data):.4f}" == official


def test_swapped_images_are_another_question_to_blip(loaded):
    net = loaded("blip", "nlvr").module
    left, right, ids = (inputs("blip", f"nlvr.{name}") for name in ("images0", "images1", "text_ids"))
    swapped = net(right, left, ids, padding("blip", "nlvr.text_atts"))
    assert_golden("blip", "nlvr.logits_swapped_images", swapped)


def test_a_later_layers_keys_count_for_both_of_a_pair(tmp_path):
    weights = dict(tensors("albef", "weights_nlvr"))
    name = "text_encoder.encoder.layer.{}.crossattention.self.key.weight"
    weights[name.format(6)] = weights[name.format(6)] * 3
    path = write_file(tmp_path, "albef", "nlvr", weights)
    net = load(path, "nlvr2", device="cpu", **heads("albef", "nlvr")).module
    layers = net.text_encoder.encoder.layer
    assert torch.equal(layers[6].crossattention.self.key.weight, weights[name.format(7)])


def test_entailment(loaded):
    model = loaded("albef", "ve")
    logits = model.module(
        inputs("albef", "ve.images"), inputs("albef", "ve.text_ids"), padding("albef", "ve.text_atts")
    )
    assert_golden("albef", "ve.logits", logits)
    labels = ("contradiction", "neutral", "entailment")
    assert model.labels == model.identity.labels == labels
    accuracy = (logits.argmax(dim=1) == inputs("albef", "ve.targets")).float().mean().item()
    assert f"{accuracy:.4f}" == document("albef", "results")["ve"]["acc"]
    data = document("albef", "data")["snli_ve"]
    files = [image_of("albef", f"{record['image']}.png") for record in data]
    said = [label for label, _ in model.classify(files, [record["sentence"] for record in data])]
    assert said == [labels[best] for best in logits.argmax(dim=1).tolist()]


@pytest.mark.parametrize("case", sorted(document("blip", "results")["caption_cases"]))
def test_captions_token_by_token(loaded, case):
    model = loaded("blip", "caption")
    settings = {"num_beams": 3, "max_length": 30, "min_length": 10, "repetition_penalty": 1.0}
    settings |= document("blip", "results")["caption_cases"][case]
    ids = model.module.generate(inputs("blip", "caption.images"), **settings)
    official = [[i for i in row if i] for row in wanted("blip", f"caption.{case}.ids").tolist()]
    assert ids == official


def test_captions_of_files_by_the_protocol_of_each_task(loaded):
    files = images("blip")[: len(inputs("blip", "caption.images"))]
    official = document("blip", "results")["captions"]
    assert loaded("blip", "caption").caption(files) == official["coco"]
    assert loaded("blip", "caption", task="nocaps").caption(files) == official["nocaps"]
    default = {"max_length": 30, "min_length": 10}
    assert loaded("blip", "caption", **default).caption(files) == official["default"]


def test_words_that_are_given(loaded):
    net = loaded("blip", "caption").module
    feats = wanted("blip", "caption.image_feats")
    assert_golden("blip", "caption.image_feats", net.visual_encoder(inputs("blip", "caption.images")[: len(feats)]))
    ids, official = inputs("blip", "caption.teacher_ids"), wanted("blip", "caption.teacher_logits")
    logits = net(inputs("blip", "caption.images")[: len(ids)], ids)
    real = inputs("blip", "caption.teacher_atts").bool().unsqueeze(-1)
    atol = tolerance("blip", "caption.teacher_logits")
    torch.testing.assert_close(logits * real, official * real, rtol=0, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_official_transform(loaded, family):
    for size, name in ((32, "retrieval.images"), (48, "retrieval.images_48"), (24, "retrieval.images_24")):
        preprocessing = loaded(family, "retrieval", image_size=size).model.ability.preprocessing
        official = inputs(family, name)
        pixels = torch.stack([preprocessing.load(path) for path in images(family)[: len(official)]])
        torch.testing.assert_close(preprocessing.normalise(pixels), official, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_image_and_padding_change_nothing(loaded, family):
    net = loaded(family, "vqa").module
    pixels, ids = inputs(family, "vqa.images"), inputs(family, "vqa.question_ids")
    pad = padding(family, "vqa.question_atts")
    index = torch.tensor([0, 0, 1])
    shared = net(pixels[:2], ids[:3], pad[:3], index)
    alone = [net(pixels[[i]], ids[[n]], pad[[n]]) for n, i in enumerate(index.tolist())]
    torch.testing.assert_close(shared, torch.cat(alone), rtol=0, atol=2e-5)
    for n in range(3):
        length = int((~pad[n].bool()).sum())
        cut = net(pixels[index[n] : index[n] + 1], ids[n : n + 1, :length])
        torch.testing.assert_close(cut[0], shared[n], rtol=0, atol=2e-5)
