"""ECCV Caption and CxC: equal to the package on its own annotations, and to plain loops after a second pass; and what does not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from annotated import by_loops, write_annotations

from beit3_bench.errors import BenchError
from beit3_bench.tasks import false_negatives, retrieval
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.facts import Counts, read_facts
from beit3_bench.tasks.false_negatives import METRICS, Judged, estimate, find_annotations, misfit, read_annotations
from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals
from beit3_bench.tasks.metrics.recall import RetrievalRanks
from beit3_bench.tasks.reranking import kinds, pairs_to_compare
from beit3_bench.tasks.retrieval import CocoRetrieval
from beit3_bench.tasks.scores import ClusterTable

needs_package = pytest.mark.skipif(
    find_annotations() is None, reason="needs eccv-caption, which the extra dev installs"
)
OFFICIAL = {
    "eccv_map_at_r": "eccv/{}-mAP@R",
    "eccv_rprecision": "eccv/{}-R-Precision",
    "eccv_r1": "eccv/{}@1",
    "cxc_r1": "cxc/{}@1",
    "cxc_r5": "cxc/{}@5",
    "cxc_r10": "cxc/{}@10",
}


@pytest.fixture
def mini(native, tmp_path):
    """Task with made-up annotations, its split, and what they hold."""
    root = native.root("coco-retrieval")
    content = write_annotations(tmp_path / "annotations", CocoRetrieval(root, {"eccv": "off"}).read("test"))
    task = CocoRetrieval(root, {"eccv": str(tmp_path / "annotations")})
    return task, task.read("test"), content


def embedded(split, seed=0, dims=6):
    random = np.random.default_rng(seed)
    rows = {}
    for example in split.examples:
        vector = random.normal(size=dims)
        rows[example.id] = {"id": example.id, "embedding": (vector / np.linalg.norm(vector)).astype(np.float32)}
    return rows


def official_lists(random, queries, gallery, answers, length=60):
    """Random lists without repetition, with right answers among the first: places, int64 (n, length)."""
    place = {name: n for n, name in enumerate(gallery)}
    others = random.integers(0, len(gallery), (len(queries), 2 * length)).tolist()
    lists = []
    for query, drawn in zip(queries, others, strict=True):
        right = [place[name] for name in answers[query] if name in place]
        chosen = [right[k] for k in np.flatnonzero(random.random(len(right)) < 0.5)]
        first = [*chosen, *drawn[: len(right)]]
        lists.append(list(dict.fromkeys([*random.permutation(first).tolist(), *drawn]))[:length])
    return np.array(lists, dtype=np.int64)


@needs_package
def test_all_metrics_are_the_package_s_on_random_rankings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for ujson
        from eccv_caption import Metrics

    annotations = read_annotations(find_annotations())
    images = list(annotations.gallery)
    texts = [text for several in annotations.gallery.values() for text in several]
    owner = np.repeat(np.arange(len(images)), [len(several) for several in annotations.gallery.values()])
    random = np.random.default_rng(0)
    both = {
        way: {
            q: (*annotations.answers["cxc", way].get(q, ()), *annotations.answers["eccv", way].get(q, ()))
            for q in queries
        }
        for way, queries in (("TR", images), ("IR", texts))
    }
    first_texts = official_lists(random, images, texts, both["TR"])
    first_images = official_lists(random, texts, images, both["IR"])
    text_ids, image_ids = np.array(texts, dtype=np.int64), np.array(images, dtype=np.int64)
    official = Metrics().compute_all_metrics(
        dict(zip(image_ids.tolist(), text_ids[first_texts].tolist(), strict=True)),
        dict(zip(text_ids.tolist(), image_ids[first_images].tolist(), strict=True)),
        target_metrics=("eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_recalls"),
    )
    ranks = RetrievalRanks(np.ones(len(images)), np.ones(len(texts)), owner, first_texts, first_images)
    columns = Judged.of(annotations, images, texts).columns(ranks)
    found = estimate({name: column.sum() for name, column in columns.items()})
    wanted = {
        OFFICIAL[k].format(way): 100 * v[s] for k, v in official.items() for way, s in (("TR", "i2t"), ("IR", "t2i"))
    }
    assert found.keys() == wanted.keys() == {metric.name for metric in METRICS}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9)
        assert 5 < value < 99


@needs_package
def test_the_package_s_annotations_are_of_the_released_test_split():
    """Counts of the paper, and images whose ids are those of Karpathy's split, as the facts of the task have their digest."""
    from beit3_bench.harness.record.released import digest_of_ids

    annotations = read_annotations(find_annotations())
    assert digest_of_ids(annotations.gallery) in read_facts("coco-retrieval").data.ids["test"]
    assert {key: len(answers) for key, answers in annotations.answers.items()} == {
        ("eccv", "TR"): 1_261,
        ("eccv", "IR"): 1_332,
        ("cxc", "TR"): 5_000,
        ("cxc", "IR"): 24_972,
    }
    assert [sum(map(len, annotations.answers["eccv", way].values())) for way in ("TR", "IR")] == [22_550, 11_279]


