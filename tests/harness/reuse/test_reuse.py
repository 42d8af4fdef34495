"""Runs with an image cache and a feature store: the same rows, less work, and both are told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from native import ROOTS, invoke, run_words

from beit3_bench.backbones import preprocess
from beit3_bench.harness.engine import predict as engine
from beit3_bench.harness.record.rows import commit_bytes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.reuse import image_cache
from beit3_bench.harness.reuse.feature_store import FeatureSpace

DUAL = ("flickr30k", "coco-retrieval", "imagenet")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No Java (slow, tested elsewhere), and no folders from the environment of whoever runs the tests."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("JAVA_HOME", "BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES"):
        monkeypatch.delenv(name, raising=False)


def run(native, task, folder, *more):
    done = invoke(*run_words(native, task), "--output", folder, *more)
    assert done.exit_code == 0, done.output
    return done, RunStore.read(folder)


def same_rows(a, b, tolerance=0.0):
    """Rows are equal; embeddings to a tolerance where batches were cut in another way."""
    a, b = a.rows(), b.rows()
    if a.keys() != b.keys():
        return False
    for name, row in a.items():
        for key, value in row.items():
            if isinstance(value, np.ndarray):
                if np.abs(value - b[name][key]).max() > tolerance:
                    return False
            elif value != b[name][key]:
                return False
    return True


def forbid_decoding(monkeypatch):
    def decode(*arguments):
        raise AssertionError(f"decoded {arguments[0]}")

    monkeypatch.setattr(preprocess, "decode", decode)


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(ROOTS))
def test_rows_and_metrics_are_the_same_with_a_cache_and_the_second_run_decodes_nothing(
    native, task, tmp_path, monkeypatch
):
    _, plain = run(native, task, tmp_path / "plain")
    cache = ("--image-cache", tmp_path / "cache")
    _, cold = run(native, task, tmp_path / "cold", *cache)
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        told, warm = run(native, task, tmp_path / "warm", *cache)
    assert same_rows(plain, cold)
    assert same_rows(plain, warm)
    assert plain.result()["metrics"] == cold.result()["metrics"] == warm.result()["metrics"]
    first, second = cold.result()["timing"], warm.result()["timing"]
    assert first["images_decoded"] > 0
    assert second["images_decoded"] == 0
    assert second["images_from_cache"] == first["images_decoded"] + first["images_from_cache"]
    assert second["images_per_second"] > 0
    assert f"{second['images_from_cache']:,} images from cache" in told.stdout
    assert plain.result()["timing"]["images_from_cache"] == 0


def test_worker_processes_share_the_cache_and_their_hits_are_counted(native, tmp_path):
    folder = tmp_path / "cache"
    words = ("--workers", 2, "--batch-size", 1, "--image-cache", folder)
    _, cold = run(native, "flickr30k", tmp_path / "cold", *words)
    _, warm = run(native, "flickr30k", tmp_path / "warm", *words)
    images = cold.result()["counts"]["images"]
    assert (cold.result()["timing"]["images_decoded"], cold.result()["timing"]["images_from_cache"]) == (images, 0)
    assert (warm.result()["timing"]["images_decoded"], warm.result()["timing"]["images_from_cache"]) == (0, images)
    assert same_rows(cold, warm)


def test_two_runs_at_once_fill_one_cache(native, tmp_path):
    folders = ("--image-cache", tmp_path / "cache", "--features", tmp_path / "features")
    words = [*run_words(native, "coco-retrieval"), *folders, "--output"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "beit3_bench.harness", *map(str, words), str(tmp_path / name)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for name in ("a", "b")
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    a, b = (RunStore.read(tmp_path / name) for name in ("a", "b"))
    assert same_rows(a, b, 1e-5)
    assert a.result()["metrics"] == b.result()["metrics"]


def test_a_full_disk_is_one_warning_and_the_run_is_whole(native, tmp_path, monkeypatch):
    _, plain = run(native, "flickr30k", tmp_path / "plain")
    real = os.replace

    def replace(source, target):
        if str(target).endswith(image_cache.SUFFIX):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    told, full = run(native, "flickr30k", tmp_path / "full", "--image-cache", tmp_path / "cache")
    warnings = [line for line in told.stderr.splitlines() if line.strip()]
    assert len(warnings) == 1
    assert "the disk is full; going on without storing images" in warnings[0]
    assert same_rows(plain, full)


def test_the_environment_names_the_folders(native, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_IMAGE_CACHE", str(tmp_path / "images"))
    monkeypatch.setenv("BEIT3_BENCH_FEATURES", str(tmp_path / "features"))
    run(native, "flickr30k", tmp_path / "run")
    assert list((tmp_path / "images").rglob("*.px"))
    assert list((tmp_path / "features").rglob("*.pack"))


@pytest.mark.parametrize("option", ["--image-cache", "--features"])
def test_a_file_where_the_folder_should_be_is_refused_before_anything_is_computed(native, tmp_path, option):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        done = invoke(*run_words(native, "flickr30k"), "--output", tmp_path / "run", option, place)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


# ---- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", DUAL)
def test_the_second_run_takes_every_row_from_the_store_and_says_so(native, task, tmp_path, monkeypatch):
    _, plain = run(native, task, tmp_path / "plain")
    store = ("--features", tmp_path / "features")
    _, cold = run(native, task, tmp_path / "cold", *store)
    passes = []
    monkeypatch.setattr(engine, "_Pass", lambda *arguments: passes.append(arguments))
    told, warm = run(native, task, tmp_path / "warm", *store)
    assert passes == []
    assert same_rows(plain, cold)
    assert same_rows(cold, warm)
    assert warm.result()["metrics"] == plain.result()["metrics"]
    rows, timing = len(warm.rows()), warm.result()["timing"]
    assert (timing["samples"], timing["samples_from_store"], timing["resumed_samples"]) == (0, rows, 0)
    assert (cold.result()["timing"]["samples"], cold.result()["timing"]["samples_from_store"]) == (rows, 0)
    assert (timing["images_decoded"], timing["samples_per_second"]) == (0, 0)
    assert f"{rows:,} embeddings came from the feature store" in told.stdout


def test_another_split_and_another_task_use_what_is_there(native, tmp_path):
    """The mini world's ImageNet and COCO images are different files: only what is equal is reused."""
    store = ("--features", tmp_path / "features")
    _, part = run(native, "coco-retrieval", tmp_path / "part", *store, "--limit", 4)
    _, full = run(native, "coco-retrieval", tmp_path / "full", *store)
    timing = full.result()["timing"]
    assert timing["samples_from_store"] >= len(part.rows()) > 0
    assert timing["samples"] + timing["samples_from_store"] == len(full.rows())
    _, again = run(native, "coco-retrieval", tmp_path / "plain")
    assert same_rows(full, again, 1e-5)


