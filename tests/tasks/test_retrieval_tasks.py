"""Retrieval and ImageNet tasks: readers, chance, class texts, embeddings files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import metrics_golden
from native import edit_json, invoke

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.imagenet import ImageNet, ImageNetLinear
from beit3_bench.tasks.metrics.recall import recalls, retrieval_ranks
from beit3_bench.tasks.retrieval import CocoRetrieval, Flickr30K


@pytest.mark.parametrize("case", ["regular", "irregular", "irregular_shuffled"])
def test_official_recalls_from_the_command_line(case):
    folder = metrics_golden("retrieval")
    expected = json.loads((folder / "expected.json").read_text())[case]["hits_and_totals"]
    outcome = invoke("score", "--task", "coco-retrieval", "--predictions", folder / f"{case}.npz", "--json")
    scores = json.loads(outcome.stdout)
    for name, (hits, total) in expected.items():
        direction, k = name.split("_r")
        assert scores[f"{direction.upper()}@{k}"] == pytest.approx(100 * hits / total, abs=1e-9)


def arrays(n=12, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return {
        "image_embeddings": unit(rng.normal(size=(n, dim))),
        "image_ids": np.arange(n),
        "text_embeddings": unit(rng.normal(size=(2 * n, dim))),
        "text_image_ids": np.repeat(np.arange(n), 2),
    }


def scored(path, content):
    np.savez(path, **content)
    return CocoRetrieval.score_file(ScoreInputs(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, r: x * r.uniform(0.1, 9, (len(x), 1)), "12 of 12 rows"),
        (lambda x, r: (x * 7).astype(np.float16), "12 of 12 rows"),
        (lambda x, r: x.astype(np.float64) * 1e200, "12 of 12 rows"),
        (lambda x, r: x.astype(np.float64) * 1e-200, "12 of 12 rows"),
        (lambda x, r: np.where(np.arange(len(x))[:, None] == 5, 2 * x, x), "1 of 12 rows"),
    ],
)
def test_embeddings_of_any_length_are_compared_by_cosine_and_said_so(tmp_path, change, told):
    plain = scored(tmp_path / "unit.npz", arrays())
    assert plain.notes == []
    content = arrays()
    content["image_embeddings"] = change(content["image_embeddings"], np.random.default_rng(3))
    scaled = scored(tmp_path / "scaled.npz", content)
    assert scaled.metrics == pytest.approx(plain.metrics)
    (note,) = scaled.notes
    assert note.startswith(f"image_embeddings: {told} are not of unit length (")
    content["text_embeddings"] = 3 * content["text_embeddings"]
    assert [line.partition(":")[0] for line in scored(tmp_path / "both.npz", content).notes] == [
        "image_embeddings",
        "text_embeddings",
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_embeddings_are_taken_as_they_are(tmp_path, dtype):
    content = arrays(n=40)
    for name in ("image_embeddings", "text_embeddings"):
        content[name] = content[name].astype(dtype)
    found = scored(tmp_path / "e.npz", content)
    assert found.notes == []
    assert found.metrics == recalls(retrieval_ranks(**content))


def test_an_embedding_of_zeros_is_said(tmp_path):
    content = arrays()
    content["text_embeddings"][3] = 0
    assert (
        scored(tmp_path / "e.npz", content)
        .notes[0]
        .endswith("; 1 rows of zeros have no direction, their cosines are 0")
    )


BAD = [
    (lambda a: a.pop("text_image_ids"), "'text_image_ids' is missing"),
    (lambda a: a.update(image_ids=np.zeros(12, int)), "comes twice"),
    (lambda a: a.update(text_image_ids=np.full(24, 77)), "image without embedding"),
    (lambda a: a.update(image_embeddings=np.full((12, 8), np.nan, np.float32)), "not finite"),
    (lambda a: a.update(text_embeddings=a["text_embeddings"][:, :4]), "dimensions"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_embedding_files_are_named(tmp_path, change, message):
    content = arrays()
    change(content)
    np.savez(tmp_path / "e.npz", **content)
    with pytest.raises(BenchError, match=message):
        CocoRetrieval.score_file(ScoreInputs(tmp_path / "e.npz"))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint16])
def test_ids_of_embeddings_may_be_whole_floats(tmp_path, kind):
    content = arrays()
    np.savez(tmp_path / "e.npz", **content)
    expected = CocoRetrieval.score_file(ScoreInputs(tmp_path / "e.npz")).metrics
    np.savez(tmp_path / "e.npz", **{**content, "text_image_ids": content["text_image_ids"].astype(kind)})
    assert CocoRetrieval.score_file(ScoreInputs(tmp_path / "e.npz")).metrics == expected
    np.savez(tmp_path / "e.npz", **{**content, "text_image_ids": content["text_image_ids"] + 0.5})
    with pytest.raises(BenchError, match=r"e\.npz: text_image_ids: expected 24 integers"):
        CocoRetrieval.score_file(ScoreInputs(tmp_path / "e.npz"))


@pytest.mark.parametrize(("kind", "first_lost"), [(np.float16, 2**11), (np.float32, 2**24)])
def test_ids_that_their_floats_cannot_tell_apart_are_refused(tmp_path, kind, first_lost):
    content = arrays()
    shift = first_lost + 2 - content["image_ids"].max()
    moved = {name: (content[name] + shift).astype(kind) for name in ("image_ids", "text_image_ids")}
    np.savez(tmp_path / "e.npz", **{**content, **moved})
    with pytest.raises(BenchError, match=r"e\.npz: image_ids: expected 12 integers"):
        CocoRetrieval.score_file(ScoreInputs(tmp_path / "e.npz"))


def test_a_file_that_is_no_npz_or_holds_objects_is_refused(tmp_path):
    path = tmp_path / "e.npz"
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(BenchError, match=r"e\.npz"):
        CocoRetrieval.score_file(ScoreInputs(path))
    content = arrays()
    content["image_ids"] = np.array([{"a": 1}] * 12, dtype=object)
    np.savez(path, **content)
    with pytest.raises(BenchError, match="plain arrays") as caught:
        CocoRetrieval.score_file(ScoreInputs(path))
    assert "allow_pickle" not in str(caught.value)
    path.write_bytes(b"[]")
    with pytest.raises(
        BenchError, match=r"unpickled is not read\); write it with numpy.savez\(FILE, image_embeddings="
    ) as caught:
        CocoRetrieval.score_file(ScoreInputs(path))
    assert "allow_pickle" not in str(caught.value)
    with open(path, "wb") as file:
        np.save(file, content["image_embeddings"])
    with pytest.raises(BenchError, match="it is a single array"):
        CocoRetrieval.score_file(ScoreInputs(path))


def test_chance_is_what_random_embeddings_reach(native):
    task = Flickr30K(native.root("flickr30k"))
    split = task.read("test")
    images = [e for e in split.examples if e.kind == "image"]
    texts = [e for e in split.examples if e.kind == "text"]
    of_images, of_texts = (np.array([e.target for e in part]) for part in (images, texts))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(300):
        i, t = rng.normal(size=(len(images), 64)), rng.normal(size=(len(texts), 64))
        means.append(recalls(retrieval_ranks(i, of_images, t, of_texts))["mean_recall"])
    rows = {e.id: {"id": e.id, "embedding": x} for e, x in zip([*images, *texts], [*i, *t], strict=True)}
    assert task.score(rows, split).chance == pytest.approx(
        np.mean(means), abs=4 * np.std(means) / np.sqrt(len(means)) + 0.5
    )


def test_fewer_than_ten_images_work():
    content = arrays(n=3)
    assert recalls(retrieval_ranks(**content))["IR@10"] == 100.0


def test_ids_of_a_split_file_may_be_whole_floats_or_strings(native, tmp_path):
    root = native.copy("coco-retrieval", tmp_path)
    expected = [(e.id, e.target) for e in CocoRetrieval(root).read("test").examples]

    def rewrite(content):
        for image in content["images"]:
            image["cocoid"] = float(image["cocoid"])
            for sentence in image["sentences"]:
                sentence["sentid"] = str(sentence["sentid"])

    edit_json(root / "dataset_coco.json", rewrite)
    assert [(e.id, e.target) for e in CocoRetrieval(root).read("test").examples] == expected
    edit_json(root / "dataset_coco.json", lambda c: c["images"][0].update(cocoid=[1]))
    with pytest.raises(BenchError, match=r"images\[0\]: 'cocoid' should be str or int"):
        CocoRetrieval(root).read("test")


@pytest.mark.parametrize("option", ["class_names", "templates"])
def test_the_mend_for_files_of_ones_own_shows_their_form(native, tmp_path, option):
    path = tmp_path / "own.json"
    path.write_text("tench\ngoldfish\n")
    with pytest.raises(BenchError, match=r"own\.json:1: not valid JSON .*; expected a JSON list of") as caught:
        ImageNet(native.root("imagenet"), {option: str(path)}).class_texts()
    assert "again" not in str(caught.value)


def test_coco_trains_on_restval_too(native):
    task = CocoRetrieval(native.root("coco-retrieval"))
    content = json.loads((native.root("coco-retrieval") / "dataset_coco.json").read_text())
    expected = sum(len(i["sentences"]) for i in content["images"] if i["split"] in ("train", "restval"))
    assert len(task.training_split().examples) == expected


def test_class_texts_are_wordnet_lemmas(native):
    from timm.data import ImageNetInfo

    texts = ImageNet(native.root("imagenet")).class_texts()
    info = ImageNetInfo("imagenet-1k")
    assert texts == {w: [info.label_name_to_description(w)] for w in texts}
    assert any(", " in t[0] for t in texts.values())


def test_class_names_and_templates_replace_them(native, tmp_path):
    root = native.root("imagenet")
    classes = ImageNet(root).classes()
    (tmp_path / "names.json").write_text(json.dumps({c: f"thing {n}" for n, c in enumerate(classes)}))
    (tmp_path / "templates.json").write_text(json.dumps(["a photo of {}.", "art of {}."]))
    options = {"class_names": str(tmp_path / "names.json"), "templates": str(tmp_path / "templates.json")}
    task = ImageNet(root, options)
    assert task.class_texts()[classes[1]] == ["a photo of thing 1.", "art of thing 1."]
    texts = [e for e in task.read("val").examples if e.kind == "text"]
    assert len(texts) == 2 * len(classes)
    for bad, message in ((["no place"], "contain {}"), ([], "non-empty"), ({"a": 1}, "non-empty")):
        (tmp_path / "templates.json").write_text(json.dumps(bad))
        with pytest.raises(BenchError, match=message):
            ImageNet(root, options).class_texts()
    (tmp_path / "names.json").write_text(json.dumps({classes[0]: "only one"}))
    with pytest.raises(BenchError, match="no name for class"):
        ImageNet(root, options).class_texts()


def test_a_limit_on_imagenet_spreads_over_the_classes(native):
    task = ImageNet(native.root("imagenet"))
    part = task.limited(task.read("val"), 10).examples
    assert len([e for e in part if e.kind == "image"]) == 10
    assert len({e.target for e in part if e.kind == "image"}) == 10
    assert len([e for e in part if e.kind == "text"]) == 10


@pytest.mark.parametrize("per_class", [1, 2])
def test_a_tree_of_all_classes_with_fewer_images_is_a_data_set_of_its_own(tmp_path, per_class):
    for n in range(1000):
        folder = tmp_path / "val" / f"n{n:08d}"
        folder.mkdir(parents=True)
        for k in range(per_class):
            (folder / f"{k}.jpeg").touch()
    assert len(ImageNetLinear(tmp_path).labelled_images("val").examples) == 1000 * per_class
