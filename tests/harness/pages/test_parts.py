"""What pages are made of: thumbnails, outlines, charts, bars, the index."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from html_page import Parsed
from PIL import Image, ImageDraw

from beit3_bench.harness.pages.breakdowns import panel_of, panels_of_metrics
from beit3_bench.harness.pages.charts import chart, thinned
from beit3_bench.harness.pages.index import index_page, pages_in, write_index
from beit3_bench.harness.pages.outlines import outline_path
from beit3_bench.harness.pages.rendering import anchor
from beit3_bench.harness.pages.thumbnails import overlay_uri, thumbnails
from beit3_bench.tasks.display.breakdowns import by_kind, confusions, reliability, words_kind, words_order


def picture(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def noise(path: Path, size: tuple[int, int], seed: int = 0) -> str:
    """A picture that no format makes small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return str(path)


# ---- thumbnails -----------------------------------------------------------------------------------------------------------


def test_48_pictures_of_noise_stay_within_their_budget(tmp_path):
    paths = [noise(tmp_path / f"{n}.jpg", (640, 480), n) for n in range(12)]
    budget = 12 * 52_000
    made = thumbnails([(path, 400) for path in paths], budget)
    assert sum(len(one.uri) for one in made.values()) <= budget
    assert all(one.width / one.height == pytest.approx(4 / 3, abs=0.02) for one in made.values())


