"""Re-ranking through the engine: the official recalls, rows that do not depend on how the work is cut, resuming, and bad input."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from exactness import assert_same_rows
from fusion_golden import FOLDER, document, heads, wanted, write_file
from native import invoke
from ranks import run_ranks

from beit3_bench import evaluate, load
from beit3_bench.harness.evidence.compare import compare
from beit3_bench.harness.record.store import RunStore
from beit3_bench.results import frames

FAMILIES = ("albef", "blip")
OFFICIAL = {f"{way}@{k}": f"{name}_r{k}" for way, name in (("TR", "txt"), ("IR", "img")) for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(checkpoint, data root) by family: the golden images and captions as a Flickr30K."""
    places = {}
    for family in FAMILIES:
        root = tmp_path_factory.mktemp(family)
        shutil.copytree(FOLDER / family / "images", root / "flickr30k-images")
        images, number = [], 0
        for place, record in enumerate(document(family, "data")["retrieval"]):
            sentences = [{"raw": text, "sentid": number + n} for n, text in enumerate(record["caption"])]
            number += len(sentences)
            names = {
                "filename": record["image"],
                "imgid": place,
                "split": "test",
                "sentids": [s["sentid"] for s in sentences],
            }
            images.append({**names, "sentences": sentences})
        (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
        places[family] = write_file(root / "weights", family, "retrieval"), root
    return places


def words(world, family, *more):
    checkpoint, root = world[family]
    options = [word for name, n in heads(family, "retrieval").items() for word in ("-o", f"{name}={n}")]
    named = ("--task", "flickr30k", "--checkpoint", checkpoint, "--data-root", root, *options)
    return [*named, "--device", "cpu", "--workers", 0, *more]


def run(world, family, *more):
    done = invoke("run", *words(world, family, *more), "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_what_a_second_pass_costs_grows_with_its_candidates(world, tmp_path):
    counts = {}
    for k in (1, 4):
        result, _ = run(world, "albef", "-o", f"rerank={k}", "--output", tmp_path / str(k))
        counts[k] = result["timing"]["gflop_per_sample"]
        assert set(counts[k]) == {"image", "text", "match"}
    assert counts[1]["image"] == counts[4]["image"]
    assert (
        0.8 * counts[1]["image"] < counts[1]["match"] < counts[4]["match"]
    )  # an image's tower, and texts that look at it
    again, _ = run(world, "albef", "-o", "rerank=4", "--output", tmp_path / "4")
    assert again["timing"]["gflop_per_sample"] in (counts[4], {})  # nothing was left to compute
    table = invoke("table", "--cost", "--runs", tmp_path)
    assert table.exit_code == 0, table.output
    assert "a match is an image with all the texts that re-ranking compares it with" in table.stdout
    assert all(" match " in line for line in table.stdout.splitlines() if line.startswith("| flickr30k"))


def test_flips_say_what_stands_first_after_the_second_pass(world, tmp_path):
    folders = []
    for name, choice in (("plain", "off"), ("again", "4")):
        run(world, "albef", "-o", f"rerank={choice}", "--output", tmp_path / name)
        folders.append(tmp_path / name)
    sizes = {name: str(n) for name, n in heads("albef", "retrieval").items()}
    (one,) = compare(*folders, ["IR@1"], data_root=world["albef"][1], flips=20, options=sizes).metrics
    assert one.flips
    for flip in one.flips:
        before, after = flip.predicted_a["said"], flip.predicted_b["said"]
        assert (before in flip.truth, after in flip.truth) == (flip.a == 100, flip.b == 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_recalls_of_both_passes_are_the_official_ones(world, family, tmp_path):
    k = document(family, "results")["k_test"]["retrieval"]
    result, told = run(world, family, "-o", f"rerank={k}", "--output", tmp_path / "run")
    official = document(family, "results")["retrieval"]
    for name, theirs in OFFICIAL.items():
        assert result["metrics"][name]["value"] == pytest.approx(official[theirs])
    assert result["metrics"]["mean_recall"]["value"] == pytest.approx(official["r_mean"])
    assert result["model"]["protocol"] == f"re-ranked {k}"
    plain, _ = run(world, family, "-o", "rerank=off", "--output", tmp_path / "plain")
    assert plain["model"]["protocol"] == "dual encoder"
    assert not any(name.startswith("plain/") for name in plain["metrics"])
    for name, metric in plain["metrics"].items():
        assert result["metrics"][f"plain/{name}"]["value"] == pytest.approx(metric["value"])
    assert f"re-ranking the best {k}: {result['counts']['pairs']} passes of a text with an image, 12 images" in told
    assert "a second" in told


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_pairs_are_the_official_matrices(world, family, tmp_path):
    k = document(family, "results")["k_test"]["retrieval"]
    run(world, family, "-o", f"rerank={k}", "--output", tmp_path / "run")
    rows = RunStore.read(tmp_path / "run").rows()
    matrix = {1: np.full((12, 21), -100.0, np.float32), 2: np.full((12, 21), -100.0, np.float32)}
    for place in range(12):
        row = rows[f"match:{place:02d}"]
        for bit, scores in matrix.items():
            kept = (row["asked"] & bit) > 0
            scores[place, row["texts"][kept]] = row["scores"][kept]
    np.testing.assert_allclose(matrix[1], wanted(family, "retrieval.score_i2t").numpy(), atol=1e-4)
    np.testing.assert_allclose(matrix[2].T, wanted(family, "retrieval.score_t2i").numpy(), atol=1e-4)


def test_rows_do_not_depend_on_the_batch_size_or_the_order(world, tmp_path):
    for size in (1, 5):
        run(world, "albef", "--batch-size", size, "--output", tmp_path / str(size))
    assert_same_rows(tmp_path / "1", tmp_path / "5")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_same_on_several_processes(world, family, tmp_path):
    run(world, family, "--output", tmp_path / "alone")
    command = [sys.executable, "-m", "beit3_bench.harness", "run", *words(world, family, "--output", tmp_path / "two")]
    for process in run_ranks([command, command]):
        assert process.code == 0, process.err
    assert_same_rows(tmp_path / "alone", tmp_path / "two")


def test_a_run_that_was_stopped_goes_on(world, tmp_path):
    result, _ = run(world, "blip", "--output", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "result.json").unlink()
    (shard,) = (tmp_path / "part" / "rows").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if line.startswith(b'{"id":"match:'))
    until = next(n for n, line in enumerate(lines[second:], second) if line.startswith(b'{"commit"')) + 1
    shard.write_bytes(b"".join(lines[:until]))  # one batch of the second pass
    again, told = run(world, "blip", "--output", tmp_path / "part")
    assert "8 images" in told
    assert again["metrics"] == result["metrics"]
    assert_same_rows(tmp_path / "whole", tmp_path / "part")


def test_rows_are_scored_again_and_missing_ones_are_told(world, tmp_path):
    result, _ = run(world, "blip", "--output", tmp_path / "run")
    named = ("--data-root", world["blip"][1], "-o", "num_heads=3", "-o", "text_heads=4")
    done = invoke("score", "--run", tmp_path / "run", *named, "--json")
    assert done.exit_code == 0, done.stderr
    scored = json.loads(done.stdout)
    for name, metric in result["metrics"].items():
        assert scored[name] == pytest.approx(metric["value"])
    (shard,) = (tmp_path / "run" / "rows").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if line.startswith(b'{"id":"match:'))
    shard.write_bytes(b"".join(lines[:second]))
    done = invoke("score", "--run", tmp_path / "run", *named)
    assert done.exit_code == 2
    assert "12 of 45 rows without prediction" in done.stderr


def test_the_default_is_as_many_as_the_gallery_has(world, tmp_path):
    result, _ = run(world, "blip", "--output", tmp_path / "run")
    assert (result["model"]["protocol"], result["counts"]["pairs"]) == ("re-ranked 128", 12 * 21)


@pytest.mark.parametrize("value", ["0", "-3", "many", "13"])
def test_what_cannot_be_looked_at_again_is_one_line(world, value, tmp_path):
    done = invoke("run", *words(world, "albef", "-o", f"rerank={value}", "--output", tmp_path / "run"))
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    wrong = "rerank=13: the gallery of split 'test' has 12 images and 21 texts; give 12 or less, or off"
    assert (wrong if value == "13" else f"rerank is '{value}'; give a whole number") in line
    assert not (tmp_path / "run").exists()


def test_a_family_with_one_pass_refuses_a_second(native, tmp_path):
    words = (
        "--task",
        "flickr30k",
        "--checkpoint",
        native.checkpoint("flickr30k"),
        "--data-root",
        native.root("flickr30k"),
    )
    done = invoke("run", *words, "--device", "cpu", "-o", "rerank=4", "--output", tmp_path / "run")
    assert done.exit_code == 2
    assert "rerank=4: retrieval.pth compares no image with a text beyond their embeddings; leave it out" in done.stderr


def test_from_python(world, tmp_path):
    checkpoint, root = world["albef"]
    model = load(checkpoint, "flickr30k", device="cpu", rerank=10, **heads("albef", "retrieval"))
    result = evaluate(model, "flickr30k", root, output=tmp_path / "run")
    official = document("albef", "results")["retrieval"]
    assert result.metrics["TR@1"].value == pytest.approx(official["txt_r1"])
    assert result.metrics["plain/TR@1"].ci95 is not None
    assert len(result.rows()) == len(frames.rows(tmp_path / "run")) == 12 + 21 + 12
