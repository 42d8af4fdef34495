"""The same pictures give the same data and the same rows from a folder, a zip, a tar and a parquet file."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from asking import ask, load
from containers import export, export_vqa, pack, zip_folder
from native import ALL_ROOTS, invoke, run_words
from random_detector import save_detector

from beit3_bench.backbones.image_hashes import image_hash
from beit3_bench.harness.record.fingerprints import data_fingerprint
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.registry import get_task

CONTAINERS = ("zip", "tar", "parquet")
UNEXPORTED = ("coco-det", "snli-ve", "sugarcrepe")
"""No export has COCO's ids and masks, nor the pairs of SNLI-VE and the captions of SugarCrepe beside the pictures."""
CASES = [(t, c) for t in ALL_ROOTS for c in CONTAINERS if t not in UNEXPORTED or c != "parquet"]
SAMPLES = 6


@dataclass(frozen=True)
class Data:
    """A split in some container.  root: of the data."""

    root: Path
    task: Task
    split: Split

    @property
    def fingerprint(self) -> str:
        return data_fingerprint(self.split.examples, self.root)

    def contents(self) -> dict[str, list[str | None]]:
        """Hashes of the pictures, by example."""
        return {e.id: [image_hash(path) for path in e.images] for e in self.split.examples}


def read(task: str, root: Path, split: str | None = None) -> Data:
    made = get_task(task)(root)
    return Data(root, made, made.read(split or made.default_split))


@pytest.fixture(scope="module")
def packed(native, tmp_path_factory):
    """(task, container) -> data root; made once for the tasks that share it."""
    made: dict[tuple[str, str], Path] = {}

    def one(task: str, container: str) -> Path:
        name, vqa = ALL_ROOTS[task], task == "vqav2" and container == "parquet"
        key = (name + ("-vqa" if vqa else ""), container)
        if container == "folder":
            return native.world / name
        if key not in made:
            world = tmp_path_factory.mktemp(container)
            shutil.copy(native.world / "tiny_world.json", world)
            shutil.copytree(native.world / name, world / name)
            if container != "parquet":
                pack(world / name, container)
            elif vqa:
                export_vqa(world / name)
            else:
                export(world / name)
            made[key] = world / name
        return made[key]

    return one


@pytest.mark.parametrize(("task", "container"), CASES)
def test_the_data_is_the_same(packed, task, container):
    if container == "parquet":
        pytest.importorskip("pyarrow")
    for split in get_task(task).splits:
        if (task, split) == ("ade20k-seg", "test"):  # the tiny world has no such images
            continue
        folder, other = read(task, packed(task, "folder"), split), read(task, packed(task, container), split)
        assert other.fingerprint == folder.fingerprint
        assert other.split.labels == folder.split.labels
        assert other.contents() == folder.contents()
        assert not any("!" not in path for e in other.split.examples for path in e.images)
        names = [name.removeprefix(str(other.root)) for e in other.split.examples for name in e.image_names]
        assert sorted(names) == sorted(
            p.removeprefix(str(folder.root)) for e in folder.split.examples for p in e.images
        )


@pytest.mark.parametrize("task", [t for t in ALL_ROOTS if t != "ade20k-seg"])
def test_the_rows_are_the_same(native, packed, tmp_path, task):
    folder = read(task, packed(task, "folder"))
    part = folder.task.limited(folder.split, SAMPLES)
    ids = [e.id for e in part.examples]
    weights = save_detector(tmp_path / "detector.pth") if task == "coco-det" else native.checkpoint(task)
    model = load(folder.task, folder.split, weights)
    model.ability.labels = folder.split.labels
    rows = ask_each(folder.task, part, model)
    for container in CONTAINERS:
        if (task, container) not in CASES:
            continue
        if container == "parquet":
            pytest.importorskip("pyarrow")
        other = read(task, packed(task, container))
        chosen = {e.id: e for e in other.split.examples}
        assert ask_each(other.task, other.split.of([chosen[i] for i in ids]), model) == rows


def ask_each(task: Task, split: Split, model) -> dict[str, str]:
    """Rows by id as text, kind by kind: embeddings are compared by value, too."""
    rows: dict[str, str] = {}
    for kind in {e.kind for e in split.examples}:
        of_kind = split.of([e for e in split.examples if e.kind == kind])
        for i, row in ask(task, of_kind, model).items():
            rows[i] = repr({k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()})
    return rows


@pytest.mark.parametrize("container", ["zip", "tar", "parquet"])
def test_a_run_with_workers_and_image_cache_has_the_same_fingerprints(native, packed, tmp_path, container):
    """Two decoding processes; the second run decodes nothing, whatever the container."""
    if container == "parquet":
        pytest.importorskip("pyarrow")
    results, cached = [], []
    for n, kind in enumerate(("folder", container)):
        words = [*run_words(native, "nlvr2", packed("nlvr2", kind)), "--limit", 6, "--image-cache", tmp_path / "cache"]
        words[words.index("--workers") + 1] = 2
        out = tmp_path / str(n)
        result = invoke(*words, "--output", out)
        assert result.exit_code == 0, result.output
        cached.append(len(list((tmp_path / "cache").rglob("*.px"))))
        results.append(json.loads((out / "result.json").read_text()))
    first, second = results
    for name in ("data", "images"):
        assert first["provenance"]["fingerprints"][name] == second["provenance"]["fingerprints"][name]
    assert {k: m["value"] for k, m in first["metrics"].items()} == {k: m["value"] for k, m in second["metrics"].items()}
    assert cached == [12, 12]  # six pairs, decoded once


@pytest.mark.parametrize("task", ["nlvr2", "flickr30k", "imagenet"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_data_verify_finds_nothing_wrong(packed, task, container):
    if container == "parquet":
        pytest.importorskip("pyarrow")
    result = invoke("data", "verify", "--task", task, "--data-root", packed(task, container), "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert sum(split["decoded"] for split in report["splits"]) > 0


def test_facts_and_readers_name_the_same_splits_of_exports():
    from beit3_bench.tasks import winoground
    from beit3_bench.tasks.layouts import ade20k, imagenet, nlvr2, nocaps, vqa

    stated = {task: {s for need in read_facts(task).data.needs for s in need.exports} for task in ALL_ROOTS}
    for task, exported in (
        ("vqav2", vqa.EXPORTED),
        ("nlvr2", nlvr2.EXPORTED),
        ("nocaps", nocaps.EXPORTED),
        ("imagenet", imagenet.EXPORTED),
        ("ade20k-seg", ade20k.EXPORTED),
        ("winoground", {"test": winoground.EXPORTED}),
    ):
        assert stated[task] == {name for names in exported.values() for name in names}


def test_segmentation_decodes_a_member_as_mmseg_does_a_file(tmp_path):
    """Turned by its EXIF orientation, and in OpenCV's own decoder, as `LoadImageFromFile` does."""
    mmcv = pytest.importorskip("mmcv")
    from PIL import Image

    from beit3_bench.backbones.beit3.mmseg_adapter.ability import _decoded
    from beit3_bench.backbones.images import read_image_file

    folder = tmp_path / "val"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.radial_gradient("L").convert("RGB").resize((40, 24)).save(folder / "x.jpg", exif=turned)
    zip_folder(folder, tmp_path / "val.zip")
    place = tmp_path / "val.zip!val/x.jpg"
    member = _decoded(place, read_image_file(place))
    assert member.shape == (40, 24, 3)
    assert (member == mmcv.imread(folder / "x.jpg", flag="color", backend="cv2")).all()