def ordered(split, rows, scored=None, candidates=0):
    """Query -> the gallery of the annotations in order: the first pass by cosine, and before it what was looked at again."""
    images, texts = kinds(split)
    gallery = {text for several in split.truth.gallery.values() for text in several}
    lists = {"TR": {}, "IR": {}}
    for way, asking, others in (("TR", images, texts), ("IR", texts, images)):
        order = sorted(others, key=lambda e: e.target) if way == "IR" else others
        for query in asking:
            cosine = {e.id: float(rows[query.id]["embedding"] @ rows[e.id]["embedding"]) for e in order}
            plain = sorted(order, key=lambda e: -cosine[e.id])
            looked = plain[:candidates]
            again = sorted((e for e in order if e in looked), key=lambda e: -scored(query, e)) if candidates else []
            names = [name_of(e) for e in [*again, *plain[candidates:]]]
            lists[way][name_of(query)] = [name for name in names if way == "IR" or name in gallery]
    return lists


def name_of(example):
    return example.target if example.kind == "image" else example.id.removeprefix("text:")


def test_metrics_of_a_split_are_those_of_plain_loops(mini):
    task, split, content = mini
    rows = embedded(split)
    scores = task.score(rows, split)
    wanted = by_loops(ordered(split, rows), content)
    assert {name: scores.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert wanted.keys() == {metric.name for metric in METRICS}
    bounds = bootstrap_intervals(scores.table, task.estimate, resamples=200)
    for name in wanted:
        low, high = bounds[name]
        assert low <= scores.metrics[name] <= high
        assert low < high or scores.metrics[name] in (0, 100)


def test_recalls_are_what_they_are_without_annotations(mini):
    task, split, _ = mini
    rows = embedded(split)
    bare = CocoRetrieval(task.data_root, {"eccv": "off"})
    plain, annotated = bare.score(rows, bare.read("test")), task.score(rows, split)
    assert not any(name.startswith(("eccv", "cxc")) for name in plain.metrics)
    assert plain.metrics.items() <= annotated.metrics.items()
    assert (plain.samples, plain.counts, plain.notes) == (annotated.samples, annotated.counts, annotated.notes)


@pytest.mark.parametrize("candidates", [1, 4, 9])
def test_a_second_pass_puts_its_own_order_before_that_of_the_first(mini, candidates):
    task, split, content = mini
    rows = embedded(split)
    images, texts = kinds(split)
    random = np.random.default_rng(5)
    table = random.integers(0, 4, (len(images), len(texts))).astype(np.float32)  # many equal scores
    for pair in pairs_to_compare(rows, split, candidates):
        chosen, place = pair.meta["texts"], pair.meta["place"]
        rows[pair.id] = {"id": pair.id, "texts": chosen, "asked": pair.meta["asked"], "scores": table[place, chosen]}
    places = {e.id: n for several in (images, texts) for n, e in enumerate(several)}

    def scored(query, other):
        image, text = (query, other) if query.kind == "image" else (other, query)
        return float(table[places[image.id], places[text.id]])

    scores = task.score(rows, split)
    again = by_loops(ordered(split, rows, scored, candidates), content)
    plain = {f"plain/{name}": value for name, value in by_loops(ordered(split, rows), content).items()}
    assert {name: scores.metrics[name] for name in again} == pytest.approx(again)
    assert {name: scores.metrics[name] for name in plain} == pytest.approx(plain)
    assert (list(again.values()) == pytest.approx(list(plain.values()))) == (candidates == 1)  # one has no other order


def test_a_resample_without_a_query_has_no_value_and_warns_of_nothing(mini):
    task, split, _ = mini
    table = task.score(embedded(split), split).table
    columns = {name: np.zeros_like(column) for name, column in table.columns.items() if "eccv" in name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = estimate(ClusterTable(table.ids, columns).sums())
    assert np.isnan(list(values.values())).all()


def test_a_part_of_the_split_is_told_and_gives_no_such_metrics(mini):
    task, split, _ = mini
    part = task.limited(split, 3)
    scores = task.score(embedded(part), part)
    assert not any(name.startswith(("eccv", "cxc")) for name in scores.metrics)
    (note,) = scores.notes
    images = len(kinds(split)[0])
    assert note.startswith(f"no ECCV Caption and CxC: {images - 3} of {images} annotated images are not there, ")
    assert note.endswith("; they are measured on the whole split alone")


def test_annotations_of_another_split_are_refused_before_the_run(mini):
    task, split, _ = mini
    with pytest.raises(
        BenchError, match=r"annotations: the annotations are not of split 'val' in .* annotated images are not there"
    ):
        task.read("val")
    assert misfit(split.truth, [e.target for e in kinds(split)[0]], [name_of(e) for e in kinds(split)[1]]) == ""
    assert misfit(split.truth, [*split.truth.gallery, "1"], [name_of(e) for e in kinds(split)[1]]).endswith(
        "images are not annotated"
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("eccv_image_to_caption", None, r"eccv_image_to_caption\.json: false negatives file not found"),
        ("cxc_caption_to_image", [], r"cxc_caption_to_image\.json: expected a JSON object of ids"),
        ("cxc_caption_to_image", {"0": []}, r"cxc_caption_to_image\.json: 0: is not a list of ids with one or more"),
        ("cxc_caption_to_image", {"0": [1.5]}, r"cxc_caption_to_image\.json: 0: is not a list of ids"),
        (
            "eccv_image_to_caption",
            {"77": [0]},
            r"eccv_image_to_caption\.json: asks with 77, which is not in the gallery of original_",
        ),
    ],
)
def test_damaged_annotations_are_named(mini, name, content, told):
    task, *_ = mini
    path = Path(task.options.eccv) / f"{name}.json"
    path.unlink() if content is None else path.write_text(json.dumps(content))
    with pytest.raises(BenchError, match=told):
        task.read("test")


def test_a_folder_that_is_none_is_named(native, tmp_path):
    with pytest.raises(BenchError, match=r"nowhere: is no folder; give the folder of the annotations"):
        CocoRetrieval(native.root("coco-retrieval"), {"eccv": str(tmp_path / "nowhere")}).read("test")


def test_the_tiny_world_asks_for_nothing(native):
    task = CocoRetrieval(native.root("coco-retrieval"))
    split = task.read("test")
    assert split.truth is None
    assert task.score(embedded(split), split).notes == []


def test_a_file_of_embeddings_that_names_its_texts_is_scored_with_them(mini, tmp_path, monkeypatch):
    task, split, _ = mini
    rows, (images, texts) = embedded(split), kinds(split)
    arrays = {
        "image_embeddings": np.stack([rows[e.id]["embedding"] for e in images]),
        "image_ids": np.array([int(e.target) for e in images]),
        "text_embeddings": np.stack([rows[e.id]["embedding"] for e in texts]),
        "text_image_ids": np.array([int(e.target) for e in texts]),
    }
    monkeypatch.setattr(false_negatives, "find_annotations", lambda: Path(task.options.eccv))
    path, names = tmp_path / "e.npz", np.array([int(name_of(e)) for e in texts])

    def scored(**more):
        np.savez(path, **arrays, **more)
        return CocoRetrieval.score_file(ScoreInputs(path))

    wanted = task.score(rows, split).metrics
    assert scored(text_ids=names).metrics == pytest.approx(wanted)
    assert scored(text_ids=names.astype(float)).metrics == pytest.approx(wanted)
    assert not wanted.keys() <= scored().metrics.keys()
    other = scored(text_ids=names + 1)
    assert other.metrics == scored().metrics
    assert "annotated captions are not there" in other.notes[0]
    with pytest.raises(BenchError, match=r"e\.npz: text_ids has the shape \(3,\), text_image_ids"):
        scored(text_ids=names[:3])


@pytest.mark.parametrize(("option", "notes"), [(None, 1), ("off", 0)])
def test_the_released_test_without_annotations_says_what_brings_them(native, monkeypatch, option, notes):
    """As many images and texts as the released split has, whose annotations are not installed."""
    monkeypatch.setattr(false_negatives, "find_annotations", lambda: None)
    facts = read_facts("coco-retrieval")
    root = native.root("coco-retrieval")
    sizes = Counts(
        images=len(kinds(CocoRetrieval(root).read("test"))[0]), texts=len(kinds(CocoRetrieval(root).read("test"))[1])
    )
    data = dataclasses.replace(facts.data, splits={"test": sizes})
    monkeypatch.setattr(retrieval, "read_facts", lambda name: dataclasses.replace(facts, data=data))
    task = CocoRetrieval(root, {} if option is None else {"eccv": option})
    split = task.read("test")
    found = task.score(embedded(split), split).notes
    assert len(found) == notes
    assert all("pip install 'eccv-caption>=0.1,<1', then score the run again" in note for note in found)


def test_the_released_test_takes_the_installed_annotations(mini, monkeypatch):
    task, _, content = mini
    monkeypatch.setattr(false_negatives, "find_annotations", lambda: Path(task.options.eccv))
    monkeypatch.setattr(CocoRetrieval, "_is_released_test", lambda self, split: split.name == "test")
    usual = CocoRetrieval(task.data_root)
    split = usual.read("test")
    assert split.truth.answers["cxc", "IR"].keys() == content["cxc_caption_to_image"].keys()
    assert usual.read("val").truth is None
    part = usual.limited(split, 4)
    assert "annotated images are not there" in usual.score(embedded(part), part).notes[0]


def test_annotations_are_told_apart_by_what_they_hold(mini, tmp_path):
    task, _, content = mini
    given = Path(task.options.eccv)
    shutil.copytree(given, tmp_path / "moved")
    moved = CocoRetrieval(task.data_root, {"eccv": str(tmp_path / "moved")})
    assert (
        task.options_in_force()
        == moved.options_in_force()
        == {"rerank": None, "all_pairs": False, "eccv": moved.options_in_force()["eccv"]}
    )
    assert moved.options_in_force()["eccv"].startswith("sha256:")
    (tmp_path / "moved" / "cxc_caption_to_image.json").write_text(
        json.dumps({**content["cxc_caption_to_image"], "0": [1]})
    )
    assert moved.options_in_force() != task.options_in_force()
    assert CocoRetrieval(task.data_root, {"eccv": "off"}).options_in_force()["eccv"] == "off"
