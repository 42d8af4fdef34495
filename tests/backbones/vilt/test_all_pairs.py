"""Retrieval with a model that compares images with texts and has no embeddings: all pairs, through the engine of the second pass."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from exactness import assert_same_rows
from native import invoke
from random_vilt import save_vilts
from ranks import run_ranks

from beit3_bench import evaluate, load
from beit3_bench.backbones.corruptions import Corruption
from beit3_bench.backbones.released import get_released
from beit3_bench.backbones.vilt.weights import WEIGHTS
from beit3_bench.harness.record.store import RunStore
from beit3_bench.results.published.values import load_published
from beit3_bench.tasks import retrieval
from beit3_bench.tasks.metrics.recall import ranks_of_scores, recalls, retrieval_ranks
from beit3_bench.tasks.registry import get_task


@pytest.fixture(scope="module")
def files(native, tmp_path_factory):
    return save_vilts(tmp_path_factory.mktemp("vilt"), native)


def words(native, files, *more, task="flickr30k", file="retrieval"):
    checkpoint, root = files / f"{file}.ckpt", native.root(task)
    return ["--task", task, "--checkpoint", checkpoint, "--data-root", root, "--device", "cpu", "--workers", 0, *more]


def run(native, files, *more, **kinds):
    done = invoke("run", *words(native, files, *more, **kinds), "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def kinds(native):
    split = get_task("flickr30k")(native.root("flickr30k")).read("test")
    return [[e for e in split.examples if e.kind == kind] for kind in ("image", "text")]


@pytest.fixture(scope="module")
def whole(native, files, tmp_path_factory):
    """(folder, result, what was told) of one run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, *run(native, files, "--output", folder)


def test_recalls_are_those_of_the_module_asked_pair_by_pair(native, files, whole):
    images, texts = kinds(native)
    ready = load(files / "retrieval.ckpt", "flickr30k", device="cpu")
    reader, module = ready.model.ability.reader, ready.module
    matrix = np.zeros((len(images), len(texts)))
    with torch.inference_mode():
        for row, image in enumerate(images):
            pixels = ready.model.ability.normalise(reader.resizing.load(image.images[0]).unsqueeze(0))
            for column, text in enumerate(texts):
                ids = torch.tensor([reader.tokenizer.encode(text.text)])
                matrix[row, column] = module.match(pixels, ids).item()
    folder, result, told = whole
    rows = RunStore.read(folder).rows()
    assert set(rows) == {image.id for image in images}
    stored = np.stack([rows[image.id]["scores"] for image in images])
    np.testing.assert_allclose(stored, matrix, atol=2e-5)
    assert matrix.std() > 0.01
    image_targets, owners = [e.target for e in images], [e.target for e in texts]
    # Of the best K of every query: the official way of counting, where no scores are equal.
    for k in (1, 5, 10):
        best = np.argsort(-matrix, axis=1)[:, :k]
        right = [image_targets[n] in {owners[c] for c in best[n]} for n in range(len(images))]
        assert result["metrics"][f"TR@{k}"]["value"] == pytest.approx(100 * np.mean(right))
        best = np.argsort(-matrix, axis=0)[:k]
        right = [owners[c] in {image_targets[n] for n in best[:, c]} for c in range(len(texts))]
        assert result["metrics"][f"IR@{k}"]["value"] == pytest.approx(100 * np.mean(right))
    assert all(metric["ci95"] for metric in result["metrics"].values())
    assert not any(name.startswith("plain/") for name in result["metrics"])
    assert result["model"]["protocol"] == "all pairs"
    pairs = len(images) * len(texts)
    assert result["counts"] == {"images": len(images), "texts": len(texts), "pairs": pairs}
    assert f"comparing all pairs: {pairs:,} passes of a text with an image, {len(images)} images; about " in told
    assert "a second" in told
    assert set(result["timing"]["gflop_per_sample"]) == {"match"}
    assert result["provenance"]["fingerprints"]["images"]


def test_rows_do_not_depend_on_the_batch_size(native, files, whole, tmp_path):
    for size in (1, 5):
        run(native, files, "--batch-size", size, "--output", tmp_path / str(size))
        assert_same_rows(whole[0], tmp_path / str(size))


def test_a_texts_score_does_not_depend_on_the_texts_beside_it(native, files, whole):
    images, texts = kinds(native)
    ability = load(files / "retrieval.ckpt", "flickr30k", device="cpu").model.ability
    item = ability.reader.collate([retrieval.Item("a", images[3].images, texts=tuple(e.text for e in texts[::-1]))])
    with torch.inference_mode():
        (scores,) = ability.predict(item)
    stored = RunStore.read(whole[0]).rows()[images[3].id]["scores"]
    np.testing.assert_allclose(scores[::-1], stored, atol=1e-5)


def test_a_run_that_was_stopped_goes_on(native, files, whole, tmp_path):
    folder, result, _ = whole
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / "result.json").unlink()
    (shard,) = (tmp_path / "part" / "rows").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    until = next(n for n, line in enumerate(lines) if line.startswith(b'{"commit"')) + 1
    shard.write_bytes(b"".join(lines[:until]))  # the first image
    again, told = run(native, files, "--output", tmp_path / "part")
    assert f"{result['counts']['images'] - 1} images" in told
    assert again["metrics"] == result["metrics"]
    assert_same_rows(folder, tmp_path / "part")


@pytest.mark.slow
def test_rows_are_the_same_on_several_processes(native, files, whole, tmp_path):
    command = [sys.executable, "-m", "beit3_bench.harness", "run", *words(native, files, "--output", tmp_path / "two")]
    for process in run_ranks([command, command]):
        assert process.code == 0, process.err
    assert_same_rows(whole[0], tmp_path / "two")


