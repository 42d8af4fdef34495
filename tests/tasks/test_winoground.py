"""Winoground: text, image and group score as on the data set's card, by tag, from either form, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from native import invoke, run_words

from beit3_bench import evaluate
from beit3_bench.errors import BenchError
from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.winoground import Winoground, groups_of


def lines(root):
    return [json.loads(line) for line in (root / "examples.jsonl").read_text().splitlines()]


def card(scores):
    """`text_correct`, `image_correct`, `group_correct` of the card of facebook/winoground; scores: [image][caption]."""
    text = scores[0][0] > scores[0][1] and scores[1][1] > scores[1][0]
    image = scores[0][0] > scores[1][0] and scores[1][1] > scores[0][1]
    return {"text": text, "image": image, "group": text and image}


def test_a_run_scores_as_the_card_by_tag_too(native, tmp_path):
    root = native.root("winoground")
    done = invoke(*run_words(native, "winoground"), "--output", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    rows = RunStore.read(tmp_path / "run").rows()
    of_text = {e.text: rows[e.id]["embedding"] for e in Winoground(root).read("test").examples if e.text}
    judged = []
    for record in lines(root):
        images = [rows[f"image:{record[key]}"]["embedding"] for key in ("image_0", "image_1")]
        texts = [of_text[record[key]] for key in ("caption_0", "caption_1")]
        judged.append((record, card([[image @ text for text in texts] for image in images])))
    for name in ("text", "image", "group"):
        assert result["metrics"][name]["value"] == pytest.approx(np.mean([right[name] for _, right in judged]))
        for tag in ("Object", "Relation", "Both"):
            of_tag = [right[name] for record, right in judged if record["collapsed_tag"] == tag]
            assert result["metrics"][f"{name}/{tag}"]["value"] == pytest.approx(np.mean(of_tag))
    assert result["chance"] == pytest.approx(1 / 6)
    assert result["metrics"]["group"]["headline"]
    assert result["counts"] == {"questions": 9, "images": 18, "texts": len(of_text)}
    html = run_page(tmp_path / "run", n=4).html
    assert "Cosine with picture 2" in html
    assert "Group score by tag" in html


def test_guessing_scores_what_the_paper_says(native, tmp_path):
    class Guess:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def embed(self, *, images=None, texts=None):
            return self.rng.normal(size=(len(images if images is not None else texts), 16))

    values = []
    for seed in range(60):
        result = evaluate(Guess(seed), "winoground", native.root("winoground"), output=tmp_path / str(seed))
        values.append([result.metrics[name].value for name in ("text", "image", "group")])
    np.testing.assert_allclose(np.mean(values, axis=0), [1 / 4, 1 / 4, 1 / 6], atol=0.05)


def test_captions_of_the_tiny_world_have_the_same_words(native):
    for record in lines(native.root("winoground")):
        first, second = (Counter(record[f"caption_{side}"].split()) for side in (0, 1))
        assert first == second
        assert record["caption_0"] != record["caption_1"]


def test_tags_name_what_is_counted():
    record = {"collapsed_tag": "Both", "num_main_preds": 2, "secondary_tag": "Series, Morpheme-Level"}
    assert groups_of(record, "x") == ["Both", "2 main predicates", "Series", "Morpheme-Level"]
    assert groups_of({"secondary_tag": "", "num_main_preds": 1}, "x") == ["1 main predicate"]
    assert groups_of({}, "x") == ["no tag"]


@pytest.fixture
def root(native, tmp_path):
    shutil.copytree(native.root("winoground"), tmp_path / "winoground")
    return tmp_path / "winoground"


def rewrite(root, number=0, gone=(), **fields):
    records = lines(root)
    records[number] = {key: value for key, value in {**records[number], **fields}.items() if key not in gone}
    (root / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r: (r / "examples.jsonl").unlink(), "Winoground examples not found"),
        (lambda r: (r / "examples.jsonl").write_text("\n"), "holds no questions"),
        (lambda r: (r / "examples.jsonl").write_text('{"id": 0'), r"examples.jsonl:1: not valid JSON .*expected one \{\"id\""),
        (lambda r: rewrite(r, gone=("caption_1",)), r"examples.jsonl:1: key 'caption_1' is missing"),
        (lambda r: rewrite(r, 1, id=0), "id 0 is listed twice"),
        (lambda r: rewrite(r, 2, caption_0="x", caption_1="x"), r"examples.jsonl:3: caption_0 and caption_1 are the same"),
        (lambda r: rewrite(r, num_main_preds="two"), "'num_main_preds' should be int"),
        (lambda r: shutil.rmtree(r / "images"), "Winoground image folder not found"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_told_in_a_line(root, spoil, told):
    spoil(root)
    with pytest.raises(BenchError, match=told) as error:
        Winoground(root).read("test")
    assert "\n" not in str(error.value)
