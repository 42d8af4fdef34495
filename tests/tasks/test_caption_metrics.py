"""Caption scores against goldens, against pycocoevalcap on random captions, and with Java missing, broken or slow."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import sys
import textwrap
import time
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics import captions, java_programs, meteor, spice
from beit3_bench.tasks.metrics.bleu import bleu_statistics, reduce_bleu
from beit3_bench.tasks.metrics.captions import METRICS, reduce_captions, score_captions
from beit3_bench.tasks.metrics.cider import cider
from beit3_bench.tasks.metrics.java_programs import Unavailable, converse
from beit3_bench.tasks.metrics.meteor import meteor_statistics, reduce_meteor
from beit3_bench.tasks.metrics.ngrams import count_ngrams
from beit3_bench.tasks.metrics.rouge import rouge_l

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
needs_pycocoevalcap = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")

WITHOUT_JAVA = [name for name in METRICS if name not in ("METEOR", "SPICE")]
PREDICTIONS = {"1": "A man riding a wave.", "2": "a cat sits on the mat", "3": "two dogs"}
REFERENCES = {
    "1": ["A man is riding a big wave.", "a surfer on a wave"],
    "2": ["The cat sat on the mat!", "a cat on a mat", "there is a cat on the mat"],
    "3": ["Two dogs play in the park with a ball."],
}


@lru_cache(maxsize=2)
def golden(part: str) -> tuple[dict, dict[str, str], dict[str, list[str]]]:
    folder = metrics_golden("captioning")
    annotations = json.loads((folder / part / "captions_val.json").read_text())
    references: dict[str, list[str]] = {str(image["id"]): [] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        references[str(annotation["image_id"])].append(annotation["caption"])
    results = json.loads((folder / part / "results.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())[part]
    return expected, {str(entry["image_id"]): entry["caption"] for entry in results}, references


def official_name(name: str) -> str:
    return name.replace("BLEU", "Bleu").replace("-", "_")


def assert_equals_golden(scores, expected, names):
    for name in names:
        assert scores.metrics[name] == pytest.approx(expected["overall"][official_name(name)], abs=1e-12)
        for image, value in scores.per_image[name].items():
            assert value == pytest.approx(expected["per_image"][image][official_name(name)], abs=1e-12), (name, image)


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.mark.parametrize("part", ["fakecap", "mixed"])
def test_golden_scores_without_java_on_the_path(part, no_java):
    expected, predictions, references = golden(part)
    scores = score_captions(predictions, references)
    assert list(scores.metrics) == WITHOUT_JAVA
    assert_equals_golden(scores, expected, WITHOUT_JAVA)
    assert any(note.startswith("METEOR skipped: java was not found") for note in scores.notes)
    assert any(note.startswith("SPICE skipped: ") for note in scores.notes)
    assert scores.ids == list(references)


@needs_java
@needs_pycocoevalcap
def test_golden_meteor_with_java():
    # One run for both parts (Java needs seconds to load): counts of both, then each part's corpus score from its rows.
    parts = [golden("fakecap"), golden("mixed")]
    predictions = {f"{i} {image}": text for i, part in enumerate(parts) for image, text in part[1].items()}
    references = {f"{i} {image}": texts for i, part in enumerate(parts) for image, texts in part[2].items()}
    scores = score_captions(predictions, references, metrics=["METEOR"])
    assert not [note for note in scores.notes if "skipped" in note]
    for i, (expected, _, _) in enumerate(parts):
        rows = [row for row, image in enumerate(scores.ids) if image.startswith(f"{i} ")]
        total = scores.statistics["METEOR"][rows].sum(axis=0)
        assert reduce_meteor(total) == pytest.approx(expected["overall"]["METEOR"], abs=1e-12)
        for row in rows:
            image = scores.ids[row]
            wanted = expected["per_image"][image.split(" ")[1]]["METEOR"]
            assert scores.per_image["METEOR"][image] == pytest.approx(wanted, abs=1e-12), image


# ---- small cases, worked out by hand ------------------------------------------------------------------------------------


def test_bleu_of_a_small_case_by_hand():
    grams = count_ngrams([["a", "cat", "sat", "sat"]], [[["a", "cat", "sat"], ["the", "cat", "sat", "down", "now"]]])
    # lengths 3 and 5 are equally close to 4: the shorter one counts, and there is no brevity penalty
    assert bleu_statistics(grams)[0].tolist() == [3, 2, 1, 0, 4, 3, 2, 1, 4, 3]
    assert reduce_bleu(bleu_statistics(grams))[0, :3] == pytest.approx(
        [3 / 4, math.sqrt(3 / 4 * 2 / 3), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3)], abs=1e-8
    )


def test_bleu_punishes_brevity_by_hand():
    grams = count_ngrams([["a", "cat"]], [[["a", "cat", "sat", "down"]]])
    assert reduce_bleu(bleu_statistics(grams))[0, 0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-8)


def test_rouge_of_a_small_case_by_hand():
    # common subsequence "a on mat" of 3: best precision 3/4, best recall 3/3, from different references
    score = rouge_l([["a", "x", "on", "mat"]], [[["a", "on", "mat"], ["a", "cat", "on", "the", "mat"]]])
    assert score.tolist() == [pytest.approx(2.44 * 0.75 / (1 + 1.44 * 0.75))]


def test_cider_of_a_small_case_by_hand():
    # Two images; "a" is in both (weight 0), "cat" and "dog" in one each (weight log 2). Unigrams match up to "cat",
    # bigrams "a cat" fully; there is nothing longer, and so half of the four lengths score 1.
    grams = count_ngrams([["a", "cat"], ["a", "dog"]], [[["a", "cat"]], [["a", "dog"], ["a", "dog"]]])
    assert cider(grams) == pytest.approx([5.0, 5.0])
    # One word more in the candidate: unigram "cat" of the reference against {"cat", "cat"}; clipped, and a penalty
    grams = count_ngrams([["cat", "cat"], ["a", "dog"]], [[["cat"]], [["a", "dog"]]])
    assert cider(grams)[0] == pytest.approx(10 / 4 * (1 * 1) / (2 * 1) * math.exp(-1 / 72))


def test_cider_is_zero_for_a_single_image_and_says_so(no_java):
    scores = score_captions({"1": "a cat"}, {"1": ["a cat"]})
    assert scores.metrics["CIDEr"] == 0.0
    assert any("CIDEr is 0 by definition" in note for note in scores.notes)


def test_token_with_a_space_of_its_own_counts_as_two_words_except_for_rouge():
    tokens = [["2\u00a01/2", "cups"]]
    assert count_ngrams(tokens, [tokens]).lengths.tolist() == [3, 3]
    assert rouge_l(tokens, [[["2", "1/2", "cups"]]])[0] == pytest.approx(2.44 * 0.5 / 3 / (1 / 3 + 1.44 * 0.5))


# ---- properties ---------------------------------------------------------------------------------------------------------

sentence = st.lists(st.sampled_from(["a", "cat", "dog", "on", "mat", "1\u00a02", "the"]), max_size=9)
images = st.lists(st.tuples(sentence, st.lists(sentence, min_size=1, max_size=4)), min_size=1, max_size=6)


@needs_pycocoevalcap
@settings(max_examples=150, deadline=None)
@given(images)
def test_random_captions_score_as_with_pycocoevalcap(data):
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider_scorer import CiderScorer
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = [c for c, _ in data], [r for _, r in data]
    bleu, cider_d = BleuScorer(n=4), CiderScorer()
    for candidate, group in data:
        pair = (" ".join(candidate), [" ".join(tokens) for tokens in group])
        bleu += pair
        cider_d += pair
    overall, each = bleu.compute_score(option="closest", verbose=0)
    grams = count_ngrams(candidates, references)
    statistics = bleu_statistics(grams)
    assert reduce_bleu(statistics.sum(axis=0)) == pytest.approx(overall, abs=1e-12)
    assert reduce_bleu(statistics) == pytest.approx(np.array(each).T, abs=1e-12)
    rouge = [Rouge().calc_score([" ".join(c)], [" ".join(t) for t in r]) for c, r in data]
    assert rouge_l(candidates, references) == pytest.approx(rouge, abs=1e-12)
    # pycocoevalcap's own check needs at least one n-gram in the references
    if any(tokens for group in references for tokens in group):
        assert cider(grams) == pytest.approx(cider_d.compute_score()[1], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(images, st.randoms())
def test_scores_of_an_image_do_not_depend_on_the_order_of_images(data, chance):
    order = chance.sample(range(len(data)), len(data))
    original = count_ngrams([c for c, _ in data], [r for _, r in data])
    permuted = count_ngrams([data[i][0] for i in order], [data[i][1] for i in order])
    assert cider(permuted) == pytest.approx(cider(original)[order], abs=1e-12)
    assert bleu_statistics(permuted).tolist() == bleu_statistics(original)[order].tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=9), min_size=2, max_size=5))
def test_copy_of_a_reference_scores_full_marks(sentences):
    sentences = [[*words, f"only{i}", "and", f"here{i}", "again"] for i, words in enumerate(sentences)]
    grams = count_ngrams(sentences, [[words] for words in sentences])
    assert reduce_bleu(bleu_statistics(grams).sum(axis=0)) == pytest.approx([1.0] * 4, abs=1e-6)
    assert rouge_l(sentences, [[words] for words in sentences]).tolist() == [pytest.approx(1.0)] * len(sentences)
    assert cider(grams) == pytest.approx([10.0] * len(sentences))


def test_large_vocabulary_does_not_overflow_the_ngram_codes():
    chance = random.Random(0)
    sentences = [[f"w{chance.randrange(60_000)}" for _ in range(12)] for _ in range(6000)]
    references = [[[*s[:6], *reversed(s[6:])], s] for s in sentences]
    statistics = bleu_statistics(count_ngrams(sentences, references))
    assert (statistics[:, :4] == statistics[:, 4:8]).all()  # each candidate is one of its references


@settings(max_examples=50, deadline=None)
@given(images, st.integers(0, 2**32 - 1))
def test_resampled_sums_give_the_scores_of_the_resample(data, seed):
    picked = np.random.default_rng(seed).integers(0, len(data), len(data))
    statistics = {
        "images": np.ones(len(data)),
        "BLEU": bleu_statistics(count_ngrams([c for c, _ in data], [r for _, r in data])),
        "ROUGE-L": rouge_l([c for c, _ in data], [r for _, r in data]),
    }
    weights = np.stack([np.bincount(picked, minlength=len(data)), np.ones(len(data))]).astype(float)
    resampled = reduce_captions({name: weights @ values for name, values in statistics.items()})
    again = [data[i] for i in picked]
    direct = reduce_bleu(bleu_statistics(count_ngrams([c for c, _ in again], [r for _, r in again])).sum(axis=0))
    assert [resampled[f"BLEU-{n}"][0] for n in (1, 2, 3, 4)] == pytest.approx(direct.tolist(), abs=1e-12)
    assert resampled["ROUGE-L"] == pytest.approx([statistics["ROUGE-L"][picked].mean(), statistics["ROUGE-L"].mean()])


def test_corpus_scores_are_the_reduced_sums_of_the_statistics(no_java):
    scores = score_captions(PREDICTIONS, REFERENCES)
    again = reduce_captions({name: values.sum(axis=0) for name, values in scores.statistics.items()})
    assert {name: float(value) for name, value in again.items()} == scores.metrics
    assert scores.metrics["CIDEr"] == pytest.approx(np.mean(list(scores.per_image["CIDEr"].values())))


# ---- input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, REFERENCES, "predictions are empty"),
        ({**PREDICTIONS, "4": "a bird"}, REFERENCES, "1 unknown images .4."),
        ({"1": "a man"}, REFERENCES, "2 of 3 images without prediction .2, 3."),
        (PREDICTIONS, {**REFERENCES, "2": []}, "1 images have no list of reference captions .2."),
        (PREDICTIONS, {**REFERENCES, "2": "a cat"}, "1 images have no list of reference captions .2."),
        ({**PREDICTIONS, "2": None}, REFERENCES, "image 2: the prediction is NoneType"),
        ({**PREDICTIONS, "2": ["a cat"]}, REFERENCES, "image 2: the prediction is list"),
        (PREDICTIONS, {**REFERENCES, "3": ["two dogs", 7]}, "image 3: the reference is int"),
    ],
)
def test_bad_input_is_refused_by_name(predictions, references, message):
    with pytest.raises(BenchError, match=message):
        score_captions(predictions, references)


def test_unknown_metric_is_refused():
    with pytest.raises(BenchError, match="unknown caption metric 'BLEU'"):
        score_captions(PREDICTIONS, REFERENCES, metrics=["BLEU"])


def test_partial_predictions_are_scored_as_if_the_rest_did_not_exist(no_java):
    some = {image: PREDICTIONS[image] for image in ("3", "1")}
    partial = score_captions(some, REFERENCES, allow_partial=True)
    alone = score_captions(some, {image: REFERENCES[image] for image in ("1", "3")})
    assert partial.ids == ["1", "3"]
    assert partial.metrics == alone.metrics


def test_only_the_metrics_asked_for_are_computed():
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["CIDEr", "BLEU-4"])
    assert list(scores.metrics) == ["BLEU-4", "CIDEr"]
    assert list(scores.per_image) == ["BLEU-4", "CIDEr"]
    assert scores.notes == []


def test_empty_caption_scores_zero_and_is_noted(no_java):
    scores = score_captions({**PREDICTIONS, "2": " "}, REFERENCES)
    assert {scores.per_image[name]["2"] for name in WITHOUT_JAVA} == {0.0}
    assert any(note.startswith("1 empty captions, which score 0 (2)") for note in scores.notes)


@pytest.mark.parametrize("separator", ["\n", "\r", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_line_break_in_a_caption_leaves_the_other_captions_alone(separator, no_java):
    broken = {**PREDICTIONS, "1": f"A man{separator}riding a wave."}
    references = {**REFERENCES, "1": [f"A man is{separator}riding a big wave.", "a surfer on a wave"]}
    scores, plain = score_captions(broken, references), score_captions(PREDICTIONS, REFERENCES)
    assert scores.metrics == plain.metrics
    assert any(note.startswith("1 captions hold line breaks") for note in scores.notes)


@pytest.mark.parametrize("noise", ["\x00", "\x07", "\x1b", "\ud800", "\u200b"])
def test_control_character_is_dropped(noise, no_java):
    scores = score_captions({**PREDICTIONS, "3": f"two {noise} dogs{noise}"}, REFERENCES)
    assert scores.metrics == score_captions(PREDICTIONS, REFERENCES).metrics


# ---- Java ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A ``java`` on the PATH that is a Python program; returns the function that writes it."""
    for name in ("meteor", "spice"):
        (tmp_path / name / "lib").mkdir(parents=True)
    (tmp_path / "meteor" / meteor.JAR).touch()
    for jar in (spice.JAR, *(f"lib/{name}" for name in spice.MODELS)):
        (tmp_path / "spice" / jar).touch()
    for module in (meteor, spice):
        monkeypatch.setattr(module, "program_folder", lambda name, jar: tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(program: str) -> None:
        script = tmp_path / "java"
        script.write_text(f"#!{sys.executable}\n" + textwrap.dedent(program))
        script.chmod(0o755)

    return write


ANSWERING = """
    import sys
    for line in sys.stdin:
        fields = line.rstrip("\\n").split(" ||| ")
        assert fields[0] == "SCORE", line
        words = len(fields[-1].split())
        sys.stderr.write("complaint " * 400)
        print(*[words, words, 0, 0, words, words] + [0] * 14 + [1, words, words], flush=True)
"""


def test_many_long_requests_and_complaints_do_not_deadlock(fake_java):
    fake_java(ANSWERING)
    candidates = [[f"word{i}"] * (1 + i % 40) for i in range(3000)]
    start = time.monotonic()
    statistics = meteor_statistics(candidates, [[c, c] for c in candidates], timeout=30)
    assert time.monotonic() - start < 30
    assert statistics[:, 0].tolist() == [1 + i % 40 for i in range(3000)]
    assert reduce_meteor(statistics) == pytest.approx(np.ones(3000))


def test_line_protocol_survives_separators_inside_of_captions(fake_java):
    fake_java(ANSWERING)
    statistics = meteor_statistics([["a|||b", "<x\r\ny>"], []], [[["c\n"]], [["|||"], []]], timeout=30)
    assert statistics[:, 0].tolist() == [3, 0]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('Error: no main class')", "stopped after 0 of 3 answers .exit status 1: Error: no main"),
        ("import sys; sys.stdin.readline(); print('0 ' * 23, flush=True)", "stopped after 1 of 3 answers"),
        (
            "import sys\nfor line in sys.stdin: print('no score', flush=True)",
            "answered 'no score' instead of 23 numbers",
        ),
        ("import sys\nfor line in sys.stdin: print('1.0', flush=True)", "answered '1.0' instead of 23 numbers"),
        ("import time; time.sleep(60)", "gave no answer to request 1 within 1 s"),
    ],
)
def test_broken_java_skips_meteor_with_the_reason(fake_java, monkeypatch, program, reason):
    fake_java(program)
    timeout = 1 if "sleep" in program else 30
    monkeypatch.setitem(captions.PROGRAMS, "METEOR", lambda c, r: meteor_statistics(c, r, timeout=timeout))
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["METEOR", "CIDEr"])
    assert list(scores.metrics) == ["CIDEr"]
    (note,) = scores.notes
    assert note.startswith("METEOR skipped: ")
    assert re.search(reason, note), note
    assert "\n" not in note


