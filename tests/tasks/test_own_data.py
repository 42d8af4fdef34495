"""Tasks of one's own data, from file to number: the same numbers as the tasks that ask the same."""

from __future__ import annotations

import json

import pytest
from native import edit_json, invoke, run_words
from own_files import CHECKPOINTS, answer_list, options_of, own_words, records_of, write_lines

from beit3_bench import evaluate, load
from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.vqa import exact_match

TASKS = tuple(CHECKPOINTS)


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def result_of(*words):
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def values(result):
    return {name: metric["value"] for name, metric in result["metrics"].items()}


def own_file(native, task, tmp_path, count=None, name="mine"):
    return write_lines(tmp_path / f"{name}.jsonl", records_of(native, task)[:count])


@pytest.mark.parametrize("task", TASKS)
def test_the_numbers_are_those_of_the_task_that_asks_the_same(native, task, tmp_path):
    like, options = CHECKPOINTS[task], options_of(native, task, tmp_path)
    own = result_of(*own_words(native, task, own_file(native, task, tmp_path)), *options, "--output", tmp_path / "own")
    more = options if task == "caption" else []
    same = result_of(*run_words(native, like), *more, "--output", tmp_path / "same")
    expected = values(same)
    assert expected
    for name, value in values(own).items():
        if name in expected:
            assert value == pytest.approx(expected[name], abs=1e-9)
    assert {"classify": "top1", "retrieval": "mean_recall", "caption": "CIDEr", "vqa": "vqa_accuracy"}[task] in values(
        own
    )
    assert (own["split"], own["setting"], own["world"]) == ("mine", "zero-shot", "real")
    assert own["data"]["own"]
    assert own["model"]["protocol"] == same["model"]["protocol"]


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_without_truth_predictions_are_written_and_nothing_is_scored(native, task, tmp_path):
    records = [{k: v for k, v in r.items() if k not in ("captions", "answers")} for r in records_of(native, task)[:5]]
    file = write_lines(tmp_path / "mine.jsonl", records)
    result = result_of(
        *own_words(native, task, file), *options_of(native, task, tmp_path), "--output", tmp_path / "run"
    )
    assert (result["status"], result["metrics"], result["counts"]) == ("predicted", {}, {"samples": 5})
    assert "holds no truth, so nothing is scored; submission/predictions.jsonl" in " ".join(result["notes"])
    lines = [json.loads(line) for line in (tmp_path / "run/submission/predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [record["id"] for record in records]
    key = "caption" if task == "caption" else "answer"
    assert all(isinstance(line[key], str) for line in lines)
    if task == "vqa":
        assert [line["question"] for line in lines] == [record["question"] for record in records]


def test_other_counts_of_answers_are_scored_by_exact_match(native, tmp_path):
    records = records_of(native, "vqa")[:12]
    for n, record in enumerate(records):
        record["answers"] = record["answers"][: 1 + n % 3]
    records[0]["answers"] = ["nobody would say that"]
    file = write_lines(tmp_path / "mine.jsonl", records)
    result = result_of(
        *own_words(native, "vqa", file), *options_of(native, "vqa", tmp_path), "--output", tmp_path / "run"
    )
    assert values(result).keys() == {"exact_match"}
    assert result["metrics"]["exact_match"]["headline"]
    notes = " ".join(result["notes"])
    assert "questions have 1 to 3 answers, and VQA accuracy is defined for ten" in notes
    rows = {
        r["id"]: r
        for p in (tmp_path / "run/rows").iterdir()
        for r in map(json.loads, p.read_text().splitlines())
        if "id" in r
    }
    right = [exact_match(rows[r["id"]]["answer"], r["answers"]) for r in records]
    assert values(result)["exact_match"] == pytest.approx(100 * sum(right) / len(right))
    known = [json.loads(line)["answer"] for line in (tmp_path / "answer2label.txt").read_text().splitlines()]
    answerable = sum(any(exact_match(a, known) for a in r["answers"]) for r in records)
    assert answerable < 12
    assert (
        f"{answerable} of 12 questions have one of their answers among the {len(known)} that the model can give"
        in notes
    )


@pytest.mark.parametrize(
    ("said", "answers", "right"), [("Two.", ["2"], True), ("a cat", ["dog", "the Cat"], True), ("cat", ["cats"], False)]
)
def test_exact_match_normalises_as_vqa_accuracy_does(said, answers, right):
    assert exact_match(said, answers) == right


def test_a_head_whose_answers_nobody_knows_is_refused(native, tmp_path):
    done = invoke(*own_words(native, "vqa", own_file(native, "vqa", tmp_path, 3)), "--output", tmp_path / "run")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert (
        "carries no answer list; give the one that it was trained for: -o answer_vocab=answer2label.txt" in done.stderr
    )


def test_classes_up_to_five_have_no_top5(native, tmp_path):
    records = records_of(native, "classify")
    labels = sorted({r["label"] for r in records})[:3]
    file = write_lines(tmp_path / "mine.jsonl", [r for r in records if r["label"] in labels])
    result = result_of(*own_words(native, "classify", file), "--output", tmp_path / "run")
    assert values(result).keys() == {"top1"}
    assert result["chance"] == pytest.approx(1 / 3)
    assert result["counts"]["classes"] == 3


def test_a_limit_takes_samples_of_the_file(native, tmp_path):
    for task, unit in (("retrieval", "images"), ("classify", "images")):
        file = own_file(native, task, tmp_path, name=task)
        result = result_of(*own_words(native, task, file), "--limit", 4, "--output", tmp_path / f"run-{task}")
        assert (result["subset"], result["counts"][unit]) == ({"limit": 4}, 4)


# ---- the table ---------------------------------------------------------------------------------------------------------


def test_data_of_one_name_and_other_content_are_kept_apart_and_beside_no_published_row(native, tmp_path):
    records = records_of(native, "retrieval")
    (tmp_path / "x").mkdir()
    first = write_lines(tmp_path / "shop.jsonl", records[:6])
    second = write_lines(tmp_path / "x" / "shop.jsonl", records[:5])
    for n, (file, more) in enumerate(
        [(first, []), (first, ["--dtype", "bf16"]), (second, []), (second, ["--data-name", "b"])]
    ):
        result_of(*own_words(native, "retrieval", file), *more, "--output", tmp_path / "runs" / str(n))
    done = invoke("table", "--runs", tmp_path / "runs", "--format", "json")
    assert done.exit_code == 0, done.output
    sections = json.loads(done.stdout)["sections"]
    rows = {section["split"]: [row["source"] for row in section["rows"]] for section in sections}
    assert sorted(len(sources) for sources in rows.values()) == [1, 1, 2]
    assert rows["b"] == ["run 3"]
    assert ["run 2"] in rows.values()
    assert sum(name.startswith("shop (") for name in rows) == 2
    assert all(row["measured"] for section in sections for row in section["rows"])
    done = invoke("table", "--runs", tmp_path / "runs")
    assert "Image-text retrieval on data of your own, b, zero-shot" in done.stdout
    assert "published value" not in done.stdout


def test_the_folder_of_a_run_is_named_after_the_data(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = own_file(native, "retrieval", tmp_path, 4)
    result_of(*own_words(native, "retrieval", file))
    result_of(*own_words(native, "retrieval", file), "--data-name", "my shop")
    names = sorted(p.name for p in (tmp_path / "results/runs").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["retrieval-mine-retrieval", "retrieval-my shop-retrieval"]


# ---- again, from the folder -------------------------------------------------------------------------------------------------


def test_a_run_is_scored_and_replayed_with_its_file_named_again(native, tmp_path):
    file = own_file(native, "retrieval", tmp_path, 6)
    result = result_of(*own_words(native, "retrieval", file), "--output", tmp_path / "run")
    done = invoke("score", "--run", tmp_path / "run")
    assert f"--data {file}" in done.stderr
    done = invoke("score", "--run", tmp_path / "run", "--data", file, "--json")
    assert json.loads(done.stdout) == pytest.approx(values(result))
    done = invoke("replay", tmp_path / "run", "--data", file, "--checkpoint", native.checkpoint("coco-retrieval"))
    assert done.exit_code == 0, done.output
    write_lines(file, records_of(native, "retrieval")[:5])
    assert invoke("score", "--run", tmp_path / "run", "--data", file).exit_code == 2


# ---- from Python ---------------------------------------------------------------------------------------------------------


def test_evaluate_takes_a_file_of_ones_own(native, tmp_path):
    file = own_file(native, "retrieval", tmp_path, 6)
    expected = result_of(*own_words(native, "retrieval", file), "--output", tmp_path / "run")
    model = load(native.checkpoint("coco-retrieval"), "retrieval", device="cpu")
    result = evaluate(model, "retrieval", data=file, data_name="shop")
    assert {n: m.value for n, m in result.metrics.items()} == values(expected)
    assert result.record["split"] == "shop"
    base = load(native.checkpoint("coco-retrieval"), "coco-retrieval", device="cpu")
    assert evaluate(base, "retrieval", data=str(file)).metrics == result.metrics


def test_evaluate_asks_any_object_about_data_of_ones_own(native, tmp_path):
    class Always:
        def answer(self, images, questions):
            return ["yes"] * len(questions)

    result = evaluate(Always(), "vqa", data=own_file(native, "vqa", tmp_path, 8))
    assert 0 <= result.metrics["vqa_accuracy"].value <= 100
    assert not any("that the model can give" in note for note in result.notes)


def test_a_model_that_was_loaded_with_its_answers_is_told_what_it_can_answer(native, tmp_path):
    answers = [json.loads(line)["answer"] for line in answer_list(native, tmp_path).read_text().splitlines()]
    model = load(native.checkpoint("vqav2"), "vqa", answers=answers, device="cpu")
    result = evaluate(model, "vqa", data=own_file(native, "vqa", tmp_path, 8))
    assert any(f"among the {len(answers)} that the model can give" in note for note in result.notes)


@pytest.mark.parametrize(
    ("task", "places", "message"),
    [
        ("retrieval", {"data_root": "x"}, "reads a file of one's own, and has no data_root; give data and data_name"),
        ("retrieval", {"data": "x.jsonl", "split": "test"}, "has no split"),
        ("retrieval", {}, "reads a file of one's own; give data"),
        ("vqav2", {"data": "x.jsonl"}, "reads a data set, and has no data; give data_root and split"),
        ("vqav2", {}, "reads a data set; give data_root"),
    ],
)
def test_evaluate_tells_data_sets_and_files_apart(task, places, message):
    with pytest.raises(BenchError, match=message):
        evaluate(object(), task, **places)


# ---- verbs -----------------------------------------------------------------------------------------------------------------


def test_verify_reads_the_file_and_decodes_its_pictures(native, tmp_path):
    file = own_file(native, "vqa", tmp_path, 9)
    done = invoke("data", "verify", "--task", "vqa", "--data", file)
    assert done.exit_code == 0, done.output
    assert "mine: 9 samples" in done.stdout
    assert "whole: nothing found" in done.stdout
    write_lines(
        file, [*records_of(native, "vqa")[:2], {"image": "nowhere.jpg", "id": "z", "question": "?", "answers": ["x"]}]
    )
    done = invoke("data", "verify", "--task", "vqa", "--data", file)
    assert done.exit_code == 2
    assert f"finding (reader): {file}:3: image nowhere.jpg not found" in done.stdout


@pytest.mark.parametrize("task", TASKS)
def test_a_task_tells_how_a_line_looks_and_its_command(task):
    done = invoke("tasks", task)
    assert "lines of --data FILE.jsonl, one per sample:" in done.stdout
    assert '{"image": "a.jpg", ' in done.stdout
    assert f"beit3-bench run --task {task} --checkpoint " in done.stdout
    assert "--data FILE.jsonl\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task", "retrieval", "--data-root", "x"],
            "task retrieval reads a file of one's own: --data FILE.jsonl, not --data-root",
        ),
        (
            ["--task", "coco-retrieval", "--data", "x.jsonl"],
            "task coco-retrieval reads --data-root DIR; --data FILE.jsonl is for",
        ),
        (["--task", "all", "--data", "x.jsonl"], "reads --data-root DIR; --data FILE.jsonl is for"),
        (["--task", "retrieval,vqav2", "--data", "vqav2=x.jsonl"], "task vqav2 reads --data-root DIR"),
        (
            ["--task", "retrieval", "--data", "x.jsonl", "--split", "val"],
            "has no splits, so leave out --split; --data-name names",
        ),
        (["--task", "vqav2", "--data-root", "x", "--data-name", "y"], "--data-name is for data of one's own"),
        (["--task", "retrieval"], "task retrieval: no --data is given for it; add --data PATH (or retrieval=PATH)"),
        (["--task", "retrieval", "--data", "x.jsonl"], "x.jsonl: retrieval data file not found"),
    ],
)
def test_what_does_not_belong_together_is_one_line(native, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("run", *words, "--checkpoint", native.checkpoint("coco-retrieval"))
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_is_not_fine_tuned_on(native, tmp_path):
    done = invoke("finetune", "--task", "vqa", "--checkpoint", native.checkpoint("vqav2"), "--output", tmp_path / "out")
    assert "is not trained on; fine-tune for vqav2" in done.stderr
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_a_single_picture_is_asked_by_the_task_that_asks_the_same(native, tmp_path):
    words = [
        "predict",
        "--task",
        "vqa",
        "--checkpoint",
        native.checkpoint("vqav2"),
        "--image",
        tmp_path,
        "--text",
        "what?",
    ]
    done = invoke(*words)
    assert "--task vqav2 asks the same of a picture" in done.stderr
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_files_of_settings_and_of_runs_name_it(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = own_file(native, "retrieval", tmp_path, 5)
    (tmp_path / "beit3-bench.toml").write_text(
        f'device = "cpu"\nworkers = 0\n[data]\nroot = "{native.world}"\nretrieval = "mine.jsonl"\n'
        f'[checkpoints]\ncoco-retrieval = "{native.checkpoint("coco-retrieval")}"\n'
    )
    assert result_of("run", "--task", "retrieval")["split"] == "mine"
    done = invoke("run", "--task", "all", "--limit", 2)
    assert "retrieval mine" in done.stdout
    assert "\ncaption: skipped" not in done.stderr
    (tmp_path / "runs.toml").write_text(
        '[[run]]\ntask = "retrieval"\ndata = "mine.jsonl"\ndata_name = "shop"\noutput = "out"\n'
    )
    done = invoke("run", "--config", "runs.toml")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/result.json").read_text())["split"] == "shop"
    assert file.exists()


def test_results_of_earlier_versions_say_submitted_for_what_is_to_be_uploaded(native, tmp_path):
    words = [*run_words(native, "vqav2"), "--split", "test-dev", "--limit", 3, "--output", tmp_path / "runs" / "r"]
    assert result_of(*words)["status"] == "to upload"
    edit_json(tmp_path / "runs/r/result.json", lambda content: content.update(status="submitted"))
    assert "to upload" in invoke("runs", "--runs", tmp_path / "runs").stdout
    assert ": to upload; the truth of this split" in invoke("table", "--runs", tmp_path / "runs").stdout
