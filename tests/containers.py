"""The data sets of the tiny world in other containers: zip, tar, and parquet files with the columns of the hub's exports."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

IMAGE_FOLDERS = {
    "coco": ("train2014", "val2014", "test2015", "train2017", "val2017", "test2017"),
    "flickr30k": ("flickr30k-images",),
    "imagenet": ("val", "train"),
    "nlvr2": ("images/train", "dev", "test1"),
    "nocaps": ("val", "test"),
    "winoground": ("images",),
    "ADEChallengeData2016": ("images/training", "images/validation", "annotations/training", "annotations/validation"),
}
GROUP = 7
"""Rows in a row group, so that there are several."""


def zip_folder(folder: Path, archive: Path, top: str | None = None, method: int = zipfile.ZIP_STORED) -> Path:
    """Pack a folder below ``top`` (default: its name; "" = nothing), with the entries that zip and macOS make beside files."""
    top = folder.name if top is None else top
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            inner = Path(top, path.relative_to(folder)).as_posix()
            file.writestr(f"{inner}/", b"") if path.is_dir() else file.write(path, inner)
        file.writestr("__MACOSX/._x.jpg", b"left by a system")
    return archive


def tar_folder(folder: Path, archive: Path, top: str | None = None) -> Path:
    with tarfile.open(archive, "w") as file:
        file.add(folder, arcname=top if top is not None else f"./{folder.name}")
    return archive


def pack(root: Path, kind: str) -> None:
    """Put an archive in the place of every folder of images, deflated or stored in turn."""
    for n, name in enumerate(IMAGE_FOLDERS[root.name]):
        folder = root / name
        if folder.is_dir():
            if kind == "zip":
                zip_folder(folder, root / f"{name}.zip", method=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[n % 2])
            else:
                tar_folder(folder, root / f"{name}.tar")
            shutil.rmtree(folder)


# ---- exports -----------------------------------------------------------------------------------------------------------


def image(path: Path, name: str | None = "") -> dict[str, Any]:
    """A cell of an image column; name: what the export says that the file was called, "" = its name, None = nothing."""
    return {"bytes": path.read_bytes(), "path": path.name if name == "" else name}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=GROUP)
    return file


def write_shards(folder: Path, split: str, rows: list[dict[str, Any]], shards: int = 2) -> None:
    """Files as `datasets` names them."""
    size = -(-len(rows) // shards)
    for n in range(shards):
        write_rows(folder / f"{split}-{n:05d}-of-{shards:05d}.parquet", rows[n * size : (n + 1) * size])


def export(root: Path) -> None:
    """Replace a data set by its export; annotation files and images go."""
    EXPORTERS[root.name](root)
    _keep_export(root)


def _keep_export(root: Path) -> None:
    for path in [*root.iterdir(), *(root / "data").iterdir()]:
        if path.name != "data" and path.suffix != ".parquet":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _coco(root: Path) -> None:
    """As HuggingFaceM4/COCO (a row per caption); the questions as lmms-lab/VQAv2 are `export_vqa`."""
    by_split: dict[str, list] = {}
    for record in json.loads((root / "dataset_coco.json").read_text())["images"]:
        same = {k: record[k] for k in ("filepath", "sentids", "filename", "imgid", "split", "cocoid")}
        cell = image(root / record["filepath"] / record["filename"])
        rows = by_split.setdefault({"val": "validation", "test": "test"}.get(record["split"], "train"), [])
        rows += [{"image": cell, **same, "sentences": sentence} for sentence in record["sentences"]]
    for split, rows in by_split.items():
        write_shards(root / "data", split, rows)


def export_vqa(root: Path) -> None:
    """As lmms-lab/VQAv2 with a training split, in place of COCO's folder."""
    names = {"train2014": "train", "val2014": "validation", "test-dev2015": "testdev", "test2015": "test"}
    for subset, split in names.items():
        asked = json.loads((root / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json").read_text())["questions"]
        file = root / f"vqa/v2_mscoco_{subset}_annotations.json"
        annotations = (
            {r["question_id"]: r for r in json.loads(file.read_text())["annotations"]} if file.is_file() else {}
        )
        order = {q: n for n, q in enumerate(annotations)}
        folder = "test2015" if subset.startswith("test") else subset
        rows = [
            {
                **annotations.get(q["question_id"], dict.fromkeys(("answers", "multiple_choice_answer"))),
                **q,
                "image": image(root / folder / f"COCO_{folder}_{q['image_id']:012d}.jpg", None),
            }
            for q in sorted(asked, key=lambda q: order.get(q["question_id"], 0))
        ]
        write_shards(root / "data", split, rows)
    _keep_export(root)


def _flickr30k(root: Path) -> None:
    """As nlphuji/flickr30k: every split in one."""
    rows = [
        {
            "image": image(root / "flickr30k-images" / r["filename"]),
            "caption": [s["raw"] for s in r["sentences"]],
            "sentids": [str(i) for i in r["sentids"]],
            "split": r["split"],
            "img_id": str(r["imgid"]),
            "filename": r["filename"],
        }
        for r in json.loads((root / "dataset_flickr30k.json").read_text())["images"]
    ]
    write_shards(root / "data", "test", rows)


def _imagenet(root: Path) -> None:
    """As ILSVRC/imagenet-1k."""
    wnids = sorted(folder.name for folder in (root / "val").iterdir())
    for split, name in (("val", "validation"), ("train", "train")):
        files = sorted((root / split).rglob("*.JPEG"), key=lambda path: path.name)
        rows = [
            {"image": image(f, f"{f.stem}_{f.parent.name}.JPEG"), "label": wnids.index(f.parent.name)} for f in files
        ]
        write_shards(root / "data", name, rows)


def _nlvr2(root: Path) -> None:
    """With lmms-lab/NLVR2's columns, whole."""
    for name in ("train", "dev", "test1"):
        rows = []
        for line in (root / "data" / f"{name}.json").read_text().splitlines():
            record = json.loads(line)
            stem = record["identifier"].rsplit("-", 1)[0]
            folder = root / ("images/train" if name == "train" else name) / str(record.get("directory", ""))
            sides = {
                side: image(folder / f"{stem}-img{n}.png", None) for n, side in enumerate(("left_image", "right_image"))
            }
            told = {"question_id": record["identifier"], "question": record["sentence"], "answer": record["label"]}
            rows.append({**told, **sides, "directory": record.get("directory")})
        write_shards(root / "data", {"test1": "test_public"}.get(name, name), rows)


def _nocaps(root: Path) -> None:
    """As HuggingFaceM4/NoCaps, and the domains."""
    for split, file in (("val", "nocaps_val_4500_captions.json"), ("test", "nocaps_test_image_info.json")):
        content = json.loads((root / file).read_text())
        captions: dict[Any, list[str]] = {}
        for record in content.get("annotations", ()):
            captions.setdefault(record["image_id"], []).append(record["caption"])
        rows = [
            {
                "image": image(root / split / r["file_name"]),
                "image_file_name": r["file_name"],
                "image_id": r["id"],
                "annotations_captions": captions.get(r["id"], []),
                "image_domain": r.get("domain"),
            }
            for r in content["images"]
        ]
        write_rows(root / f"data/{'validation' if split == 'val' else split}-00000-of-00001.parquet", rows)


def _ade20k(root: Path) -> None:
    """As merve/scene_parse_150: names in the images' paths."""
    for subset, split in (("training", "train"), ("validation", "validation")):
        rows = [
            {"image": image(f), "annotation": image(root / "annotations" / subset / f"{f.stem}.png")}
            for f in sorted((root / "images" / subset).iterdir())
        ]
        write_shards(root / "data", split, rows)


def _winoground(root: Path) -> None:
    """As facebook/winoground's own."""
    rows = []
    for line in (root / "examples.jsonl").read_text().splitlines():
        record = json.loads(line)
        sides = {key: image(root / "images" / f"{record[key]}.png") for key in ("image_0", "image_1")}
        rows.append({**record, **sides})
    write_shards(root / "data", "test", rows)


EXPORTERS = {
    "coco": _coco,
    "flickr30k": _flickr30k,
    "imagenet": _imagenet,
    "nlvr2": _nlvr2,
    "nocaps": _nocaps,
    "ADEChallengeData2016": _ade20k,
    "winoground": _winoground,
}
