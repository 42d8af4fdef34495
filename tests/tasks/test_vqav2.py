"""VQAv2: vocabulary, splits, submission, scoring from files."""

from __future__ import annotations

import json

import pytest
from goldens import metrics_golden
from native import edit_json, invoke

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.vqav2 import VQAv2, minival_images, read_answer_vocabulary, score_answers


@pytest.fixture(scope="module")
def task(native):
    return VQAv2(native.root("vqav2"))


@pytest.mark.parametrize("case", ["real", "edge"])
def test_official_scores_from_the_command_line(case):
    folder = metrics_golden("vqa")
    expected = json.loads((folder / "expected.json").read_text())[case]["full_precision"]
    files = {"--predictions": "results.json", "--annotations": "annotations.json", "--questions": "questions.json"}
    words = [w for flag, name in files.items() for w in (flag, folder / case / name)]
    outcome = invoke("score", "--task", "vqav2", *words, "--json")
    assert outcome.exit_code == 0
    scores = json.loads(outcome.stdout)
    assert scores["vqa_accuracy"] == pytest.approx(expected["overall"], abs=1e-9)
    for kind, value in expected["perAnswerType"].items():
        assert scores[f"vqa_accuracy/{kind}"] == pytest.approx(value, abs=1e-9)
    for kind, value in expected["perQuestionType"].items():
        assert scores[f"vqa_accuracy/question_type/{kind}"] == pytest.approx(value, abs=1e-9)
    assert len(scores) == 1 + len(expected["perAnswerType"]) + len(expected["perQuestionType"])


def test_answers_come_in_order_of_first_appearance_train_then_val_with_nine_occurrences(task):
    answers = [a["multiple_choice_answer"] for s in ("train2014", "val2014") for a in task.annotations(s).values()]
    vocabulary = task.vocabulary()
    first = {answer: answers.index(answer) for answer in vocabulary}
    assert list(first.values()) == sorted(first.values())
    assert all(answers.count(answer) >= 9 for answer in vocabulary)
    assert len(set(vocabulary)) == len(vocabulary)
    assert task.read("val").labels == tuple(vocabulary)


def test_an_official_vocabulary_file_gives_the_order(tmp_path, native):
    path = tmp_path / "answer2label.txt"
    path.write_text("".join(json.dumps({"answer": a, "label": n}) + "\n" for n, a in enumerate(["net", "pitcher"])))
    assert VQAv2(native.root("vqav2"), {"answer_vocab": str(path)}).vocabulary() == ["net", "pitcher"]
    path.write_text('{"answer": "net", "label": 1}\n')
    with pytest.raises(BenchError, match="label 1 instead of 0"):
        read_answer_vocabulary(path)


