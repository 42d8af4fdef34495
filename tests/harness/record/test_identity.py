"""What the rows of a run depend on: a run is gone on with only where all of it is the same, by content."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_task
from native import edit_json, invoke, run_words
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.rescore import rescore
from beit3_bench.harness.record import fingerprints as fingerprint
from beit3_bench.harness.record.fingerprints import data_fingerprint, option_fingerprints, same_data, source_fingerprint
from beit3_bench.harness.record.image_contents import check_images, hashes_by_path
from beit3_bench.harness.record.rows import encode_row
from beit3_bench.harness.record.shards import committed, row_images
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.ade20k import ADE20K
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.vqav2 import VQAv2


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("JAVA_HOME", "BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES"):
        monkeypatch.delenv(name, raising=False)


def kill(folder: Path, keep: int = 1) -> None:
    """Make a finished run look as if it had been killed after ``keep`` batches."""
    for name in ("result.json", "samples.npz"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "submission", ignore_errors=True)
    path = folder / "rows" / "rank-00000.jsonl"
    lines, commits = [], 0
    for line in path.read_bytes().split(b"\n"):
        lines.append(line)
        commits += line.startswith(b'{"commit"')
        if commits == keep:
            break
    path.write_bytes(b"\n".join(lines) + b"\n")


def refusal(words) -> str:
    """The error of a command that is refused: one line, exit code 2."""
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return error


def finished(words) -> str:
    """What a command prints that ends well."""
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a run folder holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def repaint(path: Path) -> None:
    """Another picture of the same size, in as many bytes."""
    size, content = path.stat().st_size, io.BytesIO()
    Image.new("RGB", Image.open(path).size, (255, 0, 0)).save(content, "JPEG", quality=30)
    assert len(content.getvalue()) <= size
    path.write_bytes(content.getvalue() + bytes(size - len(content.getvalue())))


def without(native, task: str, prefix: str, to: Path) -> Path:
    content = torch.load(native.checkpoint(task), weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith(prefix)}
    torch.save(content, to)
    shutil.copy(native.world / "beit3.spm", to.parent)
    return to


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [True, False])
def test_another_seed_of_random_weights_is_refused(native, tmp_path, killed):
    words = run_words(native, "imagenet-linear")
    words[words.index("--checkpoint") + 1] = without(native, "imagenet-linear", "head", tmp_path / "part.pth")
    words += ["--allow-missing", "head.*", "--batch-size", 4, "--output", tmp_path / "run"]
    finished([*words, "--seed", 0])
    if killed:
        kill(tmp_path / "run")
    assert "seed is 1, there 0" in refusal([*words, "--seed", 1])
    finished([*words, "--seed", 0])


def test_the_seed_of_the_bootstrap_alone_may_change(native, tmp_path):
    words = [*run_words(native, "nlvr2"), "--batch-size", 4, "--output", tmp_path / "run"]
    finished([*words, "--seed", 0])
    whole = RunStore.read(tmp_path / "run").rows()
    kill(tmp_path / "run")
    kept = RunStore.read(tmp_path / "run").rows()
    assert 0 < len(kept) < len(whole)
    finished([*words, "--seed", 1])
    store = RunStore.read(tmp_path / "run")
    assert store.rows() == whole
    assert store.result()["timing"]["resumed_samples"] == len(kept)
    assert store.result()["provenance"]["seed"] == 1


@pytest.mark.parametrize("killed", [True, False])
def test_an_edited_answer_vocabulary_is_refused(native, tmp_path, killed):
    answers = VQAv2(native.root("vqav2")).vocabulary()

    def write(path, ordered):
        path.write_text("\n".join(json.dumps({"answer": a, "label": n}) for n, a in enumerate(ordered)))

    write(tmp_path / "voc.txt", answers)
    words = [*run_words(native, "vqav2"), "--split", "minival", "--batch-size", 4, "--output", tmp_path / "run"]
    finished([*words, "-o", f"answer_vocab={tmp_path / 'voc.txt'}"])
    if killed:
        kill(tmp_path / "run")
    write(tmp_path / "copy.txt", answers)  # the same contents at another place are the same option
    finished([*words, "-o", f"answer_vocab={tmp_path / 'copy.txt'}"])
    held = files_of(tmp_path / "run")
    write(tmp_path / "voc.txt", answers[::-1])
    assert "-o answer_vocab is " in refusal([*words, "-o", f"answer_vocab={tmp_path / 'voc.txt'}"])
    assert files_of(tmp_path / "run") == held


def test_annotations_that_build_another_vocabulary_are_refused(native, tmp_path):
    root = native.copy("vqav2", tmp_path)
    words = [*run_words(native, "vqav2", root), "--split", "minival", "--batch-size", 4, "--output", tmp_path / "run"]
    finished(words)
    kill(tmp_path / "run")
    held = files_of(tmp_path / "run")
    edit_json(root / "vqa" / "v2_mscoco_train2014_annotations.json", lambda c: c["annotations"].reverse())
    assert "answers is " in refusal(words)
    assert files_of(tmp_path / "run") == held


@pytest.mark.parametrize("option", ["class_names", "templates"])
def test_other_class_texts_are_refused(native, tmp_path, option):
    root = native.root("imagenet")
    texts = json.loads((root / {"class_names": "classnames.json", "templates": "templates.json"}[option]).read_text())
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    words = [*run_words(native, "imagenet"), "-o", f"{option}={file}", "--output", tmp_path / "run"]
    finished(words)
    kill(tmp_path / "run")
    held = files_of(tmp_path / "run")
    file.write_text(json.dumps([f"{text} x" for text in texts]))
    assert f"-o {option} is " in refusal(words)
    assert files_of(tmp_path / "run") == held


@pytest.mark.parametrize(
    ("task", "folder"), [("flickr30k", "flickr30k-images"), ("vqav2", "val2014"), ("nlvr2", "dev")]
)
@pytest.mark.parametrize("killed", [True, False])
def test_images_replaced_by_others_of_as_many_bytes_are_refused(native, tmp_path, task, folder, killed):
    root = native.copy(task, tmp_path)
    words = [*run_words(native, task, root), "--batch-size", 2, "--output", tmp_path / "run"]
    finished(words)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["provenance"]["fingerprints"]["images"]) == 64
    if killed:
        kill(tmp_path / "run", 2)
    used = {Path(p) for e in _examples(tmp_path / "run") for p in e.images}
    if task == "nlvr2":  # PNG: other pixels in place
        for path in used:
            size = path.stat().st_size
            content = io.BytesIO()
            Image.new("RGB", Image.open(path).size).save(content, "PNG")
            path.write_bytes(content.getvalue() + bytes(max(size - len(content.getvalue()), 0)))
    else:
        for path in used:
            repaint(path)
    assert "image files have other contents than its rows were made from" in refusal(words)


def _examples(folder: Path) -> list[Example]:
    from beit3_bench.tasks.registry import get_task

    config = json.loads((folder / "config.json").read_text())
    return get_task(config["task"])(config["data_root"]).read(config["split"]).examples


def test_images_that_a_task_reads_by_other_means_are_known_by_content_too(tmp_path, monkeypatch):
    toy_task.register(monkeypatch.setattr)
    data = toy_task.write_toy_data(tmp_path / "data", images=True)
    words = ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data, "--workers", 0]
    finished([*words, "--output", tmp_path / "run"])
    kill(tmp_path / "run")
    finished([*words, "--output", tmp_path / "run"])
    for path in (p for p in data.rglob("*") if p.suffix in (".png", ".jpg")):
        path.write_bytes(bytes(len(path.read_bytes())))
    assert "image files have other contents" in refusal([*words, "--output", tmp_path / "run"])


def test_images_served_by_cache_or_store_are_known_by_content_too(native, tmp_path):
    root = native.copy("flickr30k", tmp_path)
    words = [*run_words(native, "flickr30k", root), "--batch-size", 2]
    reused = ["--image-cache", tmp_path / "cache", "--features", tmp_path / "features"]
    stores = []
    for name, more in (("plain", []), ("first", reused), ("second", reused)):
        finished([*words, *more, "--output", tmp_path / name])
        stores.append(RunStore.read(tmp_path / name))
    hashes = [store.image_hashes() for store in stores]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(hashes[0]) == len({e.id for e in _examples(tmp_path / "plain") if e.images})
    assert stores[2].result()["timing"]["samples_from_store"] == len(stores[2].rows())


def test_hashes_do_not_show_in_rows_and_come_from_worker_processes(native, tmp_path):
    words = run_words(native, "nlvr2")
    words[words.index("--workers") + 1] = 2
    finished([*words, "--batch-size", 4, "--output", tmp_path / "run"])
    store = RunStore.read(tmp_path / "run")
    assert all(len(hashes) == 2 for hashes in store.image_hashes().values())
    assert store.image_hashes().keys() == store.rows().keys()
    assert all(row.keys() == {"id", "label", "margin"} for row in store.rows().values())


def test_other_label_maps_are_other_data(native, tmp_path):
    root = tmp_path / "ade"
    shutil.copytree(native.world / "ADEChallengeData2016", root)
    was = data_fingerprint(ADE20K(root).read("val").examples, root)
    shutil.copytree(root, tmp_path / "moved")
    assert data_fingerprint(ADE20K(tmp_path / "moved").read("val").examples, tmp_path / "moved") == was
    first_edition = data_fingerprint(ADE20K(root).read("val").examples, root, contents=False)
    path = next((root / "annotations" / "validation").glob("*.png"))
    values = np.array(Image.open(path))
    values[0, 0] = values[0, 0] % 150 + 1
    Image.fromarray(values).save(path)
    examples = ADE20K(root).read("val").examples
    assert data_fingerprint(examples, root) != was
    assert not same_data({"data": was, "code": "x"}, examples, root)
    assert same_data({"data": first_edition}, examples, root)  # runs of the first edition stay readable


def test_other_code_of_the_same_version_is_refused_and_shares_no_features(native, tmp_path, monkeypatch):
    words = [*run_words(native, "flickr30k"), "--features", tmp_path / "features", "--output"]
    finished([*words, tmp_path / "run"])
    monkeypatch.setattr(fingerprint, "_package_digest", lambda: "0" * 64)
    assert "code is 000000000000..., there " in refusal([*words, tmp_path / "run"])
    finished([*words, tmp_path / "other"])
    assert RunStore.read(tmp_path / "other").result()["timing"]["samples_from_store"] == 0


def test_the_digest_of_the_source_sees_an_edit_and_a_class_from_elsewhere(tmp_path, monkeypatch):
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "facts.toml").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "PACKAGES", ("made_up_package",))
        digest = fingerprint._package_digest.__wrapped__
        first = digest()
        assert digest() == first
        (package / "facts.toml").write_text("a = 2\n")
        second = digest()
        (package / "more.py").write_text("")
        assert len({first, second, digest()}) == 3

    class Foreign:
        pass

    assert source_fingerprint(Foreign) != source_fingerprint(Example)
    assert source_fingerprint(Example) == source_fingerprint()


def test_options_that_name_files_enter_by_content(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("x")
    b.write_text("x")
    assert option_fingerprints({"list": a, "n": 1}) == option_fingerprints({"list": b, "n": 1})
    assert option_fingerprints({"config": str(a), "n": 1}).keys() == {"options", "-o config"}
    b.write_text("y")
    assert option_fingerprints({"list": a}) != option_fingerprints({"list": b})
    assert option_fingerprints({"n": 1}) != option_fingerprints({"n": 2})
    assert option_fingerprints({"config": "large-896"}).keys() == {"options"}


def test_a_training_goes_on_only_with_the_same_option_files(tmp_path):
    from beit3_recipes import load_recipe

    from beit3_bench.harness.training.state import check_same

    recipe = load_recipe("vqav2", "tiny", {})
    stored = {"recipe": recipe.to_dict(), "seed": 0, "fingerprints": {"data": "d", "-o answer_vocab": "a"}}
    check_same(tmp_path, stored, recipe, {"data": "d", "-o answer_vocab": "a", "answers": "x"}, 0)  # an older state
    with pytest.raises(BenchError, match="-o answer_vocab a -> b"):
        check_same(tmp_path, stored, recipe, {"data": "d", "-o answer_vocab": "b"}, 0)


# ---- runs of the first edition ---------------------------------------------------------------------------------------


def make_old(folder: Path) -> None:
    """A run as the first edition wrote it: no fingerprints of code, answers and images, no hashes beside the rows."""
    for name in ("config.json", "result.json"):
        content = json.loads((folder / name).read_text())
        for holder in (content, content.get("provenance", {})):
            known = holder.get("fingerprints", {})
            for key in ("code", "answers", "classes", "images"):
                known.pop(key, None)
        (folder / name).write_text(json.dumps(content))
    from beit3_bench.harness.record.rows import commit_bytes, decode_row

    (shard,) = (folder / "rows").glob("*.jsonl")
    shard.write_bytes(commit_bytes([decode_row(line) for line in committed(shard)[0]]))


def test_a_run_of_an_earlier_version_is_readable_and_not_gone_on_with(native, tmp_path):
    words = [*run_words(native, "nlvr2"), "--output"]
    for name in ("old", "new"):
        finished([*words, tmp_path / name])
    make_old(tmp_path / "old")
    metrics = [rescore(tmp_path / name, native.root("nlvr2"))[0].metrics for name in ("old", "new")]
    assert metrics[0] == metrics[1]
    finished(replay_of(native, "nlvr2", tmp_path / "old"))
    finished(["compare", tmp_path / "old", tmp_path / "new"])
    finished(["table", "--runs", tmp_path])
    assert "holds a run of an earlier version" in refusal([*words, tmp_path / "old"])
    finished([*words, tmp_path / "old", "--overwrite"])


def replay_of(native, task: str, folder: Path, root: Path | None = None) -> list:
    checkpoint = native.checkpoint(task)
    return ["replay", folder, "--checkpoint", checkpoint, "--data-root", root or native.root(task), "--device", "cpu"]


# ---- replay and compare ----------------------------------------------------------------------------------------------


def test_replay_and_compare_know_replaced_images(native, tmp_path):
    root = native.copy("flickr30k", tmp_path)
    words = [*run_words(native, "flickr30k", root), "--output"]
    finished([*words, tmp_path / "a"])
    image = next(p for p in (root / "flickr30k-images").iterdir() if str(p) in _all_images(tmp_path / "a"))
    repaint(image)
    changed = f"1 of {len(_all_images(tmp_path / 'a'))} image files have other contents"
    assert changed in refusal(replay_of(native, "flickr30k", tmp_path / "a", root))
    finished([*words, tmp_path / "b"])
    assert "image contents" in refusal(["compare", tmp_path / "a", tmp_path / "b"])


def _all_images(folder: Path) -> set[str]:
    return {path for e in _examples(folder) for path in e.images}


def test_replay_wants_the_same_option_files(native, tmp_path):
    file = tmp_path / "templates.json"
    file.write_text('["a photo of {}"]')
    finished([*run_words(native, "imagenet"), "-o", f"templates={file}", "--output", tmp_path / "run"])
    file.write_text('["a sketch of {}"]')
    replayed = [*replay_of(native, "imagenet", tmp_path / "run"), "-o", f"templates={file}"]
    assert "not what the run saw: -o templates" in refusal(replayed)
    file.write_text('["a photo of {}"]')
    assert "same" in finished(replayed)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_an_image_that_changes_while_a_run_is_made_is_an_error(tmp_path):
    examples = [Example(i, (str(tmp_path / "a.jpg"),)) for i in "ab"]
    with pytest.raises(BenchError, match="was replaced while"):
        hashes_by_path(examples, {"a": ["1"], "b": ["2"]}, tmp_path)
    with pytest.raises(BenchError, match=r"1 of 1 image files have other contents .*a\.jpg\); mend"):
        check_images(examples, {"a": ["1"]}, tmp_path, "mend")


def test_hashes_are_read_without_decoding_a_row():
    row = {"id": 'a",\\u00e4', "image_sha256": ["1" * 32, "2" * 32], "embedding": np.zeros(3, np.float32)}
    assert row_images(encode_row(row).rstrip()) == row["image_sha256"]
    assert row_images(encode_row({"id": "x", "y": 1}).rstrip()) is None
    with pytest.raises(ValueError, match="no list of hashes"):
        row_images(encode_row({"id": "x", "image_sha256": 3}).rstrip())