def test_a_thumbnail_is_upright_as_large_as_asked_and_made_once(tmp_path):
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (0, 0, 150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half belongs on top
    image.save(tmp_path / "turned.jpg", exif=exif)
    key = (str(tmp_path / "turned.jpg"), 60)
    made = thumbnails([key, key], 10**6)
    assert list(made) == [key]
    small = picture(made[key].uri).convert("RGB")
    assert small.size == (20, 60)
    assert small.getpixel((10, 5))[0] > 200 > small.getpixel((10, 55))[0]


def test_a_picture_that_cannot_be_read_says_why_and_stops_nothing(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    keys = [(str(tmp_path / "text.jpg"), 60), (str(tmp_path / "gone.jpg"), 60)]
    made = thumbnails(keys, 10**6)
    assert [one.uri for one in made.values()] == ["", ""]
    assert "does not decode" in made[keys[0]].problem
    assert "not found" in made[keys[1]].problem


def test_a_label_map_is_transparent_where_nothing_is_said():
    drawn = picture(overlay_uri(np.array([[0, -1], [7, 7]]), {0: (1, 2, 3), 7: (200, 100, 0)}))
    assert [drawn.getpixel(place) for place in ((0, 0), (0, 1))] == [(1, 2, 3, 255), (200, 100, 0, 255)]
    assert drawn.getpixel((1, 0))[3] == 0


# ---- outlines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(90, 60), (640, 480), (50, 700)])
def test_an_outline_covers_its_mask(size):
    from pycocotools import mask

    width, height = size
    y, x = np.mgrid[:height, :width]
    ring = ((x - width / 2) / (width / 2.2)) ** 2 + ((y - height / 2) / (height / 2.2)) ** 2
    bitmap = (ring < 1) & (ring > 0.25)
    path = outline_path(mask.encode(np.asfortranarray(bitmap.astype(np.uint8))))
    lines = [[tuple(map(float, p.split())) for p in part.strip("MZ").split("L")] for part in path.split("Z") if part]
    assert len(lines) == 2  # the hole has an edge of its own
    covered = np.zeros((height, width), dtype=bool)
    for line in lines:
        canvas = Image.new("1", size)
        ImageDraw.Draw(canvas).polygon(line, fill=1)
        covered ^= np.asarray(canvas)
    assert (covered & bitmap).sum() / (covered | bitmap).sum() > 0.85
    assert len(path) < 2_500


def test_the_outline_of_nothing_is_nothing():
    from pycocotools import mask

    assert outline_path(mask.encode(np.zeros((20, 30), dtype=np.uint8, order="F"))) == ""


# ---- numbers by kind --------------------------------------------------------------------------------------------------------


def test_kinds_are_means_with_intervals_that_hold_them():
    ids = [str(n) for n in range(60)]
    values = {i: float(int(i) % 3 == 0) for i in ids}
    kinds = {i: "even" if int(i) % 2 == 0 else "odd" for i in ids}
    (breakdown,) = by_kind("t", "accuracy", "fraction", values, kinds, {i: i for i in ids})
    bars = {bar.kind: bar for bar in panel_of(breakdown).bars}
    assert {kind: bar.count for kind, bar in bars.items()} == {"even": 30, "odd": 30}
    for kind, bar in bars.items():
        assert bar.share == pytest.approx(100 * np.mean([values[i] for i in ids if kinds[i] == kind]))
        assert bar.low is not None
        assert bar.high is not None
        assert bar.low < bar.share < bar.high


def test_of_many_kinds_the_lowest_are_shown_and_one_kind_is_none():
    ids = [str(n) for n in range(50)]
    kinds = {i: f"k{i}" for i in ids}
    (breakdown,) = by_kind("t", "m", "fraction", {i: int(i) / 50 for i in ids}, kinds, {i: i for i in ids}, lowest=3)
    assert list(breakdown.counts) == ["k0", "k1", "k2"]
    assert "3 lowest of 50" in breakdown.note
    assert (
        by_kind("t", "m", "fraction", dict.fromkeys(ids, 1.0), dict.fromkeys(ids, "one"), dict.fromkeys(ids, "c")) == []
    )


def test_the_commonest_confusions_are_shares_of_the_right_class():
    pairs = [("c", "cat", "dog")] * 3 + [("c", "cat", "cat")] + [("d", "dog", "cat"), ("d", "dog", "dog")]
    (breakdown,) = confusions(pairs)
    values = breakdown.formula(breakdown.table.sums())
    assert {k: float(v) for k, v in values.items()} == {"cat → dog": 0.75, "dog → cat": 0.5}
    assert confusions([("c", "cat", "cat")]) == []


def test_a_calibrated_model_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0, 1, 4000)
    (breakdown,) = reliability(
        sure.tolist(), (rng.uniform(0, 1, 4000) < sure).astype(float).tolist(), [str(n) for n in range(4000)]
    )
    panel = panel_of(breakdown)
    assert panel.form == "reliability"
    assert len(panel.bars) == 10
    assert all(abs(bar.share - (bar.expected or 0)) < 8 for bar in panel.bars)
    assert float(breakdown.note.split("error ")[1].split(" ")[0]) < 3


def test_lengths_are_named_in_order():
    edges = (4, 5, 9)
    assert words_order(edges) == ["1 to 4 words", "5 words", "6 to 9 words", "more than 9 words"]
    assert [words_kind(n, edges) for n in (1, 4, 5, 6, 9, 10)] == [words_order(edges)[k] for k in (0, 0, 1, 2, 2, 3)]


def test_metrics_of_one_prefix_are_a_panel_with_the_numbers_of_the_result():
    def metric(value):
        return {
            "value": value,
            "unit": "percent",
            "ci95": [value - 1, value + 1],
            "headline": False,
            "higher_is_better": True,
            "decimals": 2,
        }

    metrics = {
        "acc": metric(50.0),
        "acc/yes": metric(60.0),
        "acc/no": metric(40.0),
        "acc/type/a": metric(1.0),
        "acc/type/b": metric(2.0),
    }
    panels = panels_of_metrics(metrics, {"acc/type/": "By type", "acc/": "By answer"})
    assert [(p.title, [(b.kind, b.text, b.interval) for b in p.bars]) for p in panels] == [
        ("By type", [("a", "1.00", "[0.00, 2.00]"), ("b", "2.00", "[1.00, 3.00]")]),
        ("By answer", [("yes", "60.00", "[59.00, 61.00]"), ("no", "40.00", "[39.00, 41.00]")]),
    ]


# ---- charts -----------------------------------------------------------------------------------------------------------------


def test_a_single_value_is_a_dot_with_its_number_within_the_steps_of_the_training():
    drawn = chart("validation", [("top1", [300.0], [51.25])], [0.0, 600.0])
    assert drawn is not None
    (line,) = drawn.lines
    assert (line.path, line.last) == ("", "51.25")
    assert line.dots[0].labelled
    assert line.dots[0].x == pytest.approx(drawn.width / 2)
    assert chart("nothing", [("loss", [1.0], [math.nan])]) is None


def test_long_lines_keep_their_peaks():
    points = [(float(x), math.sin(x)) for x in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 700
    assert (54_321.0, 99.0) in kept
    assert kept == sorted(kept)


# ---- the index ----------------------------------------------------------------------------------------------------------------


def page(folder: Path, name: str, facts: object) -> None:
    content = json.dumps(facts).replace('"', "&quot;").replace("<", "&lt;")
    (folder / name).write_text(f'<!doctype html><head><meta name="beit3-bench" content="{content}"></head>')


def test_an_index_lists_pages_of_ours_alone_and_their_names_are_text(tmp_path):
    run = {
        "kind": "run",
        "name": "<script>x</script>",
        "title": "NLVR2",
        "split": "dev",
        "model": "m",
        "checkpoint": "c",
    }
    run |= {"metric": "accuracy", "value": "75.0", "interval": "", "data": "", "time": ""}
    page(tmp_path, "a b#?.html", run)
    page(tmp_path, "t.html", {"kind": "training", "name": "t", "title": "NLVR2"})
    page(tmp_path, "other.html", {"kind": 3})
    (tmp_path / "foreign.html").write_text("<p>mine</p>")
    (tmp_path / "bytes.html").write_bytes(b"\xff\xfe\0")
    (tmp_path / "link.html").symlink_to(tmp_path / "t.html")
    assert [one.file for one in pages_in(tmp_path)] == ["a b#?.html", "t.html"]
    text = write_index(tmp_path).read_text()
    parsed = Parsed(text)
    assert {a["href"] for a in parsed.all("a")} == {"a%20b%23%3F.html", "t.html"}
    assert len(parsed.all("script")) == 1
    write_index(tmp_path)  # an index of ours is written anew
    assert "No pages here yet" in index_page([])


def test_no_two_ids_share_a_permalink():
    names = ["a b", "a%20b", "a/b", "ä", "\ud800", "", "a"]
    assert len({anchor(name) for name in names}) == len(names)
    assert all(character.isalnum() or character in "%-._~" for name in names for character in anchor(name))
