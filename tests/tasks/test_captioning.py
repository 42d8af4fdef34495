"""Captioning: references, options, masking for training, scoring from files."""

from __future__ import annotations

import json
import time

import pytest
from goldens import metrics_golden
from native import invoke, run_words

from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.errors import BenchError
from beit3_bench.tasks.captioning import DOMAINS, CocoCaption, NoCaps, read_references
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals

NAMES = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
}


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("case", ["fakecap", "mixed"])
def test_official_scores_from_the_command_line_without_java(case, no_java):
    folder = metrics_golden("captioning")
    expected = json.loads((folder / "expected.json").read_text())[case]["overall"]
    files = ["--predictions", folder / case / "results.json", "--annotations", folder / case / "captions_val.json"]
    # Annotation files of a part name only its images; the goldens' predictions cover all of them.
    outcome = invoke("score", "--task", "coco-caption", *files, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    scores = json.loads(outcome.stdout)
    assert {ours: scores[ours] for ours in NAMES.values()} == pytest.approx(
        {ours: expected[official] for official, ours in NAMES.items()}, abs=1e-6
    )
    assert "METEOR" not in scores


def test_karpathy_and_coco_format_give_the_same_references(native, tmp_path):
    root = native.root("coco-caption")
    karpathy = read_references(root / "dataset_coco.json")
    coco = {
        "images": [{"id": int(i)} for i in karpathy],
        "annotations": [{"image_id": int(i), "caption": c} for i, captions in karpathy.items() for c in captions],
    }
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    assert read_references(tmp_path / "captions.json") == karpathy


@pytest.mark.parametrize("written", [str, int, float])
def test_image_ids_may_be_strings_or_whole_floats_in_predictions(native, tmp_path, no_java, written):
    references = read_references(native.root("coco-caption") / "dataset_coco.json")
    path = tmp_path / "results.json"
    path.write_text(
        json.dumps([{"image_id": written(i), "caption": captions[0]} for i, captions in references.items()])
    )
    scores = CocoCaption.score_file(ScoreInputs(path, native.root("coco-caption") / "dataset_coco.json"))
    assert scores.metrics["BLEU-1"] == pytest.approx(1.0)
    assert set(scores.samples["CIDEr"]) == set(references)


@pytest.mark.parametrize("part", ["cannot & ", "word ", "\U0001f600"])
def test_a_caption_of_a_hundred_thousand_characters_is_scored_in_seconds(native, tmp_path, no_java, part):
    annotations = native.root("coco-caption") / "dataset_coco.json"
    records = [{"image_id": int(i), "caption": captions[0]} for i, captions in read_references(annotations).items()]
    records[0]["caption"] = part * (100_000 // len(part))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    start = time.process_time()
    scores = CocoCaption.score_file(ScoreInputs(path, annotations))
    assert time.process_time() - start < 15  # 3 s at most on a free core
    assert scores.samples["CIDEr"][str(records[0]["image_id"])] == pytest.approx(0, abs=1e-6)


BAD = [
    (lambda r: r[1:], "without prediction"),
    (lambda r: [*r, r[0]], "predicted twice"),
    (lambda r: [{**r[0], "caption": None}, *r[1:]], "'caption' should be str"),
    (lambda r: [{"caption": "x"}, *r[1:]], "'image_id' is missing"),
    (lambda r: [{"image_id": -1, "caption": "x"}, *r], "1 unknown images"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_predictions_are_named(native, tmp_path, change, message):
    annotations = native.root("coco-caption") / "dataset_coco.json"
    records = [{"image_id": int(i), "caption": "a shape"} for i in read_references(annotations)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(change(records)))
    with pytest.raises(BenchError, match=message):
        CocoCaption.score_file(ScoreInputs(path, annotations))


@pytest.mark.parametrize("key", ["id", "image_id"])
def test_ids_of_references_may_be_whole_floats(native, tmp_path, key):
    path = tmp_path / "captions.json"
    content = {
        "images": [{"id": n} for n in (3, 4)],
        "annotations": [{"image_id": n, "caption": f"caption {n}"} for n in (3, 4)],
    }
    for record in content["images"] + content["annotations"]:
        record.update({k: float(v) for k, v in record.items() if k == key})
    path.write_text(json.dumps(content))
    assert read_references(path) == {"3": ["caption 3"], "4": ["caption 4"]}


def nocaps_files(folder, domains):
    """Two images a domain with references, and captions for them."""
    images = [{"id": 2 * n + k, **({"domain": d} if d else {})} for n, d in enumerate(domains) for k in (0, 1)]
    annotations = [
        {"image_id": i["id"], "caption": f"a {word} {i['id']} on a {other}"}
        for i in images
        for word, other in (("red", "mat"), ("large", "road"))
    ]
    (folder / "nocaps.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    results = [{"image_id": i["id"], "caption": f"a red {i['id']} on a road"} for i in images]
    (folder / "results.json").write_text(json.dumps(results))
    return ScoreInputs(folder / "results.json", folder / "nocaps.json")


def test_a_file_of_nocaps_is_scored_by_domain(tmp_path, no_java):
    inputs = nocaps_files(tmp_path, DOMAINS)
    scores = NoCaps.score_file(inputs)
    truth, results = (json.loads(p.read_text()) for p in (inputs.annotations, inputs.predictions))
    for n, domain in enumerate(DOMAINS):
        part = {2 * n, 2 * n + 1}
        inputs.annotations.write_text(
            json.dumps({
                "images": [i for i in truth["images"] if i["id"] in part],
                "annotations": [a for a in truth["annotations"] if a["image_id"] in part],
            })
        )  # fmt: skip
        inputs.predictions.write_text(json.dumps([r for r in results if r["image_id"] in part]))
        alone = NoCaps.score_file(inputs).metrics["CIDEr"]  # a set of its own, with its own document frequencies
        assert scores.metrics[f"CIDEr/{domain}"] == pytest.approx(alone, abs=1e-12)
    assert not any("domain" in note for note in scores.notes)


def test_a_file_of_nocaps_in_another_order_scores_the_same(tmp_path, no_java):
    inputs = nocaps_files(tmp_path, DOMAINS)
    expected = NoCaps.score_file(inputs).metrics
    records = json.loads(inputs.predictions.read_text())
    inputs.predictions.write_text(json.dumps(records[::-1]))
    assert NoCaps.score_file(inputs).metrics == expected


def test_a_file_without_domains_says_so(tmp_path, no_java):
    scores = NoCaps.score_file(nocaps_files(tmp_path, [None, None]))
    assert not any(name.startswith("CIDEr/") for name in scores.metrics)
    assert any("does not tell the domains" in note for note in scores.notes)


def test_a_karpathy_file_has_no_domains_but_scores(native, tmp_path, no_java):
    annotations = native.root("coco-caption") / "dataset_coco.json"
    records = [{"image_id": i, "caption": c[0]} for i, c in read_references(annotations).items()]
    (tmp_path / "results.json").write_text(json.dumps(records))
    assert NoCaps.score_file(ScoreInputs(tmp_path / "results.json", annotations)).metrics["BLEU-1"] == pytest.approx(
        1.0
    )


def test_an_empty_caption_and_a_line_break_shift_no_other_caption(native, tmp_path, no_java):
    annotations = native.root("coco-caption") / "dataset_coco.json"
    references = read_references(annotations)
    records = [{"image_id": int(i), "caption": captions[0]} for i, captions in references.items()]

    def score():
        path = tmp_path / "results.json"
        path.write_text(json.dumps(records))
        return CocoCaption.score_file(ScoreInputs(path, annotations))

    plain = score()
    records[0]["caption"] = ""
    records[1]["caption"] = records[1]["caption"].replace(" ", "\n", 1) + "\u2028"
    broken = score()
    others = [str(r["image_id"]) for r in records[1:]]
    assert {i: broken.samples["CIDEr"][i] for i in others} == pytest.approx(
        {i: plain.samples["CIDEr"][i] for i in others}
    )
    assert broken.samples["CIDEr"][str(records[0]["image_id"])] == 0
    assert any("empty caption" in note for note in broken.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": "0"}, "num_beams is 0"),
        ({"decoder": "greedy"}, "decoder 'greedy'"),
        ({"max_length": "2"}, "max_length is 2"),
        ({"beams": "3"}, "did you mean 'num_beams'"),
        ({"num_beams": "three"}, "is not a whole number"),
    ],
)
def test_decoding_options_are_checked_before_a_model_is_loaded(native, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BEiT3Family, "load", lambda *_: pytest.fail("was loaded"))
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    refused = invoke(*run_words(native, "coco-caption"), *given)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nocaps_is_scored_by_domain(native, no_java):
    task = NoCaps(native.root("nocaps"))
    split = task.read("val")
    rows = {e.id: {"id": e.id, "caption": e.target[0]} for e in split.examples}
    metrics = task.score(rows, split).metrics
    assert {"CIDEr/in-domain", "CIDEr/near-domain", "CIDEr/out-domain"} <= set(metrics)
    table = task.score(rows, split).table
    assert table.ids == [e.id for e in split.examples]
    assert {k: float(v) for k, v in task.estimate(table.sums()).items()} == pytest.approx(metrics)
    intervals = bootstrap_intervals(table, task.estimate, resamples=100)
    assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())
    for e in split.examples:
        e.meta["domain"] = None
    scores = task.score(rows, split)
    assert not any("/" in name for name in scores.metrics)
    assert any("domain" in note for note in scores.notes)


def nocaps_case(native, to, change=lambda images: None):
    """An annotation file and results in which every image gets its first caption but one."""
    path = native.root("nocaps") / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    change(content["images"])
    (to / "nocaps.json").write_text(json.dumps(content))
    references = read_references(path)
    records = [{"image_id": int(i), "caption": captions[1]} for i, captions in references.items()]
    (to / "results.json").write_text(json.dumps(records))
    return ["score", "--task", "nocaps", "--predictions", to / "results.json", "--annotations", to / "nocaps.json"]


def test_a_file_of_nocaps_is_scored_by_domain_as_a_run_is(native, tmp_path, no_java):
    done = invoke(*nocaps_case(native, tmp_path), "--json")
    task = NoCaps(native.root("nocaps"))
    split = task.read("val")
    rows = {e.id: {"id": e.id, "caption": e.target[1]} for e in split.examples}
    metrics = task.score(rows, split).metrics
    assert {"CIDEr/in-domain", "CIDEr/near-domain", "CIDEr/out-domain"} <= set(metrics)
    assert json.loads(done.stdout) == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("change", "told", "domains"),
    [
        (lambda images: [i.pop("domain") for i in images], "the annotation file does not tell the domains", 0),
        (lambda images: [i.update(domain=3) for i in images], "the annotation file does not tell the domains", 0),
        (lambda images: images[0].update(domain="elsewhere"), "1 images are of no known domain", 3),
        (
            lambda images: [i.update(domain=f"{'in' if n else 'out'}-domain") for n, i in enumerate(images)],
            "no CIDEr/out-domain: it has a single image",
            1,
        ),
    ],
)
def test_domains_that_a_file_does_not_tell_are_noted(native, tmp_path, no_java, change, told, domains):
    words = nocaps_case(native, tmp_path, change)
    assert f"note: {told}" in invoke(*words).stdout.replace("no CIDEr per domain: ", "")
    scores = json.loads(invoke(*words, "--json").stdout)
    assert sum(name.startswith("CIDEr/") for name in scores) == domains


def test_nocaps_test_is_submitted(native, tmp_path):
    words = ["--checkpoint", native.checkpoint("nocaps"), "--data-root", native.root("nocaps"), "--workers", 0]
    outcome = invoke("run", "--task", "nocaps", *words, "--split", "test", "--output", tmp_path / "run", "--json")
    assert json.loads(outcome.stdout)["status"] == "to upload"
    records = json.loads((tmp_path / "run" / "submission" / "captions_results.json").read_text())
    assert sorted(r["image_id"] for r in records) == sorted(
        int(e.id) for e in NoCaps(native.root("nocaps")).read("test").examples
    )
