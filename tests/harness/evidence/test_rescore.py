"""Rows of a run folder that somebody has edited are not scored."""

from __future__ import annotations

import pytest
from native import invoke, run_words

from beit3_bench.harness.record.rows import commit_bytes
from beit3_bench.harness.record.store import RunStore


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("nlvr2", {"label": "<script>"}),
        ("nlvr2", {"label": 1}),
        ("vqav2", {"answer": None}),
        ("coco-caption", {"caption": 7}),
        ("flickr30k", {"embedding": "x"}),
        ("imagenet-linear", {"top5": {"1": 1}}),
        ("imagenet-linear", {"top5": [1.5]}),
    ],
)
def test_rows_of_another_kind_are_damaged_whatever_their_marker_says(native, task, values, tmp_path):
    folder = tmp_path / "run"
    assert invoke(*run_words(native, task), "--output", folder, "--limit", 4).exit_code == 0
    rows = list(RunStore.read(folder).rows().values())
    rows[0].update(values)
    (folder / "rows" / "rank-00000.jsonl").write_bytes(commit_bytes(rows))
    result = invoke("score", "--run", folder, "--data-root", native.root(task))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"error: {folder}: row {rows[0]['id'][:40]}: key '{next(iter(values))}" in result.stderr
    assert "it was edited or damaged, run again with --overwrite" in result.stderr


def test_what_a_scorer_refuses_of_rows_names_the_run(native, tmp_path, monkeypatch):
    from beit3_bench.errors import BenchError
    from beit3_bench.tasks.nlvr2 import NLVR2

    folder = tmp_path / "run"
    assert invoke(*run_words(native, "nlvr2"), "--output", folder, "--limit", 4).exit_code == 0

    def refuse(*arguments: object) -> None:
        raise BenchError("detections[3]: 'score' should be a finite number, found 'x'; mend this record")

    monkeypatch.setattr(NLVR2, "score", refuse)
    result = invoke("score", "--run", folder, "--data-root", native.root("nlvr2"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {folder}: detections[3]: 'score' should be a finite number")
