"""`beit3-bench probe --task ade20k-seg` on the mini world: far above the commonest class, nothing twice, one line for bad input."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from native import edit_json, invoke

from beit3_bench.harness import dense_probe
from beit3_bench.harness.leaderboard.board import build_table
from beit3_bench.harness.record.results import read_results
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.reuse import feature_store, patch_store
from beit3_bench.results.published.values import load_published

STEPS = 250


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    for name in ("BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES"):
        monkeypatch.delenv(name, raising=False)


def words(native, head="retrieval", root=None, size=96):
    place = ["--checkpoint", native.checkpoints / f"{head}.pth", "--data-root", root or native.world]
    return ["probe", "--task", "ade20k-seg", *place, "--device", "cpu", "--workers", 0, "--image-size", size]


def probed(native, features, output, *more, steps=STEPS, **which):
    done = invoke(*words(native, **which), "--features", features, "--output", output, "--iterations", steps, *more)
    assert done.exit_code == 0, done.output
    return RunStore.read(output)


@pytest.fixture(scope="module")
def one(native, tmp_path_factory):
    """A probe, and the folder of its patches."""
    folder = tmp_path_factory.mktemp("probe")
    done = invoke(
        *words(native), "--features", folder / "features", "--output", folder / "runs" / "one", "--iterations", STEPS
    )
    assert done.exit_code == 0, done.output
    return folder, done


def test_a_linear_layer_is_far_above_the_commonest_class(one):
    folder, done = one
    result = RunStore.read(folder / "runs" / "one").result()
    assert result["metrics"]["mIoU"]["value"] > 4 * result["chance"] > 0
    assert result["metrics"]["aAcc"]["value"] > 0.6
    assert (result["task"], result["setting"], result["world"]) == ("ade20k-seg", "linear-probe", "tiny")
    assert result["model"]["protocol"] == f"BatchNorm + 1x1 on whole images, {STEPS} steps"
    assert result["model"]["image_size"] == 96
    schedule = result["provenance"]["config"]["probe"]["schedule"]
    assert (schedule["iterations"], schedule["batch"], schedule["lr"]) == (STEPS, 16, 1e-3)
    assert "patches of 12 images, 6 x 6 of 32 numbers: 28.1 kB in" in done.stderr


def test_the_table_has_it_in_a_section_of_its_own_and_pages_show_it(one, tmp_path):
    folder, _ = one
    shutil.copytree(folder / "runs", tmp_path / "runs")
    real = {"world": "real", "counts": {"images": 2_000, "classes": 150}}
    edit_json(tmp_path / "runs" / "one" / "result.json", lambda result: {**result, **real})
    (section,) = build_table(read_results(tmp_path / "runs"), load_published(), setting="linear-probe").sections
    assert section.title == "ADE20K semantic segmentation, val, a linear layer on frozen features"
    assert [(row.measured, row.protocol) for row in section.rows] == [
        (True, f"linear-probe; BatchNorm + 1x1 on whole images, {STEPS} steps")
    ]
    others = build_table(read_results(tmp_path / "runs"), load_published(), tasks=["ade20k-seg"]).sections
    assert [s.regime for s in others if any(row.measured for row in s.rows)] == ["linear-probe"]
    table = invoke("table", "--runs", folder / "runs", "--setting", "linear-probe")
    assert "BatchNorm + 1x1 on whole images" in table.stdout
    page = tmp_path / "page.html"
    shown = invoke("show", folder / "runs" / "one", "--output", page)
    assert shown.exit_code == 0, shown.output
    assert "linear-probe" in page.read_text()


def test_patches_and_layer_are_not_made_again(native, one, tmp_path, monkeypatch):
    folder, _ = one
    monkeypatch.setattr(dense_probe._Training, "part", lambda *_: pytest.fail("a layer that is there was fitted"))
    monkeypatch.setattr(patch_store.PatchStore, "append", lambda *_: pytest.fail("patches were computed again"))
    again = probed(native, folder / "features", tmp_path / "again")
    first = RunStore.read(folder / "runs" / "one")
    assert again.rows() == first.rows()
    assert again.result()["provenance"]["fingerprints"] == first.result()["provenance"]["fingerprints"]


def test_an_interrupted_fit_goes_on_where_it_stopped(native, one, tmp_path, monkeypatch):
    folder, _ = one
    shutil.copytree(folder / "features", tmp_path / "features")
    for state in (tmp_path / "features").glob("*/head-*.pt"):
        state.unlink()
    monkeypatch.setattr(dense_probe, "SAVED_EVERY", 100)
    part, steps = dense_probe._Training.part, []

    def struck(self, meter):
        steps.append(self.fit.step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        part(self, meter)

    monkeypatch.setattr(dense_probe._Training, "part", struck)
    command = [*words(native), "--features", tmp_path / "features", "--output", tmp_path / "run", "--iterations", STEPS]
    assert invoke(*command).exit_code != 0
    assert not (tmp_path / "run").exists()
    assert invoke(*command).exit_code == 0
    assert steps == [0, 100, 200, 200]
    assert RunStore.read(tmp_path / "run").rows() == RunStore.read(folder / "runs" / "one").rows()


def test_damaged_patches_are_computed_again(native, one, tmp_path, monkeypatch):
    folder, _ = one
    shutil.copytree(folder / "features", tmp_path / "features")
    (pack,) = (tmp_path / "features").glob("*/*.pack")
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    append, stored = patch_store.PatchStore.append, []

    def counted(self, rows):
        rows = list(rows)
        stored.extend(row["id"] for row in rows)
        append(self, rows)

    monkeypatch.setattr(patch_store.PatchStore, "append", counted)
    again = probed(native, tmp_path / "features", tmp_path / "run")
    assert len(stored) == 1
    assert again.rows() == RunStore.read(folder / "runs" / "one").rows()


# ---- bad input --------------------------------------------------------------------------------------------------------


def told(*command):
    done = invoke(*command)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.output
    return lines[0]


def test_where_patches_are_kept_has_to_be_said(native):
    assert "keeps the patches of the training images on disk; say where: --features DIR" in told(*words(native))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--method", "linear"), "--method: is no option of probe --task ade20k-seg; leave it out"),
        (("-C", 3), "-C: is no option of probe --task ade20k-seg; leave it out"),
        (("--image-size", 100), "100"),
    ],
)
def test_options_that_cannot_be(native, tmp_path, more, line):
    assert line in told(*words(native), "--features", tmp_path / "features", *more)
    assert not (tmp_path / "features").exists()


def test_options_of_the_dense_probe_alone(native):
    place = ["--checkpoint", native.checkpoints / "retrieval.pth", "--data-root", native.root("imagenet")]
    assert "--iterations: is no option of probe --task imagenet" in told("probe", *place, "--iterations", 5)


def test_too_little_disk_is_told_before_anything_is_written(native, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(patch_store.shutil, "disk_usage", lambda path: usage)
    line = told(*words(native), "--features", tmp_path / "features")
    assert "28.1 kB, of which 28.1 kB are to be written, and 1.0 kB are free in" in line
    assert "give --features on a larger disk" in line
    assert not list((tmp_path / "features").glob("*/*.pack"))


def test_a_disk_that_is_full_meanwhile_ends_the_probe(native, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_store.os, "write", full)
    line = told(*words(native), "--features", tmp_path / "features")
    assert "the disk is full; give --features on another disk, or make room and give the same command again" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda grid: grid * 1e6, "a number of its patches is beyond float16, in which they are kept"),
        (lambda grid: grid * float("nan"), "not finite"),
        (lambda grid: grid[:, :1, :1, 0], "gave no value of that kind (patches of shape (1, 1), not (h, w, D))"),
    ],
)
def test_patches_that_cannot_be_kept_are_told_with_their_image(native, tmp_path, monkeypatch, change, line):
    from beit3_bench.backbones.beit3.native import PatchTokens

    tokens = PatchTokens.tokens
    monkeypatch.setattr(PatchTokens, "tokens", lambda self, batch: change(tokens(self, batch)))
    said = told(*words(native), "--features", tmp_path / "features")
    assert said.startswith("error: row ADE_train_")
    assert line in said


def test_missing_labels_are_named(native, tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    shutil.copytree(native.world / "ADEChallengeData2016", root)
    next((root / "annotations" / "training").iterdir()).unlink()
    line = told(*words(native, root=tmp_path), "--features", tmp_path / "features")
    assert "1 of 12 images have no annotation (ADE_train_" in line
    shutil.rmtree(root / "annotations")
    assert "12 of 12 images have no annotation" in told(
        *words(native, root=tmp_path), "--features", tmp_path / "features"
    )


def test_a_family_without_patches_is_told_with_those_that_have_them(native, tmp_path, monkeypatch):
    from beit3_bench.backbones.abilities import Patches
    from beit3_bench.backbones.vlmo.family import VLMoFamily

    monkeypatch.setattr(VLMoFamily, "abilities", tuple(a for a in VLMoFamily.abilities if a is not Patches))
    command = words(native)
    command[4] = f"vlmo:{native.checkpoints / 'retrieval.pth'}"
    line = told(*command, "--features", tmp_path / "features")
    assert (
        "vlmo offers embed, answer, classify; probe asks give patches; give a checkpoint of another family (beit3"
        in line
    )


def test_a_damaged_state_of_the_layer_is_told_with_the_mend(native, one, tmp_path):
    folder, _ = one
    shutil.copytree(folder / "features", tmp_path / "features")
    (state,) = (tmp_path / "features").glob("*/head-*.pt")
    state.write_bytes(state.read_bytes()[:500])
    line = told(
        *words(native), "--features", tmp_path / "features", "--output", tmp_path / "run", "--iterations", STEPS
    )
    assert f"{state}: is no whole state of a linear layer; delete it" in line


def test_a_probe_is_not_replayed(one):
    folder, _ = one
    line = told("replay", folder / "runs" / "one")
    assert "was made by probe, which trains; give its command again, with another --output" in line


def test_the_json_of_a_probe_is_its_result(native, one, tmp_path):
    folder, _ = one
    more = ("--output", tmp_path / "run", "--iterations", STEPS, "--json", "--limit", 3)
    done = invoke(*words(native), "--features", folder / "features", *more)
    result = json.loads(done.stdout)
    assert result == json.loads(Path(tmp_path / "run" / "result.json").read_text())
    assert result["subset"] == {"limit": 3}
    assert "the linear layer has learned from 3 images of split train alone" in result["notes"]
