"""From a file to a network: shapes of the official classes, wrappers, and files that do not fit."""

from __future__ import annotations

import fnmatch
import json
import re
from types import SimpleNamespace

import pytest
import torch
from fusion_golden import HEADS, document, full_size, heads, image_of, tensors, write_file

from beit3_bench import load
from beit3_bench.backbones.abilities import Embeds
from beit3_bench.backbones.albef import heads as albef_heads
from beit3_bench.backbones.albef import loading as albef
from beit3_bench.backbones.blip import heads as blip_heads
from beit3_bench.backbones.blip import loading as blip
from beit3_bench.backbones.family import Asked, LoadOptions
from beit3_bench.backbones.fusion import loading as fusion
from beit3_bench.backbones.fusion.beams import Beams
from beit3_bench.backbones.fusion.files import MOMENTUM, family_of, held_heads
from beit3_bench.backbones.registry import find_family, locate
from beit3_bench.errors import BenchError
from beit3_bench.tasks.registry import get_task, task_names

FULL = {
    "albef_retrieval": ("coco-retrieval", 209.6),
    "albef_vqa": ("vqav2", 290.3),
    "albef_nlvr": ("nlvr2", 259.4),
    "blip_base_itm": ("coco-retrieval", 223.7),
    "blip_large_itm": ("coco-retrieval", 446.1),
    "blip_base_caption": ("coco-caption", 224.0),
    "blip_large_caption": ("coco-caption", 446.3),
    "blip_base_vqa": ("vqav2", 361.5),
    "blip_base_nlvr": ("nlvr2", 259.4),
}
"""Manifest -> our task, and millions of parameters of the network without its copies."""


def built(weights, name):
    """The network of a manifest's tensors, on the meta device, and what was left over."""
    family = name.split("_")[0]
    loading = albef if family == "albef" else blip
    task = get_task(FULL[name][0])
    asked = Asked(task.ability, task.name, task.images, task.uses_text, values={"features": "embedding"})
    checkpoint = SimpleNamespace(tensors=weights)
    source = SimpleNamespace(path="file", checkpoint=checkpoint)
    reading = fusion.read_file(loading.SYSTEM, source, asked, LoadOptions())
    own = albef_heads if family == "albef" else blip_heads
    config = reading.config
    blank = {
        "coco-retrieval": lambda: own.Retrieval(config),
        "vqav2": lambda: own.VisualQuestionAnswering(config, 128),
        "nlvr2": lambda: own.VisualReasoning(config, 2),
        "coco-caption": lambda: blip_heads.Captioning(config, [30522], 102, Beams()),
    }[task.name]
    return fusion.build(reading, blank)


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_of_the_official_classes_has_its_place(name):
    weights = full_size(name)
    module, extra = built(weights, name)
    assert (extra.missing, extra.unexpected, extra.resized) == ([], [], {})
    training = {n for n in weights if any(fnmatch.fnmatchcase(n, pattern) for pattern in MOMENTUM)}
    assert set(module.state_dict()) == set(weights) - training
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(FULL[name][1], abs=0.15)
    assert module.config.preset_name == ("large" if "large" in name else "base")


