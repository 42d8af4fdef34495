"""`beit3-bench predict` with models of every family: what it says is what the model's own methods say of the same picture."""

from __future__ import annotations

import json

import pytest
from fusion_golden import heads, write_file
from native import invoke
from PIL import Image
from random_segmentor import save_segmentor
from random_vilt import save_vilts

from beit3_bench import load
from beit3_bench.backbones.registry import get_family
from beit3_bench.tasks.registry import get_task

WORDS = "a red ring left of a blue disk"
FUSION_HEADS = {
    "flickr30k": "retrieval",
    "imagenet": "retrieval",
    "vqav2": "vqa",
    "nlvr2": "nlvr",
    "snli-ve": "ve",
    "coco-caption": "caption",
}
CASES = [
    *(("albef", task) for task in ("flickr30k", "imagenet", "vqav2", "nlvr2", "snli-ve")),
    *(("blip", task) for task in ("flickr30k", "vqav2", "nlvr2", "coco-caption")),
    *(("vilt", task) for task in ("vqav2", "nlvr2", "flickr30k")),
    *(("vlmo", task) for task in ("flickr30k", "nlvr2")),
    *(("openclip", task) for task in ("flickr30k", "imagenet")),
]


@pytest.fixture(scope="module")
def pictures(native, tmp_path_factory):
    """Two photographs."""
    folder = tmp_path_factory.mktemp("photos")
    split = get_task("flickr30k")(native.root("flickr30k")).read("test")
    files = [e.images[0] for e in split.examples if e.kind == "image"][:2]
    for name, file in zip(("a.png", "b.png"), files, strict=True):
        with Image.open(file) as image:
            image.convert("RGB").resize((120, 90)).save(folder / name)
    return [folder / "a.png", folder / "b.png"]


@pytest.fixture(scope="module")
def source(native, tmp_path_factory):
    """``source(family, task) -> (FILE, options that so small a model needs)``; files are made once."""
    folder = tmp_path_factory.mktemp("families")
    made = set()

    def of(family, task):
        place = folder / family
        if family in ("albef", "blip"):
            head = FUSION_HEADS[task]
            path = place / f"{family}_{head}.pth"
            return path if path.exists() else write_file(place, family, head), heads(family, head)
        if family == "openclip":
            pytest.importorskip("open_clip")
        if family not in made:
            made.add(family)
            if family == "vilt":
                place.mkdir()
                save_vilts(place, native)
            else:
                get_family(family).write_specimens(place, [WORDS])
        file = (
            f"{ {'flickr30k': 'retrieval'}.get(task, task) }.ckpt"
            if family == "vilt"
            else get_family(family).specimens[task]
        )
        return f"{family}:{place / file}", {}

    return of


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_prediction_is_what_the_model_says(native, pictures, source, family, task, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "pins"))
    file, options = source(family, task)
    root = native.root(task) if task == "vqav2" else None  # whence the answers are
    given = pictures if task == "nlvr2" else pictures[:1]
    texts = {"coco-caption": [], "imagenet": ["ring", "disk", "cross"]}.get(task, [WORDS])
    texts = [WORDS, "two green squares"] if (family, task) == ("vilt", "flickr30k") else texts
    words = ["--task", task, "--checkpoint", file, "--device", "cpu", "--json", "--output", tmp_path / "drawn.png"]
    words += [word for path in given for word in ("--image", path)] + [word for t in texts for word in ("--text", t)]
    words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    done = invoke("predict", *words, *(("--data-root", root) if root else ()))
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert min(drawn.size) >= 400

    model = load(file, task, data_root=root, device="cpu", **options)
    assert model.card.family == family
    if (family, task) == ("vilt", "flickr30k"):
        (scores,) = model.match(given, texts)
        said = {one["name"]: one["match"] for one in record["texts"]}
        assert said == pytest.approx(dict(zip(texts, scores.tolist(), strict=True)), abs=2e-6)
        assert list(said) == sorted(said, key=lambda name: -said[name])
    elif task in ("flickr30k", "imagenet"):
        cosines = dict(zip(texts, model.compare(given, texts)[0].tolist(), strict=True))
        said = {one["name"]: one["cosine"] for one in record["classes" if task == "imagenet" else "texts"]}
        assert said == pytest.approx(cosines, abs=2e-6)
        assert list(said) == sorted(said, key=lambda name: -said[name])
    elif task == "vqav2":
        assert record["answer"] == model.answer(given, texts)[0] != ""
    elif task == "coco-caption":
        assert record["caption"] == model.caption(given)[0] != ""
    else:
        ((label, probability),) = model.classify([tuple(given)] if task == "nlvr2" else given, texts)
        assert (record["label"], record["probability"]) == (label, pytest.approx(probability, abs=2e-6))
        assert label in {"nlvr2": ("True", "False"), "snli-ve": ("contradiction", "neutral", "entailment")}[task]


def test_a_label_map_is_drawn_and_its_classes_are_named(pictures, tmp_path):
    file = save_segmentor(tmp_path / "seg.pth")
    words = ("predict", "--task", "ade20k-seg", "--checkpoint", file, "--device", "cpu", "--image", pictures[0])
    done = invoke(*words, "--json", "--output", tmp_path / "drawn.png")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    model = load(file, "ade20k-seg", device="cpu")
    (label_map,) = model.segment(pictures[:1])
    assert (record["width"], record["height"]) == label_map.shape[::-1] == (120, 90)
    assert (model.labels[0], len(model.labels)) == ("wall", 150)
    shares = {name: float((label_map == n).mean()) for n, name in enumerate(model.labels) if (label_map == n).any()}
    assert {one["name"]: one["share"] for one in record["classes"]} == pytest.approx(shares, abs=1e-6)
    assert [one["share"] for one in record["classes"]] == sorted(shares.values(), reverse=True)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert min(drawn.size) >= 400
    read = invoke(*words).stdout.splitlines()
    assert read[1].split()[1] in record["classes"][0]["name"]
    spoken = invoke(*words, "--text", "what?")
    assert (spoken.exit_code, "looks at pictures alone; leave the text out" in spoken.stderr) == (2, True)


@pytest.mark.parametrize(
    ("task", "base"),
    [("classify", "imagenet"), ("retrieval", "coco-retrieval"), ("caption", "coco-caption"), ("vqa", "vqav2")],
)
def test_tasks_of_own_data_name_the_task_that_asks_the_same(native, pictures, task, base):
    done = invoke("predict", "--task", task, "--checkpoint", native.checkpoint(base), "--image", pictures[0])
    assert done.exit_code == 2
    assert done.stderr == f"error: task {task} reads a file of one's own; --task {base} asks the same of a picture\n"
