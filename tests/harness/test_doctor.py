"""The doctor's report: every check ends in a line, and what is missing comes with its mend."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from beit3_bench.errors import INSTALL_LINES
from beit3_bench.harness.commands import doctor

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable folder, and an empty cache."""
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_that_is_absent_comes_with_its_install_line(place: Path) -> None:
    found = doctor.module_finding("no_such_stack", "coco-det", "pip install it")
    assert (found.state, found.needed_for, found.mend) == ("missing", "coco-det", "pip install it")


@pytest.mark.parametrize(
    "body", ["raise ImportError('undefined symbol: _ZN2at')", "raise RuntimeError('undefined symbol: _ZN2at')"]
)
def test_a_module_that_is_installed_but_does_not_import_is_broken(place: Path, body: str) -> None:
    name = f"broken_stack_{len(body)}"
    (place / f"{name}.py").write_text(body)
    found = doctor.module_finding(name, "ade20k-seg", "pip install it")
    assert found.state == "broken"
    assert "undefined symbol" in found.detail


def test_a_module_that_imports_is_ok_with_its_version(place: Path) -> None:
    found = doctor.module_finding("click", "everything", "")
    assert found.state == "ok"
    assert found.detail[0].isdigit()


def test_every_optional_stack_has_an_install_line() -> None:
    assert set(doctor.STACKS) == set(INSTALL_LINES)


def test_a_detectron2_whose_engine_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2 itself imports without pkg_resources, its model zoo does not."""
    from beit3_bench.backbones.beit3 import detectron2_adapter

    monkeypatch.setattr(
        doctor, "module_finding", lambda name, purpose, install, imports: doctor.Finding(name, "ok", "0.6", purpose)
    )
    monkeypatch.setattr(detectron2_adapter, "problem", lambda: "no pkg_resources; install it with: pip install ...")
    found = doctor.stack_finding("detectron2", "coco-det")
    assert (found.state, found.detail) == ("broken", "no pkg_resources")
    assert found.mend == INSTALL_LINES["detectron2"]
    assert "'setuptools<82'" in found.mend
    assert "shapely" in found.mend
    assert doctor.stack_finding("mmcv", "ade20k-seg").state == "ok"


def test_java_that_is_absent_or_fails_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert doctor._java().state == "missing"
    java = place / "java"
    java.write_text("#!/bin/sh\necho 'no heap' >&2\nexit 1\n")
    java.chmod(0o755)
    assert (doctor._java().state, "no heap" in doctor._java().detail) == ("broken", True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"17\"' >&2\n")
    assert (doctor._java().state, doctor._java().detail) == ("ok", 'openjdk version "17"')


def test_the_spice_model_is_looked_for_where_the_scorer_reads_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = place / "pycocoevalcap" / "spice" / "lib"
    lib.mkdir(parents=True)
    (place / "pycocoevalcap" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    missing = doctor._spice()
    assert missing.state == "missing"
    assert str(lib) in missing.mend
    for name in doctor.SPICE_JARS:
        (lib / name).write_text("")
    assert doctor._spice().state == "ok"


def test_a_check_that_fails_does_not_end_the_report(place: Path) -> None:
    (place / "cache").mkdir()
    (place / "cache" / "pins.json").write_text("{")
    result = CliRunner().invoke(doctor.command, ["--json"])
    assert result.exit_code == 0
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["pinned hashes"]["state"] == "broken"
    assert "pins.json" in findings["pinned hashes"]["detail"]
    assert findings["torch"]["state"] == findings["device"]["state"] == "ok"


def test_the_report_names_the_mend_of_everything_that_is_not_ok(place: Path) -> None:
    result = CliRunner().invoke(doctor.command, [])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("missing", "broken")):
            assert "needed for: " in lines[number + 1]
            assert len(lines[number + 2].split("mend: ")[1]) > 10
    assert lines[-2].endswith("checks are ok.")
    assert re.match(r"\d+ of \d+ tasks can run here", lines[-1])
    assert "beit3-bench" not in "".join(re.findall(r"pip install.*", result.stdout))
    assert "tests" not in result.stdout


def findings_without(*names: str) -> list[doctor.Finding]:
    modules = {**dict.fromkeys(doctor.CORE, ""), **doctor.STACKS}
    return [doctor.Finding(name, "missing" if name in names else "ok", "", "", f"get {name}") for name in modules]


@pytest.mark.parametrize(
    ("missing", "verdict"),
    [
        ((), r"18 of 18 tasks can run here: vqav2, .*"),
        (("detectron2", "open_clip", "pycocoevalcap"), r"18 of 18 tasks can run here: .*"),
        (("mmcv", "mmseg"), r"17 of 18 tasks can run here; ade20k-seg: get mmcv"),
        (("mmdet",), r"17 of 18 tasks can run here; ade20k-seg: get mmdet"),
        (("torch", "timm", "mmcv"), r"0 of 18 tasks can run here; get torch && get timm"),
    ],
)
def test_the_verdict_counts_the_tasks_and_says_what_the_others_need(missing: tuple[str, ...], verdict: str) -> None:
    found = doctor._tasks(findings_without(*missing))
    assert re.fullmatch(verdict, found.detail)
    assert found.state == ("missing" if ";" in verdict else "ok")


def test_install_lines_name_what_pyproject_names() -> None:
    """The packages themselves: beit3-bench is on no registry."""
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    lines = {
        "pycocoevalcap": extras["captions"],
        "faster_coco_eval": extras["fast"],
        "open_clip": extras["peers"],
        "eccv_caption": extras["eccv"],
        "imagecorruptions": extras["corruptions"],
        "pyarrow": extras["parquet"],
        "mmcv": extras["dense"],
        "pillow_heif": extras["phones"],
        **{re.match(r"\w+", line)[0]: [line] for line in extras["trackers"]},
    }
    for module, requirements in lines.items():
        assert set(requirements) <= set(re.findall(r"[^\s']+", INSTALL_LINES[module]))
    assert not any("beit3-bench" in line for line in INSTALL_LINES.values())


def test_core_packages_are_installed_in_the_range_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torchvision>=0.20", "torch>=2.5", "pillow<14,>=10", "timm<2; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    assert doctor.core_install("torch") == "pip install 'torch>=2.5'"
    assert doctor.core_install("PIL") == "pip install 'pillow<14,>=10'"
    assert doctor.core_install("timm") == "pip install 'timm'"


def test_an_extension_of_another_torch_is_broken_without_importing_its_package(place: Path) -> None:
    folder = place / "stack_with_extension"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    assert doctor.module_finding(folder.name, "x", "get it", imports=False).state == "ok"
    (folder / "_ext.cpython-311-x86_64-linux-gnu.so").write_bytes(b"no library")
    found = doctor.module_finding(folder.name, "x", "get it", imports=False)
    assert found.state == "broken"
    assert "_ext.cpython" in found.detail


def test_torch_is_the_one_large_package_that_is_imported() -> None:
    code = (
        "import sys; from beit3_bench.harness.commands.doctor import examine; examine(); "
        "print(sorted({'torch', 'timm', 'transformers', 'open_clip', 'mmcv', 'torchvision.models'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['torch']\n"


def test_little_disk_space_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10**9})())
    assert doctor._disk(place).state == "missing"