def test_rows_are_scored_again_and_missing_ones_are_told(native, files, whole, tmp_path):
    folder, result, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    named = ("--data-root", native.root("flickr30k"))
    done = invoke("score", "--run", tmp_path / "run", *named, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["TR@1"] == pytest.approx(result["metrics"]["TR@1"]["value"])
    (shard,) = (tmp_path / "run" / "rows").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    until = next(n for n, line in enumerate(lines) if line.startswith(b'{"commit"')) + 1
    shard.write_bytes(b"".join(lines[:until]))
    done = invoke("score", "--run", tmp_path / "run", *named)
    assert done.exit_code == 2
    images = result["counts"]["images"]
    assert f"{images - 1} of {images} rows without prediction" in done.stderr


def test_pages_and_tables_show_the_one_order_that_there_is(native, files, whole, tmp_path):
    folder = whole[0]
    done = invoke("show", folder, "--data-root", native.root("flickr30k"), "--output", tmp_path / "page.html")
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "rank of the right one" in page
    assert "by cosine" not in page
    done = invoke("table", "--runs", folder.parent)
    assert done.exit_code == 0, done.stderr
    assert "all pairs" in done.stdout


def test_a_pretrained_file_ranks_by_what_it_learned_of_pairs(native, files, whole, tmp_path):
    _, result, _ = whole
    again, _ = run(native, files, "--output", tmp_path / "run", file="pretrained")
    assert again["metrics"] == result["metrics"]


def test_what_costs_days_is_begun_when_it_is_asked_for(native, files, tmp_path, monkeypatch):
    images, texts = (len(several) for several in kinds(native))
    monkeypatch.setattr(retrieval, "PAIRS_UNASKED", images * texts - 1)
    done = invoke("run", *words(native, files, "--output", tmp_path / "run"))
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"comparing all pairs: {images * texts:,} passes of a text with an image, {images} images; about " in line
    assert "that is not begun unasked: give -o all_pairs=yes, or --limit N for the first N images" in line
    assert not (tmp_path / "run").exists()
    part, _ = run(native, files, "--limit", 2, "--output", tmp_path / "part")
    assert part["counts"]["images"] == 2
    run(native, files, "-o", "all_pairs=yes", "--output", tmp_path / "run")


def test_coco_has_more_pairs_than_are_compared_unasked_and_flickr_fewer():
    assert 1_000 * 5_000 <= retrieval.PAIRS_UNASKED < 5_000 * 25_010


def test_options_that_mean_nothing_for_a_model_are_refused(native, files, tmp_path):
    for value in ("4", "off"):
        done = invoke("run", *words(native, files, "-o", f"rerank={value}", "--output", tmp_path / "run"))
        assert done.exit_code == 2
        assert f"rerank={value}: ViLT has no first pass that finds candidates" in done.stderr
    done = invoke(
        "run", "--task", "flickr30k", "--checkpoint", native.checkpoint("flickr30k"), "--data-root", native.root("flickr30k"),
        "--device", "cpu", "-o", "all_pairs=yes", "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "all_pairs=yes: retrieval.pth finds candidates by its embeddings first; leave it out" in done.stderr


def test_images_are_corrupted_once(native, files, tmp_path):
    pytest.importorskip("imagecorruptions")
    run(native, files, "--corrupt", "contrast:2", "--output", tmp_path / "run")
    images, texts = kinds(native)
    ability = load(files / "retrieval.ckpt", "flickr30k", device="cpu").model.ability
    ability.reader.corrupt(Corruption("contrast", 2))
    batch = ability.reader.collate([retrieval.Item("a", images[1].images, texts=tuple(e.text for e in texts))])
    with torch.inference_mode():
        (scores,) = ability.predict(batch)
    np.testing.assert_allclose(RunStore.read(tmp_path / "run").rows()[images[1].id]["scores"], scores, atol=1e-5)


def test_texts_that_a_task_names_are_compared_in_the_one_pass_that_there_is(native, files, tmp_path):
    result, told = run(native, files, "--output", tmp_path / "run", task="sugarcrepe")
    assert result["model"]["protocol"] == "matching"
    assert 0 <= result["metrics"]["accuracy"]["value"] <= 1
    assert "all pairs" not in told
    assert all(name.startswith("match:") for name in RunStore.read(tmp_path / "run").rows())


def test_from_python(native, files, whole, tmp_path):
    model = load(files / "retrieval.ckpt", "flickr30k", device="cpu")
    result = evaluate(model, "flickr30k", native.root("flickr30k"))
    assert result.metrics["IR@5"].value == whole[1]["metrics"]["IR@5"]["value"]
    assert len(result.rows()) == whole[1]["counts"]["images"]
    assert model.card.protocol == "all pairs"


def test_equal_scores_are_ranked_by_the_order_of_the_gallery():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]], np.float32)
    ranks = ranks_of_scores(scores, np.array([20, 10]), np.array([20, 10, 10]))
    assert ranks.text_ranks.tolist() == [1, 1]
    assert ranks.image_ranks.tolist() == [2, 1, 1]  # of equal ones image 10 comes first


def test_scores_and_embeddings_are_ranked_alike():
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 8)).astype(np.float32) for n in (7, 21))
    ids, owners = np.arange(7), np.repeat(np.arange(7), 3)
    given = ranks_of_scores(images @ texts.T, ids, owners, block=3)
    assert recalls(given) == recalls(retrieval_ranks(images, ids, texts, owners))


def test_released_files_stand_in_the_published_values():
    printed = {(row.checkpoint, row.value) for row in load_published() if row.system == "ViLT"}
    for weight in WEIGHTS:
        assert {(weight.name, score.value) for score in weight.published} <= printed
    assert get_released("vilt_irtr_f30k").protocol == get_released("vilt_irtr_coco").protocol == "all pairs"
