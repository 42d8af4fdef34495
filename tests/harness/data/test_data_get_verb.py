"""`data get` as typed, from a mirror that has the tiny world in the authors' archives; what `tasks` and `data verify` say of places."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from faulty_server import FaultyServer, faulty_server, zip_of

from beit3_bench.harness.cli import main
from beit3_bench.tasks import facts
from beit3_bench.tasks.facts import Facts, read_facts
from beit3_bench.tasks.registry import get_task
from beit3_bench.tasks.tinyworld import write_tiny_world


def type_in(*words: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(map(str, words)), env=env)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder / "w", seed=0, size="mini")
    return folder / "w"


def below(folder: Path, *names: str) -> dict[str, bytes]:
    """Files of folders and files, by their paths below ``folder``."""
    paths = [
        path
        for name in names
        for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A mirror. The archives have other bytes than the official ones, whose sizes and checksums are therefore taken away."""
    coco, nocaps, nlvr2, ade = world / "coco", world / "nocaps", world / "nlvr2", world / "ADEChallengeData2016"
    vqa = {Path(name).name: content for name, content in below(coco, "vqa").items()}
    ade_files = {f"ADEChallengeData2016/{name}": data for name, data in below(ade, "images", "annotations").items()}
    with faulty_server() as running:
        running.files = {
            "annotations_trainval2017.zip": zip_of(below(coco, "annotations")),
            "val2017.zip": zip_of(below(coco, "val2017")),
            "train2017.zip": zip_of(below(coco, "train2017")),
            "val2014.zip": zip_of(below(coco, "val2014")),
            "train2014.zip": zip_of(below(coco, "train2014")),
            "caption_datasets.zip": zip_of(
                below(coco, "dataset_coco.json") | below(world / "flickr30k", "dataset_flickr30k.json")
            ),
            "ADEChallengeData2016.zip": zip_of(ade_files),
            **{
                f"v2_{what}_{split}_mscoco.zip": zip_of(vqa)
                for what in ("Questions", "Annotations")
                for split in ("Train", "Val")
            },
            **{Path(name).name: data for name, data in below(nocaps, ".").items()},
            **{Path(name).name: data for name, data in below(nlvr2, "data").items()},
        }

        def unofficial(task: str) -> Facts:
            stated = read_facts(task)
            places = tuple(dataclasses.replace(p, bytes=None, checksum="", files=None) for p in stated.data.places)
            needs = tuple(dataclasses.replace(need, git_blob="") for need in stated.data.needs)
            return dataclasses.replace(stated, data=dataclasses.replace(stated.data, places=places, needs=needs))

        monkeypatch.setattr("beit3_bench.harness.data.plan.read_facts", unofficial)
        monkeypatch.setattr("beit3_bench.harness.data.get.read_facts", unofficial)
        monkeypatch.setenv("BEIT3_BENCH_MIRROR", running.url)
        yield running