@pytest.mark.parametrize("more", [("--dtype", "bf16"), ("--image-size", 48)])
def test_other_arithmetic_or_another_size_is_computed(native, tmp_path, more):
    store = ("--features", tmp_path / "features")
    run(native, "flickr30k", tmp_path / "first", *store)
    _, other = run(native, "flickr30k", tmp_path / "other", *store, *more)
    assert other.result()["timing"]["samples_from_store"] == 0
    _, plain = run(native, "flickr30k", tmp_path / "plain", *more)
    assert same_rows(other, plain)


def test_random_weights_of_another_seed_are_another_model(native, tmp_path):
    import torch

    content = torch.load(native.checkpoint("flickr30k"), weights_only=True)
    del content["model"]["vision_head.weight"]
    torch.save(content, tmp_path / "part.pth")
    words = [*run_words(native, "flickr30k"), "--allow-missing", "vision_head.*"]
    words[words.index("--checkpoint") + 1] = tmp_path / "part.pth"
    words += ["--tokenizer", native.world / "beit3.spm", "--features", tmp_path / "features"]
    for seed, count in ((0, 0), (1, 0), (0, None)):
        done = invoke(*words, "--seed", seed, "--output", tmp_path / f"{seed}-{count}")
        assert done.exit_code == 0, done.output
        store = RunStore.read(tmp_path / f"{seed}-{count}")
        expected = len(store.rows()) if count is None else count
        assert store.result()["timing"]["samples_from_store"] == expected