def test_a_head_of_another_size_is_refused(native, tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text('{"answer": "yes", "label": 0}\n')
    words = ["--checkpoint", native.checkpoint("vqav2"), "--data-root", native.root("vqav2")]
    outcome = invoke("run", "--task", "vqav2", *words, "-o", f"answer_vocab={path}", "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    assert f"its head has 14 answers, {path} has 1; " in outcome.stderr
    assert "allow-missing" not in outcome.stderr


def test_questions_out_of_vocabulary_stay_in_evaluation_and_leave_training(task):
    known = set(task.vocabulary())
    evaluated = task.read("val").examples
    assert len(evaluated) == len(task.annotations("val2014"))
    unknown = [e for e in evaluated if not known & {a["answer"] for a in e.target["answers"]}]
    assert unknown
    assert not {f"val:{e.id}" for e in unknown} & {e.id for e in task.training_split().examples}


def test_minival_is_a_fixed_part_of_val_that_training_leaves_out(task):
    minival, val = task.read("minival").examples, task.read("val").examples
    assert 0 < len(minival) < len(val)
    assert {e.id for e in minival} <= {e.id for e in val}
    held_out = {e.images[0] for e in minival}
    assert not held_out & {e.images[0] for e in task.training_split().examples}
    assert minival_images([5, 3, 5, 9]) == minival_images([9, 3, 5])
    many = minival_images(range(40_504))
    assert len(many) == 1000
    assert sorted(many)[:3] == sorted(minival_images(reversed(range(40_504))))[:3]


def test_training_targets_are_soft_scores_of_vocabulary_answers(task):
    example = task.training_split().examples[0]
    assert example.target
    assert set(example.target.values()) <= {0.3, 0.6, 0.9, 1.0}
    split, question = example.id.split(":")
    answers = [a["answer"] for a in task.annotations(f"{split}2014")[int(question)]["answers"]]
    for label, score in example.target.items():
        assert score == (0.0, 0.3, 0.6, 0.9, 1.0)[min(answers.count(task.vocabulary()[label]), 4)]


@pytest.mark.parametrize("split", ["test-dev", "test-std"])
def test_test_splits_are_submitted_with_every_question_once(native, tmp_path, split):
    words = ["--checkpoint", native.checkpoint("vqav2"), "--data-root", native.root("vqav2"), "--workers", 0]
    outcome = invoke("run", "--task", "vqav2", *words, "--split", split, "--output", tmp_path / "run", "--json")
    result = json.loads(outcome.stdout)
    assert result["status"] == "to upload"
    assert result["metrics"] == {}
    (file,) = (tmp_path / "run" / "submission").iterdir()
    records = json.loads(file.read_text())
    expected = [int(e.id) for e in VQAv2(native.root("vqav2")).read(split).examples]
    assert sorted(r["question_id"] for r in records) == sorted(expected)
    assert all(isinstance(r["answer"], str) for r in records)


def test_the_written_submission_scores_as_the_run(native, tmp_path):
    words = ["--checkpoint", native.checkpoint("vqav2"), "--data-root", native.root("vqav2"), "--workers", 0]
    outcome = invoke("run", "--task", "vqav2", *words, "--output", tmp_path / "run", "--json")
    measured = {n: m["value"] for n, m in json.loads(outcome.stdout)["metrics"].items()}
    (file,) = (tmp_path / "run" / "submission").iterdir()
    annotations = native.root("vqav2") / "vqa" / "v2_mscoco_val2014_annotations.json"
    scored = VQAv2.score_file(ScoreInputs(file, annotations)).metrics
    assert scored == pytest.approx(measured, abs=1e-9)


def predictions(native, tmp_path, change=None):
    annotations = native.root("vqav2") / "vqa" / "v2_mscoco_val2014_annotations.json"
    records = [
        {"question_id": a["question_id"], "answer": "yes"} for a in json.loads(annotations.read_text())["annotations"]
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    if change:
        edit_json(path, change)
    return path, annotations


BAD = [
    (lambda r: r[:-2], "2 of .* questions without prediction"),
    (lambda r: [*r, r[0]], "predicted twice"),
    (lambda r: [*r, {"question_id": 1, "answer": "no"}], "1 unknown questions"),
    (lambda r: [{**r[0], "answer": 3}, *r[1:]], "'answer' should be str"),
    (lambda r: {"results": r}, "expected a JSON list"),
    (lambda r: [{"answer": "no"}, *r], "'question_id' is missing"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_predictions_are_named(native, tmp_path, change, message):
    path, annotations = predictions(native, tmp_path, change)
    with pytest.raises(BenchError, match=message):
        VQAv2.score_file(ScoreInputs(path, annotations))


@pytest.mark.parametrize("written", [float, str])
def test_question_ids_may_be_whole_floats_or_strings(native, tmp_path, written):
    path, annotations = predictions(native, tmp_path)
    expected = VQAv2.score_file(ScoreInputs(path, annotations)).metrics
    edit_json(path, lambda r: [{**q, "question_id": written(q["question_id"])} for q in r])
    assert VQAv2.score_file(ScoreInputs(path, annotations)).metrics == expected
    edit_json(path, lambda r: [{**r[0], "question_id": r[0]["question_id"] + ("5" if written is str else 0.5)}, *r[1:]])
    with pytest.raises(BenchError, match=r"results\.json: .*(should be int \(a whole number\)|unknown questions)"):
        VQAv2.score_file(ScoreInputs(path, annotations))


def test_json_lines_score_as_a_list(native, tmp_path):
    path, annotations = predictions(native, tmp_path)
    expected = VQAv2.score_file(ScoreInputs(path, annotations)).metrics
    path.write_text("\ufeff" + "\r\n".join(json.dumps(r) for r in json.loads(path.read_text())))
    assert VQAv2.score_file(ScoreInputs(path, annotations)).metrics == expected


def test_ids_of_annotations_and_questions_may_be_floats_and_run_reads_the_same(native, tmp_path):
    root = native.copy("vqav2", tmp_path)
    expected = [(e.id, e.images, e.target["image_id"]) for e in VQAv2(root).read("val").examples]
    for kind, name in (
        ("questions", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("annotations", "v2_mscoco_val2014_annotations.json"),
    ):
        edit_json(
            root / "vqa" / name,
            lambda c, kind=kind: c[kind].__setitem__(
                slice(None),
                [{**r, "question_id": float(r["question_id"]), "image_id": str(r["image_id"])} for r in c[kind]],
            ),
        )
    assert [(e.id, e.images, e.target["image_id"]) for e in VQAv2(root).read("val").examples] == expected


def test_the_mend_for_an_answer_list_of_ones_own_shows_its_form(native, tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n")
    with pytest.raises(BenchError, match=r'answers\.txt:1: not valid JSON .*expected one \{"answer": "yes"') as caught:
        VQAv2(native.root("vqav2"), {"answer_vocab": str(path)}).vocabulary()
    assert "again" not in str(caught.value)


def test_a_partial_file_is_scored_with_its_coverage(native, tmp_path):
    path, annotations = predictions(native, tmp_path, lambda r: r[:10])
    scores = VQAv2.score_file(ScoreInputs(path, annotations, allow_partial=True))
    assert scores.counts["questions"] == 10
    assert any("partial: 10 of" in note for note in scores.notes)


def test_questions_of_another_split_are_refused(native, tmp_path):
    path, annotations = predictions(native, tmp_path)
    questions = native.root("vqav2") / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json"
    with pytest.raises(BenchError, match="are not in both files"):
        VQAv2.score_file(ScoreInputs(path, annotations, questions))


def test_per_question_values_are_kept_in_percent():
    target = {
        "answers": [{"answer": "yes", "answer_id": n} for n in range(2)]
        + [{"answer": "no", "answer_id": n} for n in range(2, 10)],
        "answer_type": "yes/no",
        "question_type": "is",
        "multiple_choice_answer": "no",
        "image_id": 7,
    }
    scores = score_answers(["yes", "no"], [target, target], ["a", "b"])
    assert scores.samples["vqa_accuracy"] == pytest.approx({"a": 60.0, "b": 100.0})
    assert scores.metrics["vqa_accuracy"] == pytest.approx(80.0)
    assert scores.chance == pytest.approx(100.0)  # of always giving the commonest answer


@pytest.mark.parametrize("subset", ["train2014", "val2014"])
def test_an_answer_that_is_no_text_is_named_in_train_as_in_val(native, tmp_path, subset):
    root = native.copy("vqav2", tmp_path)

    def spoil(content):
        content["annotations"][3]["answers"][7]["answer"] = ["net"]

    edit_json(root / "vqa" / f"v2_mscoco_{subset}_annotations.json", spoil)
    with pytest.raises(BenchError, match=r"annotations\[3\]\.answers\[7\]: 'answer' should be str, found list"):
        VQAv2(root).read("val")


def test_an_evaluation_does_not_keep_the_annotations_of_train(native):
    task = VQAv2(native.root("vqav2"))
    task.read("val")
    assert list(task._annotations) == ["val2014"]
    assert task.training_split().examples
    assert set(task._annotations) == {"train2014", "val2014"}