@pytest.mark.parametrize(
    ("task", "folder", "split", "parts"),
    [
        ("coco-det", "coco", "val2017", ["val2017", "annotations/instances_val2017.json"]),
        ("coco-det", "coco", "train2017", ["train2017", "annotations/instances_train2017.json"]),
        ("coco-retrieval", "coco", "test", ["val2014", "dataset_coco.json"]),
        ("nocaps", "nocaps", "val", ["val", "nocaps_val_4500_captions.json"]),
        ("ade20k-seg", "ADEChallengeData2016", "val", ["images/validation", "annotations/validation"]),
        (
            "vqav2",
            "coco",
            "minival",
            [
                "val2014",
                "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
                "vqa/v2_mscoco_train2014_annotations.json",
                "vqa/v2_mscoco_val2014_annotations.json",
            ],
        ),
    ],
)
def test_a_split_is_fetched_into_the_tree_that_its_reader_reads(
    server: FaultyServer, world: Path, tmp_path: Path, task: str, folder: str, split: str, parts: list[str]
) -> None:
    done = type_in("data", "get", "--task", task, "--split", split, "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert below(tmp_path, ".") == {f"{folder}/{name}": data for name, data in below(world / folder, *parts).items()}
    assert f"data verify --task {task} --data-root {tmp_path / folder}" in done.stdout
    examples = get_task(task)(tmp_path / folder).read(split).examples
    assert examples
    assert all(Path(image).is_file() for example in examples for image in example.images)
    asked = len(server.asked)
    again = type_in("data", "get", "--task", task, "--split", split, "--output", tmp_path)
    assert (again.exit_code, len(server.asked)) == (0, asked)
    assert "total: 0 B to fetch" in again.stdout


def test_several_tasks_share_what_both_need(server: FaultyServer, world: Path, tmp_path: Path) -> None:
    done = type_in(
        "data", "get", "--task", "coco-retrieval, coco-caption,coco-det", "--output", tmp_path, "--quiet", "--json"
    )
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert {piece["state"] for piece in record["pieces"]} == {"there"}
    assert [p["tasks"] for p in record["pieces"] if p["file"] == "val2014.zip"] == [["coco-retrieval", "coco-caption"]]
    assert len(server.gets("/val2014.zip")) == 1
    assert done.stderr == ""


def test_it_tells_how_far_it_is_unless_it_is_quiet(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = classmethod(lambda cls, quiet: cls("none" if quiet else "lines", 0))
    monkeypatch.setattr("beit3_bench.harness.progress.Reporting.unless", at_once)
    words = ("data", "get", "--task", "coco-det", "--split", "val2017", "--output")
    loud, silent = type_in(*words, tmp_path / "a").stderr, type_in(*words, tmp_path / "b", "--quiet").stderr
    assert "val2017.zip: " in loud
    assert "val2017.zip: unpacking: 1 of " in loud
    assert silent == ""


def test_a_folder_that_is_the_data_set_is_filled_itself(server: FaultyServer, tmp_path: Path) -> None:
    assert type_in("data", "get", "--task", "coco-det", "--output", tmp_path / "coco").exit_code == 0
    assert (tmp_path / "coco" / "val2017").is_dir()
    assert type_in("data", "get", "--task", "coco-det", "--output", tmp_path, "--split", "train2017").exit_code == 0
    assert (tmp_path / "coco" / "train2017").is_dir()


def test_the_total_comes_before_the_first_byte_and_a_dry_run_ends_there(server: FaultyServer, tmp_path: Path) -> None:
    done = type_in("data", "get", "--task", "coco-det", "--output", tmp_path / "new", "--dry-run")
    assert done.exit_code == 0
    size = sum(len(server.files[name]) for name in ("annotations_trainval2017.zip", "val2017.zip"))
    assert f"total: {size / 1000:.1f} kB to fetch; about " in done.stdout
    assert f"{server.url}/val2017.zip" in done.stdout
    assert server.gets() == []
    assert not (tmp_path / "new").exists()


def test_what_the_disk_cannot_hold_is_not_begun(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    done = type_in("data", "get", "--task", "coco-det", "--output", tmp_path)
    assert done.exit_code == 2
    assert "with what comes out of the archives, 1.0 kB are free; free some space" in done.stderr
    assert server.gets() == []


def test_a_total_of_parts_that_are_here_counts_what_is_left(server: FaultyServer, tmp_path: Path) -> None:
    part = tmp_path / "coco" / "downloads" / "val2017.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["val2017.zip"][:5000])
    (part.parent / "val2017.zip.part.version").write_text(f'"1"\n{len(server.files["val2017.zip"])}')
    done = type_in("data", "get", "--task", "coco-det", "--output", tmp_path)
    assert "(5.0 kB here)" in done.stdout
    assert server.gets("/val2017.zip") == ["bytes=5000-"]
    assert done.exit_code == 0


def test_what_has_to_be_asked_for_is_told_step_by_step(server: FaultyServer, world: Path, tmp_path: Path) -> None:
    words = ("data", "get", "--task", "nlvr2", "--split", "dev", "--output", tmp_path)
    done = type_in(*words)
    assert done.exit_code == 2
    assert "https://goo.gl/forms/yS29stWnFWzrDBFH3" in done.stdout
    assert f"save dev_img.zip, to which the answer leads, as {tmp_path}/nlvr2/dev_img.zip" in done.stdout
    assert done.stderr.startswith(f"error: {tmp_path}/nlvr2/dev: handed out by the owners only; take the steps above")
    assert (tmp_path / "nlvr2" / "data" / "dev.json").is_file(), "what can be had was not fetched"
    (tmp_path / "nlvr2" / "dev_img.zip").write_bytes(
        zip_of(below(world / "nlvr2", "dev") or below(world / "nlvr2" / "images", "dev"))
    )
    done = type_in(*words)
    assert done.exit_code == 0, done.stderr
    assert get_task("nlvr2")(tmp_path / "nlvr2").read("dev").examples


def test_annotations_that_differ_from_the_official_ones_are_refused(
    server: FaultyServer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("beit3_bench.harness.data.get.read_facts", read_facts)
    done = type_in("data", "get", "--task", "nlvr2", "--split", "dev", "--output", tmp_path)
    assert done.exit_code == 2
    assert "dev.json: differs from the official file" in done.stderr
    assert below(tmp_path, ".") == {}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "nlvr"], "unknown task 'nlvr'; did you mean 'nlvr2'?"),
        (["--task", "nlvr2", "--split", "tset"], "task nlvr2 has no split 'tset'; did you mean 'test-P'?"),
        (["--task", "coco-det", "--base-url", "ftp://x/y"], "ftp://x/y/annotations_trainval2017.zip: not an address"),
        (
            ["--task", "coco-det", "--base-url", "http://127.0.0.1:9"],
            "127.0.0.1:9/annotations_trainval2017.zip: not reached",
        ),
        (["--task", " , "], "--task names no task"),
        ([], "Missing option '--task'"),
    ],
)
def test_bad_input_is_a_line(server: FaultyServer, tmp_path: Path, words: list[str], line: str) -> None:
    done = type_in("data", "get", *words, "--output", tmp_path)
    assert done.exit_code == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert below(tmp_path, ".") == {}