def test_an_unfinished_run_counts_its_own_rows_as_resumed_and_the_rest_as_stored(native, tmp_path):
    store = ("--features", tmp_path / "features")
    _, first = run(native, "flickr30k", tmp_path / "first", *store)
    rows = list(first.rows().values())
    run(native, "flickr30k", tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()
    (shard,) = (tmp_path / "again" / "rows").glob("*.jsonl")
    shard.write_bytes(commit_bytes(rows[:5]))
    _, done = run(native, "flickr30k", tmp_path / "again", *store)
    timing = done.result()["timing"]
    assert (timing["resumed_samples"], timing["samples_from_store"]) == (5, len(rows) - 5)


def test_a_replay_computes_everything_again(native, tmp_path, monkeypatch):
    """With a store that lies, the run repeats the lie and the replay finds it."""
    root = tmp_path / "features"
    run(native, "flickr30k", tmp_path / "honest", "--features", root)
    for folder in root.iterdir():
        space = FeatureSpace(root, json.loads((folder / "about.json").read_text()))
        assert space.folder == folder
        for pack in folder.glob("*.pack"):
            keys = [bytes(record["key"]) for records in space.records(pack) for record in records]
            lies = {key: -vector for key, vector in space.find(keys).items()}
            pack.unlink()
            space.append(lies)
    run(native, "flickr30k", tmp_path / "liar", "--features", root)
    monkeypatch.setenv("BEIT3_BENCH_FEATURES", str(root))
    monkeypatch.setenv("BEIT3_BENCH_IMAGE_CACHE", str(tmp_path / "images"))
    named = ("--checkpoint", native.checkpoint("flickr30k"), "--data-root", native.root("flickr30k"))
    honest, liar = (invoke("replay", tmp_path / name, *named, "--json") for name in ("honest", "liar"))
    assert json.loads(honest.stdout)["same"] is True
    assert json.loads(liar.stdout)["same"] is False


def test_processes_divide_what_is_stored_and_what_is_not(native, tmp_path):
    store = ("--features", tmp_path / "features")
    _, part = run(native, "flickr30k", tmp_path / "part", *store, "--limit", 4)
    port = str(21000 + os.getpid() % 20000)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    words = [*run_words(native, "flickr30k"), "--batch-size", 3, *store, "--output"]
    for name in ("both", "again"):
        done = subprocess.run(
            [*launch, "-m", "beit3_bench.harness", *map(str, words), str(tmp_path / name)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    both, again = (RunStore.read(tmp_path / name) for name in ("both", "again"))
    _, plain = run(native, "flickr30k", tmp_path / "plain")
    assert same_rows(both, plain, 1e-5)
    assert same_rows(both, again)
    assert len(list((tmp_path / "both" / "rows").iterdir())) == 2
    timing = both.result()["timing"]
    assert timing["samples_from_store"] == len(part.rows())
    assert timing["samples"] == len(plain.rows()) - len(part.rows())
    assert again.result()["timing"]["samples_from_store"] == len(plain.rows())


def test_the_store_is_ignored_by_tasks_whose_rows_are_not_embeddings(native, tmp_path):
    run(native, "vqav2", tmp_path / "run", "--features", tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_full_disk_while_features_are_stored_is_one_warning(native, tmp_path, monkeypatch):
    real = os.write
    opened = set()
    real_open = os.open

    def open_(path, *more, **named):
        number = real_open(path, *more, **named)
        if str(path).endswith(".pack"):
            opened.add(number)
        return number

    def write(file, data):
        if file in opened:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    told, full = run(native, "flickr30k", tmp_path / "full", "--features", tmp_path / "features")
    monkeypatch.undo()
    warnings = [line for line in told.stderr.splitlines() if line.strip()]
    assert len(warnings) == 1
    assert "the disk is full; going on without storing features" in warnings[0]
    _, plain = run(native, "flickr30k", tmp_path / "plain")
    assert same_rows(plain, full)


# ---- beit3-bench cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(native, tmp_path):
    """A folder with the images and the embeddings of one run."""
    root = tmp_path / "kept"
    run(native, "flickr30k", tmp_path / "run", "--image-cache", root, "--features", root)
    return root


def files(root):
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_what_is_kept_is_listed_with_its_size(kept, tmp_path, monkeypatch):
    found = json.loads(invoke("cache", "--dir", kept, "--json").stdout)
    assert [folder["kind"] for folder in found] == ["features", "features", "images"]
    assert {folder["about"].split(",")[0] for folder in found} == {
        "image embedding by DualEncoder",
        "text embedding by DualEncoder",
        "32 px",
    }
    total = sum((kept / name).stat().st_size for name in files(kept) if name.endswith((".px", ".pack")))
    assert sum(folder["bytes"] for folder in found) == total > 0
    for name in ("BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES"):
        monkeypatch.setenv(name, str(kept))
    assert json.loads(invoke("cache", "--json").stdout) == found
    table = invoke("cache").stdout
    assert all(folder["name"] in table for folder in found)
    assert "MiB in all" in table


def test_what_the_first_edition_kept_is_listed_too(kept):
    folder = next(kept.glob("features-*"))
    about = json.loads((folder / "about.json").read_text())
    code = ["beit3_bench.tasks.contract.Task.collate", "beit3_bench.tasks.retrieval.DualEncoder.predict"]
    (folder / "about.json").write_text(json.dumps({**about, "code": code}))
    found = {item["name"]: item["about"] for item in json.loads(invoke("cache", "--dir", kept, "--json").stdout)}
    assert found[folder.name].startswith(f"{about['input']} embedding by DualEncoder.predict, weights ")


def test_only_what_runs_have_put_there_is_deleted(kept, native, tmp_path):
    names = [folder["name"] for folder in json.loads(invoke("cache", "--dir", kept, "--json").stdout)]
    images = kept / names[2]
    (images / "notes.txt").write_text("mine")
    (next(p for p in images.iterdir() if p.is_dir()) / "more.px").write_text("mine, too")
    (kept / "other").mkdir()
    (kept / "other" / "about.json").write_text("{}")
    before = files(kept)
    for words in (["rm"], ["rm", "--all", names[0]], ["rm", names[0]], ["rm", names[0], "nothing", "--yes"]):
        done = invoke("cache", "--dir", kept, *words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert files(kept) == before
    assert invoke("cache", "--dir", kept, "rm", names[0], "--yes").exit_code == 0
    assert files(kept) == {name for name in before if not name.startswith(names[0])}
    done = invoke("cache", "--dir", kept, "rm", "--all", "--yes")
    assert "the folder stays, it holds" in done.stdout
    assert {name.rpartition("/")[2] for name in files(kept)} == {"notes.txt", "more.px", "about.json"}
    assert not (kept / names[1]).exists()
    _, again = run(native, "flickr30k", tmp_path / "again", "--image-cache", kept, "--features", kept)
    assert again.result()["timing"]["samples_from_store"] == 0


@pytest.mark.parametrize("words", [[], ["--dir", "nowhere"]])
def test_without_a_folder_the_listing_says_what_to_give(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("cache", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--" in done.stderr
