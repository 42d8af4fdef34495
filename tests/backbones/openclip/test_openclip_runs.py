"""Runs of open_clip's models against open_clip itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from native import invoke
from PIL import Image
from run_requests import run_request, with_settings
from tiny_openclip import KINDS

from beit3_bench import evaluate, load
from beit3_bench.harness.evidence.rescore import rescore
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task


def run(task: str, source: str, root: Path, output: Path, **settings):
    return run_task(run_request(task, source, root, output=output, **settings), get_task(task))


@pytest.fixture(scope="module")
def embedded(zoo, world, tmp_path_factory):
    """Kind -> rows of a run on flickr30k, and its split."""
    split = get_task("flickr30k")(world / "flickr30k").read("test")
    rows = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("runs") / kind
        run("flickr30k", zoo.source(kind), world / "flickr30k", folder)
        rows[kind] = (folder, RunStore.read(folder).rows())
    return rows, split


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_open_clip_s_own_embeddings(zoo, embedded, kind):
    rows, split = embedded
    model, transform, tokenizer = zoo.reference(kind)
    with torch.inference_mode():
        for example in [*split.examples[:6], *split.examples[-6:]]:
            if example.images:
                expected = model.encode_image(transform(Image.open(example.images[0]))[None], normalize=True)
            else:
                expected = model.encode_text(tokenizer([example.text]), normalize=True)
            found = rows[kind][1][example.id]["embedding"]
            assert found.dtype == np.float32
            assert np.abs(found - expected[0].numpy()).max() <= 1e-6
            assert abs(np.linalg.norm(found) - 1) < 1e-6
    assert len(rows[kind][1]) == len(split.examples)


def test_embeddings_tell_inputs_apart(embedded):
    """Random weights must not make all outputs alike, or the comparison above would prove little."""
    rows, split = embedded
    for kind in KINDS:
        for images in (True, False):
            vectors = np.stack(
                [rows[kind][1][e.id]["embedding"] for e in split.examples if bool(e.images) is images][:8]
            )
            assert (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].min() < 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_at_any_batch_size(zoo, world, embedded, tmp_path, kind):
    rows = embedded[0][kind][1]
    for size in (1, 3, 16):
        run("flickr30k", zoo.source(kind), world / "flickr30k", tmp_path / str(size), batch_size=size, limit=8)
        for name, row in RunStore.read(tmp_path / str(size)).rows().items():
            assert np.array_equal(row["embedding"], rows[name]["embedding"])


def test_the_result_says_what_was_evaluated(zoo, embedded):
    rows, _ = embedded
    result = json.loads((rows["tiny-siglip"][0] / "result.json").read_text())
    model = result["model"]
    assert (model["family"], model["preset"], model["protocol"]) == ("openclip", "tiny-siglip", "dual encoder")
    assert (model["image_size"], model["weight"], result["setting"]) == (64, None, "zero-shot")
    config = json.loads((rows["tiny-siglip"][0] / "config.json").read_text())
    assert config["preprocessing"]["resize_mode"] == "squash"
    assert config["tokenizer"].endswith("tokenizer.json")
    assert json.loads((rows["tiny-clip"][0] / "config.json").read_text())["tokenizer"] is None


def test_stores_and_caches_serve_a_second_run(zoo, world, embedded, tmp_path):
    kept = {"features": tmp_path / "features", "image_cache": tmp_path / "cache"}
    for kind in ("tiny-clip", "tiny-siglip"):
        source, root = zoo.source(kind), world / "flickr30k"
        first = run("flickr30k", source, root, tmp_path / kind / "first", **kept)
        assert first.result["timing"]["samples_from_store"] == 0
        second = run("flickr30k", source, root, tmp_path / kind / "second", **kept)
        assert second.result["timing"]["samples_from_store"] == len(embedded[1].examples)
        third = run("flickr30k", source, root, tmp_path / kind / "third", image_cache=kept["image_cache"])
        assert third.result["timing"]["images_from_cache"] > 0
        assert third.result["timing"]["images_decoded"] == 0
        for name in ("first", "second", "third"):
            for key, row in RunStore.read(tmp_path / kind / name).rows().items():
                assert np.array_equal(row["embedding"], embedded[0][kind][1][key]["embedding"])


def test_workers_and_a_resumed_run_give_the_same_rows(zoo, world, embedded, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    request = run_request("flickr30k", zoo.source("tiny-siglip"), world / "flickr30k", output=tmp_path / "run")
    append, calls = RunStore.append, []

    def some(self, rows):
        append(self, rows)
        calls.append(1)
        if len(calls) == 2:
            raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", some)
        with pytest.raises(Enough):
            run_task(with_settings(request, batch_size=2), get_task("flickr30k"))
    outcome = run_task(with_settings(request, batch_size=2, workers=2), get_task("flickr30k"))
    assert 0 < outcome.result["timing"]["resumed_samples"] < len(embedded[1].examples)
    for key, row in RunStore.read(tmp_path / "run").rows().items():
        assert np.array_equal(row["embedding"], embedded[0]["tiny-siglip"][1][key]["embedding"])


def test_no_connection_is_opened(zoo, world, no_network, tmp_path):
    for kind in KINDS:
        outcome = run("imagenet", zoo.source(kind), world / "imagenet", tmp_path / kind, limit=3)
        assert outcome.result["status"] == "scored"


# ---- ImageNet and probing -------------------------------------------------------------------------------------------------


def test_imagenet_is_worded_as_clip_words_it(zoo, world, tmp_path):
    import open_clip

    from beit3_bench.tasks.class_folders import imagenet_classes

    outcome = run("imagenet", zoo.source("tiny-clip"), world / "imagenet", tmp_path / "run", limit=6)
    classes = sorted(p.name for p in (world / "imagenet" / "val").iterdir())
    assert outcome.result["counts"]["class texts"] == 80 * len(classes)
    options = outcome.result["provenance"]["options"]
    assert "80 templates" in options["templates"]
    assert "80 templates" in options["class_names"]
    task = get_task("imagenet")(world / "imagenet")
    task.prompts = _prompts()
    texts = {e.id: e.text for e in task.read("val").examples if e.text}
    wnid = classes[0]
    name = open_clip.IMAGENET_CLASSNAMES[imagenet_classes().index(wnid)]
    assert [texts[f"text:{wnid}:{n}"] for n in range(80)] == [t(name) for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    scores, _ = rescore(tmp_path / "run", world / "imagenet")
    assert scores.counts["class texts"] == 80 * len(classes)


def _prompts():
    from beit3_bench.backbones.registry import get_family

    return get_family("openclip").prompts("imagenet")


def test_options_of_imagenet_override_the_words_of_the_family(zoo, world, tmp_path):
    templates = tmp_path / "templates.json"
    templates.write_text('["a {}.", "the {}."]')
    outcome = run(
        "imagenet", zoo.source("tiny-clip"), world / "imagenet", tmp_path / "run", limit=3,
        options={"templates": str(templates)},
    )  # fmt: skip
    classes = outcome.result["counts"]["classes"]
    assert outcome.result["counts"]["class texts"] == 2 * classes
    assert "80 templates" in outcome.result["provenance"]["options"]["class_names"]


def test_beit3_s_words_stay_the_lemmas(world):
    task = get_task("imagenet")(world / "imagenet")
    given = dict.fromkeys(("class_names", "templates", "truth"))
    assert task.options_in_force() == given
    task.prompts = _prompts()
    assert task.options_in_force() == {**given, "class_names": task.prompts.name, "templates": task.prompts.name}


def test_a_run_is_replayed(zoo, world, tmp_path):
    for kind, task in (("tiny-siglip", "flickr30k"), ("tiny-clip", "imagenet")):
        run(task, zoo.source(kind), world / task, tmp_path / kind, limit=4)
        words = ["--checkpoint", zoo.source(kind), "--data-root", world / task]
        words += ["--tokenizer", zoo.weights(kind).with_name("tokenizer.json")] if kind == "tiny-siglip" else []
        done = invoke("replay", tmp_path / kind, *words)
        assert done.exit_code == 0, done.output


def test_probe_and_evaluate_take_the_family(zoo, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--checkpoint", zoo.source("tiny-siglip"), "--data-root", world / "imagenet", "--workers", 0]
    done = invoke("probe", *words, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    model = load(zoo.source("tiny-clip"), "imagenet", device="cpu")
    assert evaluate(model, "imagenet", world / "imagenet", limit=3).counts["class texts"] % 80 == 0
