"""Where data comes from, as the facts of tasks state it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beit3_bench.errors import BenchError
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.places import ARCHIVES, Place, is_inside
from beit3_bench.tasks.registry import get_task, task_names

RELEASED = [task for task in task_names() if not get_task(task).own_data and task != "ade20k-seg"]
PLACES = [
    pytest.param(task, place, id=f"{task}-{place.file}-{place.splits[0]}")
    for task in RELEASED
    for place in read_facts(task).data.places
]
STATED = {"url": "https://example.org/a.zip"}


@pytest.mark.parametrize("task", RELEASED)
def test_every_split_of_a_built_in_task_has_places(task: str) -> None:
    places = read_facts(task).data.places
    for split in get_task(task).splits:
        targets = [target for place in places if split in place.splits for target in place.members.values()]
        assert any(target.endswith("/") for target in targets), f"no images of {split}"


@pytest.mark.parametrize("task", RELEASED)
def test_the_files_that_a_split_needs_come_from_some_place(task: str) -> None:
    data = read_facts(task).data
    for need in data.needs:
        for split in need.splits:
            targets = [t.rstrip("/") for place in data.places if split in place.splits for t in place.members.values()]
            assert any(target == need.path or Path(target).name == need.path for target in targets), (need, split)


@pytest.mark.parametrize(("task", "place"), PLACES)
def test_a_place_says_what_a_reader_must_know(task: str, place: Place) -> None:
    assert bool(place.url) != bool(place.steps)
    assert place.licence
    assert place.members
    assert place.of == ""
    assert set(place.splits) <= {*get_task(task).splits, "train"}
    assert not place.listed_in or place.url.endswith("/")
    assert all("{root}" in " ".join(place.steps) for _ in place.steps)
    if place.url and place.is_archive:
        assert place.checksum


def test_the_same_file_has_the_same_address_and_checksum_in_every_task() -> None:
    stated: dict[str, set[tuple[object, ...]]] = {}
    for task in RELEASED:
        for place in read_facts(task).data.places:
            stated.setdefault(place.file, set()).add((place.url, place.bytes, place.checksum, place.licence))
    several = {file: values for file, values in stated.items() if len(values) > 1}
    assert not several
    assert len(stated) > 20


def test_what_another_task_states_is_taken_over_and_what_is_stated_here_wins() -> None:
    theirs = next(p for p in read_facts("vqav2").data.places if p.file == "val2014.zip")
    ours = next(p for p in read_facts("coco-caption").data.places if p.file == "val2014.zip")
    assert (ours.url, ours.bytes, ours.checksum, ours.files) == (theirs.url, theirs.bytes, theirs.checksum, 40_504)
    assert ours.splits == ("test", "val", "train")
    assert (theirs.folders, ours.folders) == ((".", "coco", "images"), (".",))


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        ({"url": "ftp://example.org/a.zip"}, "not an address"),
        ({"url": "example.org/a.zip"}, "not an address"),
        ({}, "neither url nor steps"),
        (STATED | {"checksum": "abc"}, "expected 64 hex digits"),
        (STATED | {"file": "a/b.zip"}, "no plain name"),
        (STATED | {"file": ""}, "no plain name"),
        (STATED | {"members": {"a": "../b"}}, "does not stay below"),
        (STATED | {"members": {"a": "/b"}}, "does not stay below"),
        (STATED | {"folders": ("..",)}, "does not stay below"),
        (STATED | {"listed_in": "/etc/passwd"}, "does not stay below"),
    ],
)
def test_a_place_that_cannot_be_is_refused(stated: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Place(**({"file": "a.zip"} | stated))


def test_facts_that_refer_to_nothing_are_told_with_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beit3_bench.tasks import facts

    file = tmp_path / "nlvr2.toml"
    monkeypatch.setattr(facts, "facts_file", lambda task: file)
    for text, match in (
        ('[[data.places]]\nfile = "a.zip"\nof = "vqav2"', "'a.zip' is of 'vqav2', which does not say where it is"),
        ('[[data.places]]\nfile = "a.zip"\nurl = "x"', "data: places 1: a.zip: x: not an address"),
        ('[[data.places]]\nfile = "a.zip"\nurll = "x"', "did you mean 'url'"),
    ):
        file.write_text(text)
        facts._facts_at.cache_clear()
        with pytest.raises(BenchError, match=match) as caught:
            facts.read_facts("nlvr2")
        assert str(file) in str(caught.value)
    facts._facts_at.cache_clear()


@pytest.mark.parametrize(
    ("path", "inside"), [("a/b", True), ("a", True), ("a/../b", False), ("/a", False), ("a\\b", False)]
)
def test_paths_stay_below_a_folder(path: str, inside: bool) -> None:
    assert is_inside(path) is inside


def test_addresses_in_a_mirror_are_names_of_files_and_folders_of_pictures() -> None:
    places = {place.file: place for place in read_facts("nocaps").data.places}
    assert places["nocaps_val_4500_captions.json"].address("http://m/") == "http://m/nocaps_val_4500_captions.json"
    assert places["nocaps-val-images"].address("http://m") == "http://m/nocaps/val/"
    assert places["nocaps-val-images"].address() == "https://s3.amazonaws.com/nocaps/val/"


def test_a_folder_counts_where_it_holds_what_is_stated(tmp_path: Path) -> None:
    place = Place(
        "a.zip", url="https://e.org/a.zip", members={"v/": "v/", "l.json": "l.json"}, files=2, folders=("", "images")
    )
    assert place.missing(tmp_path) == ["v/", "l.json"]
    (tmp_path / "l.json").touch()
    (tmp_path / "images" / "v").mkdir(parents=True)
    (tmp_path / "images" / "v" / "1").touch()
    assert place.missing(tmp_path) == ["v/"]
    (tmp_path / "images" / "v" / "2").touch()
    assert place.missing(tmp_path) == []
    assert all(Place(f"x{suffix}", url="https://e.org/x").is_archive for suffix in ARCHIVES)
