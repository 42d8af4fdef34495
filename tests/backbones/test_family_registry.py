"""Families by name, lazily, and the family of a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from beit3_bench.backbones import registry, released
from beit3_bench.backbones.abilities import Answers, Captions, Embeds
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError


class Named(Family):
    """Claims files by how their names begin."""

    abilities = (Embeds,)
    beginning = ""
    reads = False

    def claims(self, source: Source) -> bool:
        return (self.reads and bool(source.names)) or source.path.name.startswith(self.beginning)

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        raise NotImplementedError


class First(Named):
    name, title = "first", "First"
    beginning = "model"


class Second(Named):
    name, title = "second", "Second"
    abilities = (Embeds, Answers)
    beginning = "model"


class Reading(Named):
    """Reads the file as a checkpoint before it answers."""

    name, title = "reading", "Reading"
    beginning, reads = "never", True


HERE = __name__


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    def forget() -> None:
        registry.family_locations.cache_clear()
        registry.get_family.cache_clear()
        released.released_files.cache_clear()
        released._by_key.cache_clear()

    forget()
    yield
    forget()


def plug_in(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    points = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ENTRY_POINT_GROUP else [])


def only(monkeypatch: pytest.MonkeyPatch, *classes: type[Family]) -> None:
    """Make these the built-in families."""
    monkeypatch.setattr(registry, "BUILT_IN", {cls.name: f"{HERE}:{cls.__name__}" for cls in classes})
    plug_in(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text("{}")
    return path


# ---- by name ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_family_loads_and_knows_its_name(name: str) -> None:
    family = registry.get_family(name)
    assert isinstance(family, Family)
    assert (family.name, registry.get_family(name)) == (name, family)
    assert family.title
    assert family.abilities
    assert set(family.engines) <= set(family.abilities)
    assert set(family.scratch_presets) <= set(family.presets())
    assert {file.family for file in family.released()} <= {name}


def test_neither_names_nor_families_nor_their_released_files_import_torch() -> None:
    program = (
        "import sys\n"
        "from beit3_bench.backbones.registry import families, family_locations\n"
        "assert family_locations(); assert not [m for m in sys.modules if m.startswith('beit3_bench.backbones.beit3')]\n"
        "assert all(f.presets() is not None and f.released() is not None and f.recipe_tasks() is not None for f in families())\n"
        "assert not {'torch', 'timm', 'transformers', 'mmseg', 'detectron2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_typo_gets_a_hint() -> None:
    with pytest.raises(BenchError, match="unknown family 'biet3'; did you mean 'beit3'"):
        registry.get_family("biet3")


def test_another_package_can_add_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("first", f"{HERE}:First"))
    assert list(registry.family_locations()) == [*registry.BUILT_IN, "first"]
    assert [family.name for family in registry.families()][-1] == "first"


def test_a_name_claimed_twice_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("ours", "a:A"), ("ours", "b:B"))
    with pytest.raises(BenchError, match=r"'ours' is registered twice \(a:A and b:B\); .*beit3_bench.families"):
        registry.family_locations()


def test_one_entry_point_that_is_listed_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a package is found in two places of the path."""
    plug_in(monkeypatch, ("first", f"{HERE}:First"), ("first", f"{HERE}:First"))
    assert registry.get_family("first").title == "First"


def test_a_built_in_name_cannot_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("beit3", "evil:Family"))
    with pytest.raises(BenchError, match="registered twice"):
        registry.get_family("beit3")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:Family", "'ours' at nowhere:Family does not load"),
        ("json:Nothing", "'ours' at json:Nothing does not load"),
        ("json:JSONDecoder", "'ours' at json:JSONDecoder is no Family of that name"),
        ("json:dumps", "'ours' at json:dumps is no Family of that name"),
        ("beit3_bench.backbones.family:Family", "'ours' at .*:Family is no Family of that name"),
        (f"{HERE}:First", "'ours' at .*:First is no Family of that name"),
    ],
)
def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch, place: str, message: str) -> None:
    plug_in(monkeypatch, ("ours", place))
    with pytest.raises(BenchError, match=message) as caught:
        registry.get_family("ours")
    assert "\n" not in str(caught.value)


