"""Which class an image of ImageNet's flat validation set is of.

The devkit says it by ILSVRC's own numbers, 1..1000, whose WordNet ids stand in ``meta.mat``: they are in another order than WordNet ids.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited
from beit3_bench.tasks.files import read_text

FORM = "a line per image: name and WordNet id (ILSVRC2012_val_00000001.JPEG n01751748)"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_FOLDERS = (f"{DEVKIT}/data", "data", f"devkit/{DEVKIT}/data", "devkit/data")
DEVKIT_ARCHIVES = (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tgz", f"devkit/{DEVKIT}.tar.gz")
KAGGLE = ("LOC_val_solution.csv", "imagenet-object-localization-challenge/LOC_val_solution.csv")
_LARGEST = 64 * 2**20  # bytes; the devkit has 2.5 million
_WNID = re.compile(r"n\d{8}")

Truth = dict[str, str]
"""Name of an image without suffix -> WordNet id."""


def find_truth(root: Path, given: Path | None) -> tuple[Path, Truth | None]:
    """The truth of the validation set and the file that says it; None where there is none.

    Args:
        given: the file to read; None = the devkit, unpacked or not, or Kaggle's file is looked for.

    Raises:
        BenchError: the file cannot be read, or says something else.
    """
    if given is not None:
        return given, _from_archive(given) if given.name.endswith((".tar.gz", ".tgz")) else _from_file(given)
    for folder in DEVKIT_FOLDERS:
        if (root / folder / GROUND_TRUTH).is_file():
            return root / folder / GROUND_TRUTH, _from_file(root / folder / GROUND_TRUTH)
    for name in KAGGLE:
        if (root / name).is_file():
            return root / name, _from_file(root / name)
    for name in DEVKIT_ARCHIVES:
        if (root / name).is_file():
            return root / name, _from_archive(root / name)
    return root, None


def _from_file(path: Path) -> Truth:
    """Lines of names and classes, Kaggle's csv, lines of WordNet ids, or the devkit's lines of numbers."""
    lines = read_text(path, "truth of ImageNet", FORM).split("\n")
    rows = [(n, re.split(r"[\s,]+", line.strip())) for n, line in enumerate(lines, 1) if line.strip()]
    if rows and rows[0][1][0] == "ImageId":
        rows = rows[1:]
    if not rows:
        raise BenchError(f"{path}: is empty; expected {FORM}")
    if all(len(cells) == 1 for _, cells in rows):
        return _by_number(path, rows)
    truth: Truth = {}
    for number, cells in rows:
        name = re.sub(r"\.\w+$", "", cells[0].rpartition("/")[2])
        if len(cells) < 2 or not _WNID.fullmatch(cells[1]):
            truth[name] = _from_label(cells[1] if len(cells) > 1 else "", f"{path}:{number}")
        elif truth.setdefault(name, cells[1]) != cells[1]:
            raise BenchError(f"{path}:{number}: {name} has two classes, {truth[name]} and {cells[1]}; keep one of them")
        else:
            truth[name] = cells[1]
    return truth


def _from_label(text: str, source: str) -> str:
    """A label 0..999 in the order of WordNet ids, as in Caffe's ``val.txt``."""
    from beit3_bench.tasks.class_folders import imagenet_classes

    known = imagenet_classes()
    if not text.isdecimal() or int(text) >= len(known):
        raise BenchError(
            f"{source}: {text[:40]!r} is neither a WordNet id nor a label 0..{len(known) - 1}; expected {FORM}"
        )
    return known[int(text)]


def _by_number(path: Path, rows: list[tuple[int, list[str]]]) -> Truth:
    """One class per line, in the order of the images' numbers."""
    cells = [cells[0] for _, cells in rows]
    if all(_WNID.fullmatch(cell) for cell in cells):
        return {_image(n): wnid for n, wnid in enumerate(cells, 1)}
    meta = path.with_name(META)
    if not meta.is_file():
        raise BenchError(
            f"{path}: holds numbers of classes, whose WordNet ids stand in the devkit's {META}; put that beside it, or give {FORM}"
        )
    try:
        content = read_limited(meta, _LARGEST)
    except OSError as error:
        raise BenchError(f"{meta}: cannot be read ({error.strerror}); get the devkit again") from error
    return _numbered(cells, content, path, meta)


def _from_archive(path: Path) -> Truth:
    """The two files of the devkit, read into memory; nothing is unpacked."""
    found: dict[str, bytes] = {}
    try:
        content = read_limited(path, _LARGEST)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for info in archive:
                name = info.name.rpartition("/")[2]
                if name in (GROUND_TRUTH, META) and info.isreg() and info.size <= _LARGEST:
                    file = archive.extractfile(info)
                    assert file is not None
                    found[name] = file.read()
                if len(found) == 2:
                    break
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror or error}); get the devkit again") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BenchError(
            f"{path}: is no whole .tar.gz ({error}); it was cut off or damaged: download it again"
        ) from error
    absent = [name for name in (GROUND_TRUTH, META) if name not in found]
    if absent:
        raise BenchError(f"{path}: holds no {absent[0]}; give ILSVRC2012_devkit_t12.tar.gz, or -o truth=FILE")
    return _numbered(found[GROUND_TRUTH].decode("ascii", "replace").split(), found[META], path, path)


def _numbered(cells: list[str], meta: bytes, path: Path, source: Path) -> Truth:
    wnids = _wnids_by_number(meta, source)
    truth: Truth = {}
    for n, cell in enumerate(cells, 1):
        if not cell.isdecimal() or int(cell) not in wnids:
            raise BenchError(
                f"{path}:{n}: {cell[:40]!r} is no class of {META} ({len(wnids)} classes); get the devkit again"
            )
        truth[_image(n)] = wnids[int(cell)]
    return truth


def _image(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _wnids_by_number(meta: bytes, source: Path) -> dict[int, str]:
    """ILSVRC's number -> WordNet id of the classes without children, from the structs of ``meta.mat``."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        return {int(number): str(wnid) for number, wnid, children in rows if int(children) == 0}
    except Exception as error:  # scipy raises many kinds for a damaged file
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise BenchError(f"{source}: {META} cannot be read as the devkit's ({why}); get the devkit again") from error
