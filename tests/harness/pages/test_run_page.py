"""The page of a run: whole and self-contained for every task, the same numbers as the result, hostile names as text."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from html_page import Parsed
from native import ALL_ROOTS
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.pages.breakdowns import panel_of
from beit3_bench.harness.pages.choosing import choose
from beit3_bench.harness.pages.opened import open_run
from beit3_bench.harness.pages.run import run_page
from beit3_bench.tasks.display import Display, Samples


def show(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["show", *map(str, args)])
    return done.exit_code, done.stdout, done.stderr


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def told_wrong(*args: object) -> str:
    """The one line of a command that is refused."""
    code, out, error = show(*args)
    assert (code, out) == (2, "")
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.mark.parametrize("task", ALL_ROOTS)
def test_a_page_of_every_task_nests_loads_nothing_and_says_what_pictures_are(task, runs):
    made = run_page(runs(task), n=12)
    page = Parsed(made.html)
    assert made.warnings == []
    assert len(page.all("article", class_="card")) == made.cards > 5
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for attrs in page.all("a")}
    assert {f"#{attrs['id']}" for attrs in page.all("article")} <= links
    assert all((attrs["src"] or "").startswith("data:image/") for attrs in page.all("img"))
    assert all(attrs["alt"] for attrs in page.all("img"))
    loads = [attrs.get(key) for tag, attrs in page.tags for key in ("src", "href") if tag != "a" and attrs.get(key)]
    assert all(load.startswith("data:") for load in loads)
    assert page.all("meta", name="viewport")
    headline = next(
        m for m in json.loads((runs(task) / "result.json").read_text())["metrics"].values() if m["headline"]
    )
    value = headline["value"] * (100 if headline["unit"] == "fraction" else 1)
    assert f"{value:.{headline['decimals']}f}" in page.text


@pytest.mark.parametrize(
    "task", [t for t in ALL_ROOTS if t not in ("ade20k-seg", "coco-det", "coco-retrieval", "flickr30k")]
)
def test_means_over_kinds_are_the_headline(task, runs):
    run = open_run(runs(task))
    headline = next(m["value"] for m in run.result["metrics"].values() if m["headline"])
    assert np.mean(list(run.samples.values.values())) == pytest.approx(headline)
    whole = [b for b in run.display.breakdowns() if b.title.startswith("By ") and not b.note]
    assert whole or task in ("nocaps",)
    for breakdown in whole:
        values = breakdown.formula(breakdown.table.sums())
        mean = sum(values[kind] * count for kind, count in breakdown.counts.items()) / sum(breakdown.counts.values())
        assert float(mean) == pytest.approx(headline)


def test_the_mean_of_queries_is_the_mean_recall(runs):
    run = open_run(runs("flickr30k"))
    means = [np.mean([run.samples.values[i] for i in ids]) for ids in run.display.sections().values()]
    assert np.mean(means) == pytest.approx(run.result["metrics"]["mean_recall"]["value"])


def test_categories_average_to_the_ap_of_the_result(runs):
    run = open_run(runs("coco-det"))
    breakdown = run.display.breakdowns()[0]
    values = breakdown.formula(breakdown.table.sums())
    assert np.mean([values[kind] for kind in breakdown.counts]) == pytest.approx(
        run.result["metrics"]["bbox/AP"]["value"]
    )
    bars = panel_of(breakdown).bars
    assert all(bar.low is not None and bar.low <= bar.share <= bar.high for bar in bars)


def test_a_query_is_ranked_as_the_metric_ranks_it(runs):
    run = open_run(runs("coco-retrieval"))
    ids = run.samples.ids
    ranks = {name: -rank for name, rank in run.display.finer(ids).items()}
    for direction in ("TR", "IR"):
        for k in (1, 5, 10):
            hits = run.display.scores[f"{direction}@{k}"]
            assert hits == {name: 100.0 * (ranks[name] <= k) for name in hits}


# ---- which samples ------------------------------------------------------------------------------------------------------


class Some(Display):
    """Samples without a task."""

    def __init__(self, sections: dict[str, list[str]], finer: dict[str, float] | None = None):
        self._sections, self._finer = sections, finer or {}

    def sections(self):
        return self._sections

    def finer(self, ids):
        return {name: self._finer[name] for name in ids if name in self._finer}


IDS = [f"s{n}" for n in range(40)]
VALUES = {name: float(n // 10) for n, name in enumerate(IDS)}


def ids_of(sort: str | None, n: int = 10, **more: object) -> list[str]:
    samples = more.pop("samples", Samples(tuple(IDS), "accuracy", VALUES, {name: n / 40 for n, name in enumerate(IDS)}))
    return [one.id for one in choose(more.pop("display", Some({"": IDS})), samples, n, sort, **more)]


def test_the_worst_the_best_and_the_most_confident_errors_come_first():
    assert {VALUES[name] for name in ids_of("worst")} == {0.0}
    assert {VALUES[name] for name in ids_of("best")} == {3.0}
    assert ids_of("confident-errors", 3, top=3.0) == ["s29", "s28", "s27"]
    assert ids_of("worst") != ids_of("worst", seed=1)
    assert ids_of("worst") == ids_of("worst")


def test_samples_of_one_score_are_told_apart_by_what_is_finer():
    display = Some({"": IDS}, {name: float(-n) for n, name in enumerate(IDS)})
    assert ids_of("worst", 2, display=display) == ["s9", "s8"]
    assert ids_of("best", 2, display=display) == ["s30", "s31"]


def test_flips_are_the_largest_changes():
    against = Samples(tuple(IDS), "accuracy", {**VALUES, "s3": 9.0, "s30": 0.0})
    assert ids_of("flips", 10, against=against) == ["s3", "s30"]
    assert ids_of(None, 10, against=against) == ["s3", "s30"]


def test_sections_share_the_page_and_no_sample_comes_twice():
    chosen = choose(Some({"a": IDS[:20], "b": IDS[20:]}), Samples(tuple(IDS), "m", VALUES), 12)
    assert [sum(one.section == title for one in chosen) for title in "ab"] == [6, 6]
    assert len({one.id for one in chosen}) == 12
    assert [one.why for one in chosen[:6]] == ["worst", "worst", "best", "best", "random", "random"]
    few = choose(Some({"": IDS[:5]}), Samples(tuple(IDS[:5]), "m", VALUES), 48)
    assert sorted(one.id for one in few) == sorted(IDS[:5])


@pytest.mark.parametrize(
    ("sort", "samples", "words"),
    [
        ("flips", Samples(tuple(IDS), "m", VALUES), "--against"),
        ("worst", Samples(tuple(IDS)), "--sort random"),
        ("confident-errors", Samples(tuple(IDS), "m", VALUES), "no score of the answer"),
    ],
)
def test_a_sort_without_what_it_needs_is_refused(sort, samples, words):
    with pytest.raises(BenchError, match=words):
        ids_of(sort, samples=samples)


# ---- another run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vqav2", "coco-det", "flickr30k"])
def test_two_runs_stand_beside_each_other_with_what_flipped(task, runs):
    made = run_page(runs(task), against=runs(task, "b"), n=6)
    page = Parsed(made.html)
    assert "A against B" in page.text
    cards = page.all("article")
    assert 0 < len(cards) <= 6
    assert all(card["data-why"] == "flips" and float(card["data-change"] or 0) != 0 for card in cards)
    assert page.text.count("Run A") == page.text.count("Run B") == len(cards)


def test_runs_over_other_data_are_refused(runs):
    assert "cannot be compared in pairs" in told_wrong(runs("vqav2"), "--against", runs("nlvr2"))


# ---- bad input ----------------------------------------------------------------------------------------------------------


def edited(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_a_run_whose_data_moved_says_where_it_looks_and_data_root_mends_it(runs, world, tmp_path):
    run = copy_of(runs("nlvr2"), tmp_path / "run")
    edited(run / "config.json", data_root=str(tmp_path / "gone"))
    line = told_wrong(run)
    assert str(tmp_path / "gone") in line
    assert "--data-root" in line
    code, out, _ = show(run, "--data-root", world / "nlvr2", "--json")
    assert code == 0
    assert json.loads(out)["warnings"] == []


def test_pictures_that_are_not_there_are_told_and_the_page_is_made(runs, world, tmp_path):
    moved = tmp_path / "coco"
    shutil.copytree(world / "coco", moved)
    for path in (moved / "val2014").glob("*.jpg"):
        path.unlink()
    made = run_page(runs("vqav2"), data_root=moved, n=4)
    assert any("cannot be shown" in line and str(moved) in line and "--data-root" in line for line in made.warnings)
    assert Parsed(made.html).all("div", class_="absent")


def test_a_picture_that_is_not_the_one_that_was_scored_is_marked(runs, world, tmp_path):
    root = tmp_path / "imagenet"
    shutil.copytree(world / "imagenet", root)
    run = open_run(runs("imagenet-linear"), root)
    name = run.samples.ids[0]
    path = Path(run.display.examples[name].images[0])
    size = path.stat().st_size
    Image.new("RGB", (8, 8), "red").save(path, "JPEG")
    assert run.changed_images([name]) == {name: {str(path)}}
    made = run_page(runs("imagenet-linear"), data_root=root, n=100)
    assert len(Parsed(made.html).all("div", class_="changed")) == 1
    assert any("no longer the files that were scored" in line for line in made.warnings)
    assert size == path.stat().st_size or any("is not what this run saw" in line for line in made.warnings)


def test_a_run_without_rows_or_result_or_data_of_its_own_is_one_line(runs, world, tmp_path):
    empty = copy_of(runs("nlvr2"), tmp_path / "empty")
    for shard in (empty / "rows").iterdir():
        shard.write_bytes(b"")
    assert "holds no rows" in told_wrong(empty)
    unfinished = copy_of(runs("nlvr2"), tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    assert "not finished" in told_wrong(unfinished)
    bare = tmp_path / "bare"
    bare.mkdir()
    result = json.loads((runs("nlvr2") / "result.json").read_text())
    (bare / "result.json").write_text(
        json.dumps({**result, "status": "not installed", "metrics": {}, "notes": ["install it"]})
    )
    assert "not installed: install it" in told_wrong(bare)
    assert "no such folder" in told_wrong(tmp_path / "nothing")
    assert "not a run folder" in told_wrong(tmp_path)
    other = copy_of(runs("nlvr2"), tmp_path / "other")
    assert "none of its" in told_wrong(other, "--data-root", other_nlvr2(world, tmp_path))


def other_nlvr2(world: Path, folder: Path) -> Path:
    """The same pictures under other identifiers."""
    root = folder / "nlvr2"
    shutil.copytree(world / "nlvr2", root)
    path = root / "data" / "test1.json"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        parts = record["identifier"].split("-")
        record["identifier"] = "-".join([parts[0], str(int(parts[1]) + 7000), *parts[2:]])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def test_a_run_of_somebody_else_opens_nothing_that_is_not_named(runs, world, tmp_path, monkeypatch):
    run = copy_of(runs("nlvr2"), tmp_path / "run")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(run).st_uid + 1)
    assert "may be somebody else's" in told_wrong(run)
    assert show(run, "--data-root", world / "nlvr2", "--n", 3)[0] == 0


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e\"'&{{ 7 }}"


def test_hostile_names_and_texts_are_text(runs, world, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(world / "coco", root)
    path = root / "dataset_coco.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        for sentence in image["sentences"]:
            sentence["raw"] = EVIL
    path.write_text(json.dumps(content))
    run = copy_of(runs("coco-caption"), tmp_path / "<b>run")
    edited(run / "result.json", notes=[EVIL], split="test")
    made = run_page(run, data_root=root, n=6)
    page = Parsed(made.html)
    assert len(page.all("script")) == 1
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert not {"\x1b", "\u202e"} & set(made.html)
    assert any("<script>alert(1)</script>" in text and "\\x1b[2J" in text for text in page.text)
    assert any("is not what this run saw" in line for line in made.warnings)


def test_the_page_of_a_task_that_declares_nothing_shows_its_rows(tmp_path, monkeypatch):
    from toy_task import ToyTask, write_toy_data

    task = ToyTask(write_toy_data(tmp_path / "toy"))
    split = task.read(task.default_split)
    rows = {e.id: {"id": e.id, "label": "<i>positive</i>", "vector": np.zeros(3)} for e in split.examples}
    display = task.display(rows, split, {"accuracy": {e.id: 1.0 for e in split.examples}})
    shown = display.show(display.samples().ids[:1])[0]
    assert {line.name: line.text for line in shown.lines}["vector"] == "array float64 3"
    assert display.samples().values[shown.id] == 1.0


# ---- files --------------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_an_index_and_json(runs, tmp_path):
    code, out, error = show(runs("nlvr2"), runs("vqav2"), "--output", tmp_path / "pages", "--n", 4, "--json")
    assert (code, error) == (0, "")
    told = json.loads(out)
    assert [one["samples"] for one in told] == [4, 4]
    index = Parsed((tmp_path / "pages" / "index.html").read_text())
    assert {a["href"] for a in index.all("a")} == {Path(one["page"]).name for one in told}
    code, out, _ = show(runs("nlvr2"), "--n", 4)
    assert code == 0
    assert out.startswith(str(runs("nlvr2") / "page.html"))


def test_of_several_folders_those_without_a_page_are_told_and_the_others_get_theirs(runs, tmp_path):
    code, out, error = show(runs("nlvr2"), tmp_path / "gone", "--output", tmp_path / "pages", "--n", 2)
    assert code == 2
    assert len(out.splitlines()) == 1
    assert [line.split(":")[0] for line in error.splitlines()] == ["error", "error"]
    assert "no such folder" in error
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["index.html", "nlvr2-a.html"]


def test_only_pages_of_ours_are_replaced_and_no_link_is_followed(runs, tmp_path):
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>mine</p>")
    assert "did not make" in told_wrong(runs("nlvr2"), "--output", foreign)
    assert foreign.read_text() == "<p>mine</p>"
    link = tmp_path / "link.html"
    link.symlink_to(foreign)
    assert "link" in told_wrong(runs("nlvr2"), "--output", link)
    assert foreign.read_text() == "<p>mine</p>"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--image", "3", "--against", "B"), "--against goes with the page of a run"),
        (("B", "--against", "C"), "leave out the others"),
        (("B", "--output", "x.html"), "one file for 2 pages"),
    ],
)
def test_options_that_do_not_go_together_are_refused(runs, args, words):
    assert words in told_wrong(runs("nlvr2"), *args)