# ---- FAMILY:SOURCE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("beit3:model.pth", "beit3", "model.pth"),
        ("beit3:/data/a:b.pth", "beit3", "/data/a:b.pth"),
        ("beit3:ViT-B-16/model.pth", "beit3", "ViT-B-16/model.pth"),
        ("model.pth", None, "model.pth"),
        ("/data/model.pth", None, "/data/model.pth"),
        (r"C:\models\m.pth", None, r"C:\models\m.pth"),
        ("data/beit3:m.pth", None, "data/beit3:m.pth"),
        ("https://example.org/m.pth", None, "https://example.org/m.pth"),
        ("beit3:", None, "beit3:"),
    ],
)
def test_a_family_stands_before_the_first_colon(text: str, name: str | None, source: str) -> None:
    family, rest = registry.split_source(text)
    assert (None if family is None else family.name, rest) == (name, source)


def test_a_file_whose_name_has_a_colon_is_a_file_and_anything_else_an_unknown_family(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"run1:best\.pth: unknown family 'run1'; known: beit3"):
        registry.split_source("run1:best.pth")
    (tmp_path / "run1:best.pth").write_bytes(b"x")
    assert registry.locate("run1:best.pth")[1].path == Path("run1:best.pth")


def test_a_named_family_says_where_its_source_is(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(First, "locate", lambda self, text: file.with_name(f"{text}.json"))
    only(monkeypatch, First)
    family, source = registry.locate("first:model")
    assert (family and family.name, source.text, source.path) == ("first", "model", file)


@pytest.mark.parametrize("prefix", ["", "beit3:"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(BenchError, match=rf"^{tmp_path}/no\.pth: checkpoint not found"):
        registry.locate(f"{prefix}{tmp_path}/no.pth")


# ---- the family of a file -----------------------------------------------------------------------------------------------


def test_a_file_is_of_the_family_that_claims_it(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    only(monkeypatch, Reading, First)
    assert registry.find_family(Source(str(file), file)).name == "first"  # though another cannot read it


def test_of_two_families_the_one_that_can_be_asked_counts(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    only(monkeypatch, First, Second)
    source = Source(str(file), file)
    assert registry.find_family(source, Answers).name == "second"
    for ability in (None, Embeds, Captions):
        with pytest.raises(BenchError, match=rf"of the families first and second; say which, as first:{file}$"):
            registry.find_family(source, ability)


def test_a_file_of_no_family_names_those_that_were_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    only(monkeypatch, Named_("one"), Named_("two"))
    path = tmp_path / "strange.pth"
    torch.save({"b.weight": torch.zeros(1), "a.weight": torch.zeros(1)}, path)
    with pytest.raises(
        BenchError, match=r"of no known family \(one, two were tried\); one of its names is 'a\.weight'"
    ):
        registry.find_family(Source(str(path), path))


def Named_(name: str) -> type[Family]:
    """A family that claims nothing."""
    cls = type(name.capitalize(), (Named,), {"name": name, "title": name, "beginning": "nothing"})
    globals()[cls.__name__] = cls
    return cls


def test_a_file_that_cannot_be_read_says_why_and_which_were_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only(monkeypatch, Reading)
    path = tmp_path / "empty.pth"
    path.touch()
    with pytest.raises(BenchError, match=r"empty\.pth: is empty; .*\(families that were tried: reading\)"):
        registry.find_family(Source(str(path), path))


def test_a_source_reads_the_config_beside_it_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.touch()
    assert Source("x", path).config == {}
    for content in ("[1]", "{", "\xff"):
        (tmp_path / "config.json").write_text(content)
        assert Source("x", path).config == {}
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert Source("x", path).config == Source("x", tmp_path).config == {"model_cfg": {}}
    (tmp_path / "config.json").write_text('{"model_type": "a"}')
    assert Source("x", tmp_path).config == {"model_type": "a"}