def test_java_that_cannot_be_executed_skips_meteor(fake_java, tmp_path):
    fake_java("")
    (tmp_path / "java").write_bytes(b"\x00not a program")
    with pytest.raises(Unavailable, match="java could not be started"):
        meteor_statistics([["a"]], [[["a"]]])


def test_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(java_programs.importlib.util, "find_spec", lambda name: None)
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["METEOR", "SPICE", "BLEU-1"])
    assert list(scores.metrics) == ["BLEU-1"]
    assert [note.split(":")[0] for note in scores.notes] == ["METEOR skipped", "SPICE skipped"]
    assert all("pip install 'pycocoevalcap>=1.2,<2'" in note for note in scores.notes)


def test_program_is_gone_when_the_reader_stops_early(tmp_path):
    program = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    answers = converse([sys.executable, "-c", program], tmp_path, ["x"] * 100_000, timeout=30)
    process = int(next(answers))
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_spice_is_read_from_its_result_file(fake_java):
    fake_java("""
        import json, sys
        arguments = sys.argv
        given = json.load(open(arguments[arguments.index("-jar") + 2]))
        result = [{"image_id": g["image_id"], "scores": {"All": {"f": len(g["refs"]) / 10}}} for g in reversed(given)]
        json.dump(result, open(arguments[arguments.index("-out") + 1], "w"))
    """)
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["SPICE"])
    assert scores.per_image["SPICE"] == {"1": 0.2, "2": 0.3, "3": 0.1}
    assert scores.metrics["SPICE"] == pytest.approx(0.2)
    assert scores.notes == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('java.lang.OutOfMemoryError')", "exit status 1: java.lang.OutOfMemoryError"),
        ("", "wrote no usable result"),
        ("import sys; open(sys.argv[sys.argv.index('-out') + 1], 'w').write('[]')", "wrote no usable result"),
    ],
)
def test_broken_spice_is_skipped_with_the_reason(fake_java, program, reason):
    fake_java(program)
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["SPICE"])
    assert scores.metrics == {}
    assert reason in scores.notes[0]


def test_spice_that_takes_too_long_is_stopped(fake_java):
    fake_java("import time; time.sleep(60)")
    with pytest.raises(Unavailable, match="stopped after 1 s without a result"):
        spice.spice([["a"]], [[["a"]]], timeout=1)


def test_spice_names_the_missing_models_and_downloads_nothing(fake_java, tmp_path):
    fake_java("raise SystemExit('must not run')")
    (tmp_path / "spice" / "lib" / spice.MODELS[1]).unlink()
    with pytest.raises(Unavailable, match=r"stanford-corenlp-3\.6\.0-models\.jar not in"):
        spice.spice([["a"]], [[["a"]]])