def test_what_is_not_given_out_does_not_keep_the_rest_from_coming(server: FaultyServer, tmp_path: Path) -> None:
    server.faults = {"annotations_trainval2017.zip": ["403"]}
    words = ("data", "get", "--task", "coco-det", "--output", tmp_path)
    done = type_in(*words)
    assert done.exit_code == 2
    assert "annotations_trainval2017.zip: the server says 403" in done.stderr
    assert (tmp_path / "coco" / "val2017").is_dir()
    assert type_in(*words).exit_code == 0
    server.files.clear()
    done = type_in(*words[:4], "--split", "train2017", "--output", tmp_path / "new")
    assert "says 404" in done.stderr
    assert "and 1 more are not given out" in done.stderr
    done = type_in("data", "get", "--task", "nocaps", "--output", tmp_path / "new")
    assert "nocaps_val_4500_captions.json: the server says 404" in done.stderr
    assert not (tmp_path / "new" / "coco").exists()


def test_a_file_where_the_folder_belongs_is_a_line(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("mine")
    done = type_in("data", "get", "--task", "coco-det", "--output", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert below(tmp_path, ".") == {"coco": b"mine"}


def test_a_task_of_another_package_without_places_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("beit3_bench.harness.data.plan.read_facts", lambda task: Facts())
    done = type_in("data", "get", "--task", "nlvr2", "--output", tmp_path)
    assert done.exit_code == 0
    assert "nlvr2: no place of its data is known" in done.stderr


def test_without_a_network_the_line_comes_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket
    import time

    def unknown(*words: object, **named: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for task in ("ade20k-seg", "coco-det"):
        begun = time.monotonic()
        done = type_in("data", "get", "--task", task, "--output", tmp_path)
        assert time.monotonic() - begun < 5
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "not reached" in done.stderr
        assert "Temporary failure in name resolution" in done.stderr


# ---- tasks and verify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vqav2", "flickr30k", "imagenet-linear", "nocaps"])
def test_tasks_name_says_where_its_data_comes_from(task: str) -> None:
    text = type_in("tasks", task).stdout
    record = json.loads(type_in("tasks", task, "--json").stdout)
    for place in read_facts(task).data.places:
        assert place.url in text
        assert all(step.split(" ")[0] in text for step in place.steps)
        assert place.file in [stated["file"] for stated in record["places"]]
    assert f"beit3-bench data get --task {task} --output DIR" in text


def test_verify_says_where_missing_files_come_from(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    words = ("data", "verify", "--task", "coco-det", "--data-root", tmp_path / "coco", "--split", "val2017")
    done = type_in(*words)
    assert done.exit_code == 2
    assert (
        "to get: annotations/instances_val2017.json: http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
        in done.stdout
    )
    assert "to get: val2017/: http://images.cocodataset.org/zips/val2017.zip" in done.stdout
    assert f"to get: beit3-bench data get --task coco-det --split val2017 --output {tmp_path / 'coco'}" in done.stdout
    assert len(json.loads(type_in(*words, "--json").stdout)["to_get"]) == 3


def test_verify_of_data_that_is_whole_names_no_places(world: Path) -> None:
    done = type_in("data", "verify", "--task", "coco-det", "--data-root", world / "coco")
    assert "to get" not in done.stdout


def test_read_facts_of_tests_is_the_real_one() -> None:
    assert facts.read_facts is read_facts
