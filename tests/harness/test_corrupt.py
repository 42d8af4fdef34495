"""`beit3-bench run --corrupt`: rows of corrupted pictures are labelled, told apart and come out again."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
import toy_task
from native import invoke, run_words
from PIL import Image
from random_detector import save_detector
from run_requests import run_request, with_settings
from toy_task import ToyTask, write_toy_data

from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.corruptions import Corruption
from beit3_bench.errors import BenchError
from beit3_bench.harness.record.released import apart
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task

pytest.importorskip("imagecorruptions")
TASK = "imagenet-linear"


def request_of(native, corruption, folder, **more):
    return run_request(TASK, native.checkpoint(TASK), native.root(TASK), corruption=corruption, output=folder, **more)


@pytest.fixture(scope="module")
def runs(native, tmp_path_factory):
    """Folders of a run over clean images and of one over noisy ones, by command."""
    root = tmp_path_factory.mktemp("runs")
    words = run_words(native, TASK)
    clean = invoke(*words, "--output", root / "clean")
    assert clean.exit_code == 0, clean.output
    corrupted = invoke(*words, "--corrupt", "gaussian_noise:5,jpeg", "--output", root / "corrupted")
    assert corrupted.exit_code == 0, corrupted.output
    return root, corrupted


def result_in(folder):
    return json.loads((folder / "result.json").read_text())


def test_each_corruption_is_a_run_of_its_own_that_says_so(runs):
    root, printed = runs
    assert sorted(folder.name for folder in (root / "corrupted").iterdir()) == [
        "gaussian_noise-5",
        "jpeg_compression-3",
    ]
    noisy, clean = result_in(root / "corrupted" / "gaussian_noise-5"), result_in(root / "clean")
    assert (noisy["corrupt"], clean["corrupt"]) == ("gaussian_noise:5", None)
    assert apart(noisy) == ["tiny world", "corrupted gaussian_noise:5"]
    (note,) = [note for note in noisy["notes"] if "corrupted" in note]
    assert note.startswith(
        "images corrupted: gaussian_noise of severity 5, at their own size before the model's transform"
    )
    assert f"warning: {note}" in printed.stderr
    assert "corrupted gaussian_noise:5" in printed.stdout
    assert "imagecorruptions-imaug" in noisy["provenance"]["packages"]
    fingerprints = [result["provenance"]["fingerprints"] for result in (noisy, clean)]
    assert fingerprints[0]["corruption"].startswith("gaussian_noise:5 imagecorruptions-imaug ")
    assert {name for name in fingerprints[0] if fingerprints[0][name] != fingerprints[1].get(name)} == {"corruption"}
    rows = [RunStore.read(root / place).rows() for place in ("corrupted/gaussian_noise-5", "clean")]
    assert rows[0].keys() == rows[1].keys()
    assert rows[0] != rows[1]


def test_rows_depend_neither_on_batches_nor_on_a_cache_nor_on_decoding_processes(runs, native, tmp_path):
    root, _ = runs
    expected = RunStore.read(root / "corrupted" / "gaussian_noise-5").rows()
    noise, cache = Corruption("gaussian_noise", 5), tmp_path / "cache"
    for number, corruption in enumerate((None, noise, noise)):  # the clean run fills the cache first
        folder = tmp_path / f"run-{number}"
        request = request_of(native, corruption, folder, batch_size=3, image_cache=cache, workers=2)
        outcome = run_task(request, get_task(TASK))
    assert outcome.result["timing"]["images_decoded"] == 0
    for number in (1, 2):
        assert RunStore.read(tmp_path / f"run-{number}").rows() == expected


def test_another_corruption_does_not_go_on_with_a_run(runs, native):
    root, _ = runs
    folder = root / "corrupted" / "jpeg_compression-3"
    with pytest.raises(BenchError, match="differs from this one: --corrupt is jpeg_compression:4, there jpeg_compress"):
        run_task(request_of(native, Corruption("jpeg_compression", 4), folder), get_task(TASK))
    with pytest.raises(BenchError, match="differs from this one: --corrupt is absent, there jpeg_compression:3; use"):
        run_task(request_of(native, None, folder), get_task(TASK))


def test_a_corrupted_run_is_replayed_from_its_card(runs, native):
    root, _ = runs
    named = ["--checkpoint", native.checkpoint(TASK), "--data-root", native.root(TASK), "--workers", 0]
    again = invoke("replay", root / "corrupted" / "gaussian_noise-5", *named)
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("same: ")


def test_a_comparison_says_which_side_is_corrupted(runs):
    root, _ = runs
    compared = invoke("compare", root / "clean", root / "corrupted" / "gaussian_noise-5")
    assert compared.exit_code == 0, compared.output
    assert "the first run's images are as they are, the second's corrupted with gaussian_noise:5" in compared.stdout


def test_a_page_shows_the_pictures_as_the_model_saw_them(runs, native, tmp_path):
    root, _ = runs
    noisy = root / "corrupted" / "gaussian_noise-5"
    pages = {}
    for name, words in {
        "clean": [root / "clean"],
        "noisy": [noisy],
        "both": [noisy, "--against", root / "clean"],
    }.items():
        made = invoke("show", *words, "--data-root", native.root(TASK), "--output", tmp_path / f"{name}.html")
        assert made.exit_code == 0, made.output
        pages[name] = (tmp_path / f"{name}.html").read_text()
    pictures = {name: set(re.findall(r"data:image/webp;base64,[^\"]+", page)) for name, page in pages.items()}
    assert len(pictures["clean"]) == len(pictures["noisy"]) > 0
    assert not pictures["clean"] & pictures["noisy"]
    assert "corrupted gaussian_noise:5" in pages["noisy"]
    assert pictures["both"] <= pictures["clean"]
    assert (
        "Pictures are shown as they are; the models saw them corrupted gaussian_noise:5, as they are." in pages["both"]
    )


def test_detections_are_those_of_corrupted_pictures(native, tmp_path):
    checkpoint = save_detector(tmp_path / "detector.pth")
    request = run_request("coco-det", checkpoint, native.world / "coco", limit=2, output=tmp_path / "clean")
    run_task(request, get_task("coco-det"))
    fog = with_settings(request, corruption=Corruption("fog", 5), output=tmp_path / "fog")
    result = run_task(fog, get_task("coco-det")).result
    assert result["corrupt"] == "fog:5"
    clean, foggy = (RunStore.read(tmp_path / name).rows() for name in ("clean", "fog"))
    assert clean.keys() == foggy.keys()
    assert all(repr(clean[name]) != repr(foggy[name]) for name in clean)


def test_a_segmentor_s_pixels_are_corrupted_before_its_pipeline(native):
    pytest.importorskip("mmseg")
    from beit3_bench.backbones.beit3.mmseg_adapter.ability import SegmentationReader

    class Kept:
        def compose(self, from_files):
            return lambda given: {"inputs": given, "data_samples": from_files}

    path = min((native.world / "ADEChallengeData2016" / "images" / "validation").glob("*.jpg"))
    reader, noise = SegmentationReader(Kept()), Corruption("gaussian_noise", 3)
    reader.corrupt(noise)
    batch = reader.collate([Item("1", (str(path),))])
    assert batch["data_samples"] == [False]
    content = hashlib.sha256(path.read_bytes()).digest()
    with Image.open(path) as image:
        expected = np.asarray(noise.of(image.convert("RGB"), content)).astype(int)
    off = np.abs(batch["inputs"][0]["img"][..., ::-1] - expected)  # OpenCV may decode a level otherwise
    assert off.max() <= 3
    assert np.abs(np.asarray(expected) - np.asarray(Image.open(path).convert("RGB")).astype(int)).mean() > 20


def test_the_list_of_runs_says_what_was_corrupted(runs):
    root, _ = runs
    listed = json.loads(invoke("runs", "--runs", root, "--json").stdout)
    assert {run["name"]: run["corrupt"] for run in listed} == {
        "clean": "",
        "corrupted/gaussian_noise-5": "gaussian_noise:5",
        "corrupted/jpeg_compression-3": "jpeg_compression:3",
    }


def test_every_image_is_corrupted_and_texts_stay_as_they_are(native, tmp_path):
    task = "coco-retrieval"
    request = run_request(task, native.checkpoint(task), native.root(task), limit=4, output=tmp_path / "clean")
    run_task(request, get_task(task))
    run_task(with_settings(request, corruption=Corruption("fog", 5), output=tmp_path / "fog"), get_task(task))
    clean, foggy = (RunStore.read(tmp_path / name).rows() for name in ("clean", "fog"))
    images = set(RunStore.read(tmp_path / "fog").image_hashes())
    assert 0 < len(images) < len(clean)
    assert {name for name in clean if not np.array_equal(clean[name]["embedding"], foggy[name]["embedding"])} == images


def test_bad_words_end_before_anything_is_read(native, tmp_path):
    refused = invoke(*run_words(native, TASK), "--corrupt", "gausian_noise:3", "--output", tmp_path / "run")
    assert refused.exit_code == 2
    assert refused.stderr.strip() == "error: --corrupt: no corruption 'gausian_noise'; did you mean 'gaussian_noise'?"
    assert not (tmp_path / "run").exists()


def test_a_task_without_pictures_is_refused(tmp_path, monkeypatch):
    toy_task.register(monkeypatch.setattr)
    data = write_toy_data(tmp_path / "data")
    request = run_request("toy", data / "toy.pth", data, corruption=Corruption("fog", 1), output=tmp_path / "run")
    with pytest.raises(BenchError, match="--corrupt fog:1: task toy shows no image; leave --corrupt out"):
        run_task(request, ToyTask)
    assert not (tmp_path / "run").exists()
