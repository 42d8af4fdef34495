"""False negatives of COCO retrieval from end to end: the option of a run, its result, page and table, and rescoring an older run."""

from __future__ import annotations

import json

import pytest
from annotated import write_annotations
from html_page import Parsed
from native import ALL_ROOTS, invoke
from noisy import make_run

from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.record.results import read_result
from beit3_bench.tasks.display.retrieval import RetrievalDisplay
from beit3_bench.tasks.false_negatives import METRICS
from beit3_bench.tasks.reranking import kinds
from beit3_bench.tasks.retrieval import CocoRetrieval

NAMES = [metric.name for metric in METRICS]


@pytest.fixture(scope="module")
def annotations(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("false negatives") / "annotations"
    write_annotations(folder, CocoRetrieval(world / ALL_ROOTS["coco-retrieval"]).read("test"))
    return folder


@pytest.fixture(scope="module")
def annotated(world, annotations, tmp_path_factory):
    """A finished run with annotations."""
    return make_run(world, "coco-retrieval", tmp_path_factory.mktemp("annotated") / "run", eccv=annotations)


def test_result_page_and_table_have_them_with_intervals(annotated, tmp_path):
    result = read_result(annotated / "result.json")
    for name in NAMES:
        metric = result["metrics"][name]
        low, high = metric["ci95"]
        assert low <= metric["value"] <= high
        assert (metric["unit"], metric["headline"], metric["higher_is_better"]) == ("percent", False, True)
    page = run_page(annotated, n=6)
    text = " ".join(Parsed(page.html).text)
    assert page.warnings == []
    assert "False negatives: ECCV Caption" in text
    assert "False negatives: CxC" in text
    assert all(name in text for name in NAMES)
    shown = invoke("table", "--runs", annotated.parent, "--format", "json")
    assert shown.exit_code == 0, shown.output
    (apart,) = json.loads(shown.stdout)["apart"]
    assert {name: apart["row"]["cells"][name]["value"] for name in NAMES} == {
        n: result["metrics"][n]["value"] for n in NAMES
    }


def test_what_people_judged_right_is_marked_in_the_lists(world, annotations, annotated):
    task = CocoRetrieval(world / ALL_ROOTS["coco-retrieval"], {"eccv": str(annotations)})
    split = task.read("test")
    from beit3_bench.harness.record.store import RunStore

    display = RetrievalDisplay(task, split, RunStore.read(annotated).rows(), {})
    by_text = {e.text: e.id.removeprefix("text:") for e in kinds(split)[1]}
    marked = 0
    for image in kinds(split)[0]:
        (shown,) = display.show([image.id])
        also = {
            by_text[e.text]: e.value.split(", also right by ")[1]
            for e in shown.listings[0].entries
            if "also right" in e.value
        }
        for text, by in also.items():
            judged = [
                title
                for title, name in (("ECCV Caption", "eccv"), ("CxC", "cxc"))
                if text in split.truth.answers[name, "TR"].get(image.target, ())
            ]
            assert by == " and ".join(judged)
        marked += len(also)
    assert marked > 0


def test_a_run_without_them_is_scored_again_with_them_and_without_the_model(world, annotations, annotated, runs):
    plain, root = runs("coco-retrieval"), world / ALL_ROOTS["coco-retrieval"]
    assert not any(name in read_result(plain / "result.json")["metrics"] for name in NAMES)
    words = ("score", "--run", plain, "--data-root", root)
    again = invoke(*words, "-o", f"eccv={annotations}", "--intervals", "--json")
    assert again.exit_code == 0, again.output
    values = json.loads(again.stdout)
    stored = read_result(plain / "result.json")["metrics"]
    assert {name: values[name] for name in stored} == {name: [m["value"], *m["ci95"]] for name, m in stored.items()}
    assert all(values[name][1] <= values[name][0] <= values[name][2] for name in NAMES)
    text = invoke(*words, "-o", f"eccv={annotations}", "--intervals")
    value, low, high = values["eccv/TR-mAP@R"]
    assert f"eccv/TR-mAP@R        {value:.4f}  [{low:.4f}, {high:.4f}]  percent" in text.stdout
    assert "eccv" not in invoke(*words).stdout
    # of a run that had them, they are asked for again, as any folder that a card names
    unnamed = invoke("score", "--run", annotated, "--data-root", root)
    assert (unnamed.exit_code, unnamed.stderr.count("\n")) == (2, 1)
    assert f"-o eccv={annotations}" in unnamed.stderr.replace("'", "")


def test_intervals_are_of_a_run(tmp_path):
    (tmp_path / "e.npz").write_bytes(b"")
    wrong = invoke("score", "--task", "coco-retrieval", "--predictions", tmp_path / "e.npz", "--intervals")
    assert (wrong.exit_code, wrong.stderr) == (2, "error: --intervals belongs to --run DIR; leave it out\n")


def test_a_folder_that_holds_no_annotations_is_refused_in_a_line(native, tmp_path):
    model = ("--checkpoint", native.checkpoint("coco-retrieval"), "--data-root", native.root("coco-retrieval"))
    wrong = invoke("run", "--task", "coco-retrieval", *model, "-o", f"eccv={tmp_path}")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "original_image_to_caption.json: false negatives file not found" in wrong.stderr