@pytest.mark.parametrize("name", ["albef_retrieval", "albef_vqa", "albef_nlvr", "blip_base_caption", "blip_base_nlvr"])
def test_one_name_too_few_or_too_many_is_named(name):
    weights = full_size(name)
    read = sorted(built(weights, name)[0].state_dict())
    for absent in read[:: max(len(read) // 12, 1)]:
        with pytest.raises(BenchError, match=re.escape(absent)):
            built({n: v for n, v in weights.items() if n != absent}, name)
    extra = "text_decoder.bert.more" if "caption" in name else "text_encoder.more"
    with pytest.raises(BenchError, match=re.escape(extra)):
        built({**weights, extra: torch.empty(3, device="meta")}, name)
    stray = "visual_encoder.blocks.40.norm1.weight"
    with pytest.raises(BenchError, match=re.escape(stray)):
        built({**weights, stray: torch.empty(3, device="meta")}, name)


@pytest.mark.parametrize("name", FULL)
def test_the_family_and_the_head_show_in_the_names(name):
    weights = full_size(name)
    family = name.split("_")[0]
    assert family_of(weights) == family
    head = {"coco-retrieval": "retrieval"}.get(FULL[name][0], FULL[name][0])
    assert held_heads(weights, family) == (head,)


def test_files_of_other_families_are_not_claimed(tmp_path):
    for family, head in (("albef", "retrieval"), ("blip", "caption")):
        path = write_file(tmp_path / family, family, head)
        assert find_family(locate(path)[1]).name == family
    assert family_of(["visual_encoder.blocks.0.norm1.weight", "Qformer.bert.encoder.layer.0.crossattention.x"]) is None
    assert family_of(["transformer.blocks.0.norm1.weight"]) is None


@pytest.mark.parametrize("prefix", ["text_encoder.bert.", "text_encoder_m.bert."])
def test_names_of_pre_training_are_accepted(tmp_path, prefix):
    """A pre-trained file has `bert.` in the names of its text encoder, and a head of masked words."""
    bare = prefix.replace("bert.", "")
    weights = {n.replace(bare, prefix, 1): v for n, v in tensors("albef", "weights_retrieval").items()}
    weights["text_encoder.cls.predictions.bias"] = torch.zeros(203)
    pre_trained = load(
        write_file(tmp_path / "a", "albef", "retrieval", weights), "flickr30k", **heads("albef", "retrieval")
    )
    tuned = load(write_file(tmp_path / "b", "albef", "retrieval"), "flickr30k", **heads("albef", "retrieval"))
    for name, value in tuned.module.state_dict().items():
        assert torch.equal(pre_trained.module.state_dict()[name], value)


def test_copies_with_momentum_are_not_read(tmp_path):
    weights = dict(tensors("albef", "weights_retrieval"))
    without = {n: v for n, v in weights.items() if "_m." not in n and "queue" not in n and n != "temp"}
    both = [
        load(write_file(tmp_path / name, "albef", "retrieval", content), "flickr30k", **heads("albef", "retrieval"))
        for name, content in (("whole", weights), ("student", without))
    ]
    files = [image_of("albef", "00.png")]
    assert (both[0].embed(images=files) == both[1].embed(images=files)).all()


WRONG = [
    ("albef", "vqa", "nlvr2", "holds the head of vqav2, nlvr2 needs another"),
    ("albef", "retrieval", "vqav2", "holds the head of retrieval, vqav2 needs another"),
    ("albef", "nlvr", "flickr30k", "holds the head of nlvr2, flickr30k needs another"),
    ("albef", "ve", "nlvr2", "holds the head of snli-ve, nlvr2 needs another"),
    ("albef", "retrieval", "coco-caption", "albef offers embed, match, answer, classify"),
    ("blip", "vqa", "coco-caption", "holds the head of vqav2, coco-caption needs another"),
    ("blip", "caption", "vqav2", "holds the head of coco-caption, vqav2 needs another"),
    ("blip", "nlvr", "coco-retrieval", "holds the head of nlvr2, coco-retrieval needs another"),
    ("blip", "retrieval", "nlvr2", "holds the head of retrieval, nlvr2 needs another"),
    ("blip", "nlvr", "imagenet-linear", "task imagenet-linear: BLIP has no head for it"),
]


@pytest.mark.parametrize(("family", "head", "task", "line"), WRONG)
def test_a_file_of_another_task_is_refused_in_one_line(tmp_path, family, head, task, line):
    path = write_file(tmp_path, family, head)
    with pytest.raises(BenchError, match=re.escape(line)) as error:
        load(path, task, **heads(family, head))
    assert "\n" not in str(error.value)


EMBEDDED = {name for name in task_names() if get_task(name).ability is Embeds}
ANSWERED = {
    ("albef", "vqa"): {"vqav2", "vqa"},
    ("albef", "retrieval"): EMBEDDED,
    ("albef", "nlvr"): {"nlvr2"},
    ("albef", "ve"): {"snli-ve"},
    ("blip", "vqa"): {"vqav2", "vqa"},
    ("blip", "retrieval"): EMBEDDED,
    ("blip", "nlvr"): {"nlvr2"},
    ("blip", "caption"): {"coco-caption", "nocaps", "caption"},
}
"""The tasks that each file is for; all others refuse it."""


@pytest.mark.parametrize(("family", "head"), list(ANSWERED))
def test_every_wrong_pairing_is_one_line(tmp_path, family, head):
    path = write_file(tmp_path, family, head)
    wrong = [task for task in task_names() if task not in ANSWERED[family, head]]
    assert len(wrong) > 8
    for task in wrong:
        with pytest.raises(BenchError) as error:
            load(path, task, **heads(family, head))
        line = str(error.value)
        assert "\n" not in line
        assert task in line


def test_a_file_of_the_other_family_is_refused(tmp_path):
    path = write_file(tmp_path / "albef", "albef", "retrieval")
    with pytest.raises(BenchError, match="this is a checkpoint of ALBEF, its first text layers look at no image"):
        load(f"blip:{path}", "flickr30k", **heads("albef", "retrieval"))
    path = write_file(tmp_path / "blip", "blip", "vqa")
    with pytest.raises(BenchError, match="this is a checkpoint of BLIP"):
        load(f"albef:{path}", "vqav2", **heads("blip", "vqa"))
    torch.save({"model": {"beit3.a.weight": torch.zeros(2)}}, path)
    with pytest.raises(BenchError, match="this is no BLIP checkpoint"):
        load(f"blip:{path}", "vqav2")


def test_what_shapes_do_not_show_is_asked_for(tmp_path):
    path = write_file(tmp_path, "blip", "caption")
    with pytest.raises(BenchError, match=r"heads does not show in a vision transformer of width 24; give num_heads"):
        load(path, "coco-caption")
    with pytest.raises(BenchError, match=r"text side of width 24; give text_heads"):
        load(path, "coco-caption", num_heads=4)
    with pytest.raises(BenchError, match="does not divide into 5 heads"):
        load(path, "coco-caption", num_heads=4, text_heads=5)
    with pytest.raises(BenchError, match="does not divide into patches of 8"):
        load(path, "coco-caption", image_size=33, **heads("blip", "caption"))


OPTIONS = [
    ({"num_beams": 0}, "num_beams is 0"),
    ({"max_length": 4}, "max_length is 4; it counts the prompt, of 4 tokens"),
    ({"max_length": 100}, "the model has positions for 48"),
    ({"min_length": -1}, "min_length is -1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"decoder": "clean"}, "decoder=clean: is an option of BEiT-3's captions"),
]


@pytest.mark.parametrize(("options", "line"), OPTIONS)
def test_decoding_that_cannot_be(tmp_path, options, line):
    path = write_file(tmp_path, "blip", "caption")
    with pytest.raises(BenchError, match=re.escape(line)):
        load(path, "coco-caption", **heads("blip", "caption"), **options)


def test_answers_that_cannot_be_ranked(tmp_path):
    path, options = write_file(tmp_path, "albef", "vqa"), heads("albef", "vqa")
    with pytest.raises(BenchError, match="answer 1 is empty, and cannot be ranked"):
        load(path, "vqav2", answers=["yes", " "], **options)
    with pytest.raises(BenchError, match="'yes' is there twice"):
        load(path, "vqav2", answers=["yes", "no", "yes"], **options)
    with pytest.raises(BenchError, match="answer_candidates is 0"):
        load(path, "vqav2", answers=["yes"], answer_candidates=0, **options)
    with pytest.raises(BenchError, match="'search' is not known; give one of: rank, generate"):
        load(write_file(tmp_path / "b", "blip", "vqa"), "vqav2", answer_mode="search", **heads("blip", "vqa"))
    model = load(path, "vqav2", **options)
    with pytest.raises(BenchError, match="ranks answers, and none were given"):
        model.answer([image_of("albef", "00.png")], ["what?"])


def test_answers_of_a_file(tmp_path):
    path = write_file(tmp_path, "albef", "vqa")
    listed = document("albef", "data")["answer_list"]
    for name, text in (
        ("answer_list.json", json.dumps(listed, indent=1)),
        ("answer2label.txt", "".join(json.dumps({"answer": a, "label": n}) + "\n" for n, a in enumerate(listed))),
    ):
        file = tmp_path / name
        file.write_text(text)
        model = load(path, "vqav2", answers=file, answer_candidates=6, **heads("albef", "vqa"))
        assert list(model.labels) == listed
        assert model.answer([image_of("albef", "03.png")], ["Sky flowers there sign food??"]) == ["3"]
    (tmp_path / "empty.json").write_text(json.dumps(["yes", "", "no"]))
    with pytest.raises(BenchError, match=r"empty.json.*answer 1 is empty"):
        load(path, "vqav2", answers=tmp_path / "empty.json", **heads("albef", "vqa"))
    (tmp_path / "twice.json").write_text(json.dumps(["yes", "no", "yes"]))
    with pytest.raises(BenchError, match=r"twice.json: answer yes"):
        load(path, "vqav2", answers=tmp_path / "twice.json", **heads("albef", "vqa"))


def test_the_vocabulary_must_be_the_files(tmp_path):
    path = write_file(tmp_path, "blip", "caption")
    vocabulary = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(vocabulary + "extra\n")
    with pytest.raises(BenchError, match=r"has 205 token embeddings, but .* has 204 entries, and 2 stand behind them"):
        load(path, "coco-caption", **heads("blip", "caption"))


def test_a_pre_trained_blip_captions_with_a_note(tmp_path):
    weights = {**tensors("blip", "weights_caption")}
    text = tensors("blip", "weights_vqa")
    weights |= {n: v for n, v in text.items() if n.startswith("text_encoder.")}
    weights |= {"itm_head.weight": torch.zeros(2, 24), "itm_head.bias": torch.zeros(2)}
    weights |= {
        f"{n}_proj.{p}": torch.zeros(s) for n in ("text", "vision") for p, s in (("weight", (12, 24)), ("bias", 12))
    }
    model = load(write_file(tmp_path, "blip", "caption", weights), "coco-caption", **heads("blip", "caption"))
    assert "the file is a pre-trained one, not tuned for captions" in model.notes


def test_albef_of_lavis_shows_by_its_missing_token_types(tmp_path):
    weights = {n: v for n, v in tensors("albef", "weights_vqa").items() if "token_type" not in n}
    model = load(write_file(tmp_path, "albef", "vqa", weights), "vqav2", answers=["yes", "no"], **heads("albef", "vqa"))
    assert isinstance(model.module, albef_heads.LavisQuestionAnswering)
    assert model.card.settings["texts"]["ends"]
    assert HEADS["vqa"] == "vqav2"
