"""`beit3-bench probe` on the mini world: any checkpoint, stored features, and features that are as good as labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from native import invoke
from run_requests import run_request

from beit3_bench.errors import BenchError
from beit3_bench.tasks import probing


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    for name in ("BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES"):
        monkeypatch.delenv(name, raising=False)


def probe(native, *more, head="retrieval"):
    words = ["--checkpoint", native.checkpoints / f"{head}.pth", "--data-root", native.root("imagenet")]
    return invoke("probe", *words, "--device", "cpu", "--workers", 0, *more)


def result(native, *more, **which):
    done = probe(native, *more, "--json", **which)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_top1_and_top5_come_with_intervals_and_counts(native, method):
    found = result(native, "--method", method)
    assert found["probe"] == method
    for name in ("top1", "top5"):
        metric = found["metrics"][name]
        assert 0 <= metric["ci95"][0] <= metric["value"] <= metric["ci95"][1] <= 1
    assert found["metrics"]["top1"]["value"] <= found["metrics"]["top5"]["value"]
    assert found["counts"]["images"] > 0 < found["counts"]["training images"]
    assert found["world"] == "tiny"
    assert found["chosen"].keys() == ({"k", "temperature"} if method == "knn" else {"C", "held_out_top1"})
    assert probe(native, "--method", method).stdout.startswith(f"{method} probe on embedding · retrieval.pth (")


def test_embeddings_of_an_imagenet_run_are_not_computed_again(native, tmp_path):
    store = ("--features", tmp_path / "features")
    words = ["--checkpoint", native.checkpoint("imagenet"), "--data-root", native.root("imagenet"), "--workers", 0]
    done = invoke("run", "--task", "imagenet", *words, "--device", "cpu", "--output", tmp_path / "run", *store)
    assert done.exit_code == 0, done.output
    plain, first, second = result(native), result(native, *store), result(native, *store, "--method", "linear")
    assert first["features_from_store"] >= first["counts"]["images"]
    assert first["features_computed"] <= first["counts"]["training images"]
    assert (second["features_computed"], plain["features_from_store"]) == (0, 0)
    assert first["metrics"] == plain["metrics"]


@pytest.mark.parametrize("head", ["retrieval", "imagenet-linear", "vqav2", "nlvr2", "coco-caption"])
def test_mean_patches_of_any_checkpoint(native, head, tmp_path):
    found = result(native, "--on", "patches", "--features", tmp_path, head=head)
    assert found["features"] == "patches"
    again = result(native, "--on", "patches", "--features", tmp_path, head=head)
    assert again["features_computed"] == 0
    assert again["metrics"] == found["metrics"]


def test_patches_are_those_before_the_linear_head(native):
    """For a released ImageNet classifier the features are what its last layer sees, up to their length."""
    import torch

    from beit3_bench.backbones.beit3.checkpoint import load_model_for
    from beit3_bench.harness.models import Located, load_model

    checkpoint = native.checkpoints / "imagenet-linear.pth"
    task = probing.ImageEmbeddings(native.root("imagenet"), {"features": "patches"})
    whole_split = task.read("val")
    split = whole_split.of(whole_split.examples[:3])
    request = run_request("probe", checkpoint, native.root("imagenet"))
    ability = load_model(Located.of(checkpoint), task, split, request).ability
    with torch.inference_mode():
        batch = ability.reader.collate([task.item(e) for e in split.examples])
        features = np.stack([row["embedding"] for row in task.rows(split.examples, ability.predict(batch), split, ())])
        whole = load_model_for("imagenet-linear", checkpoint, head_arguments={"num_classes": 10})
        assert ability.patches.preprocessing == whole.preprocessing
        seen = []
        whole.model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        whole.model(whole.preprocessing.normalise(batch["images"]))
    expected = torch.nn.functional.normalize(seen[0], dim=-1).numpy()
    assert np.abs(features - expected).max() < 1e-6


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_features_that_tell_the_classes_are_found_out(native, method, monkeypatch):
    def rows(self, examples, values, split, ahead):
        labels = [self.classes().index(e.id.split(":")[1].split("/")[0]) for e in examples]
        generator = np.random.default_rng(len(labels))
        made = np.eye(16)[labels] + 0.05 * generator.normal(size=(len(labels), 16))
        return [{"id": e.id, "embedding": v.astype(np.float32)} for e, v in zip(examples, made, strict=True)]

    monkeypatch.setattr(probing.ImageEmbeddings, "rows", rows)
    assert result(native, "--method", method, "--k", 3)["metrics"]["top1"]["value"] == 1.0


def test_a_subset_is_labelled(native):
    assert result(native, "--limit", 10)["subset"] == {"limit": 10}
    assert "10 images of each split only" in probe(native, "--limit", 10).stdout


@pytest.mark.parametrize(
    ("more", "head", "message"),
    [
        (("--on", "embedding"), "vqav2", "vqav2 head"),
        (("--k", 0), "retrieval", "--k"),
        (("-C", 0), "retrieval", "-C"),
        (("--device", "cuda:99"), "retrieval", "--device"),
        ((), "nothing", "checkpoint not found"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(native, more, head, message):
    done = probe(native, *more, head=head)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_a_classifier_is_learned_from_one_split_and_scored_on_another(native, method):
    import torch

    task = probing.ImageEmbeddings(native.root("imagenet"))
    train, val = task.read("train"), task.read("val")
    with pytest.raises(BenchError, match="its rows are scored by a classifier; use: beit3-bench probe"):
        task.score({}, val)
    axes = np.eye(max(16, len(task.classes())), dtype=np.float32)
    fitted = probing.fit(
        {e.id: {"embedding": axes[e.target]} for e in train.examples},
        train,
        len(task.classes()),
        probing.Classifier(method, k=3),
        torch.device("cpu"),
    )
    assert fitted.chosen.get("k", 3) == 3
    # The last image stands where another class does.
    rows = {e.id: {"embedding": axes[e.target]} for e in val.examples}
    last = val.examples[-1].id
    rows[last] = {"embedding": axes[0]}
    scores = fitted.score(rows, val)
    images, training = len(val.examples), len(train.examples)
    assert scores.metrics["top1"] == pytest.approx(1 - 1 / images)
    assert scores.counts == {"images": images, "training images": training, "classes": len(task.classes())}
    assert scores.samples["top1"][last] == 0.0
