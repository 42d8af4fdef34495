"""Verdicts against published values, and ranks that tied rows share."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_cases import metric, result

from beit3_bench.harness.leaderboard.verdict import Standing, judge, ranks, tied
from beit3_bench.results.published.values import PublishedValue

WEIGHT = "beit3_base_patch16_480_vqa"


def reference(printed: str, **changes: str) -> PublishedValue:
    base = {f.name: "" for f in dataclasses.fields(PublishedValue)}
    base |= {"system": "BEiT-3", "checkpoint": WEIGHT, "printed": printed, "resolution": "480x480"}
    return PublishedValue(**{**base, "source_kind": "primary", **changes})


def verdict(value: float, references: list[PublishedValue], ci95: list[float] | None = None, **model: object):
    return judge(result(model={"weight": WEIGHT, "image_size": 480, **model}), metric(value, ci95=ci95), references)


@pytest.mark.parametrize(
    ("value", "ci95", "printed", "kind", "text"),
    [
        (77.654, None, "77.65", "reproduces", "reproduces 77.65"),
        (77.646, [77.0, 78.0], "77.65", "reproduces", "reproduces 77.65"),
        (77.9, [77.6, 78.2], "77.65", "within noise", "within noise of 77.65 (+0.25)"),
        (77.9, [77.8, 78.0], "77.65", "differs", "differs by +0.25 from 77.65"),
        (70.0, None, "77.65", "differs", "differs by -7.65 from 77.65"),
        (85.37, None, "85.4", "reproduces", "reproduces 85.4"),
        (85.34, None, "85.4", "differs", "differs by -0.06 from 85.4"),
        (85.3, [85.2, 85.36], "85.4", "within noise", "within noise of 85.4 (-0.10)"),
    ],
)
def test_a_value_is_judged_at_the_printed_rounding_and_by_its_interval(
    value: float, ci95: list[float] | None, printed: str, kind: str, text: str
) -> None:
    found = verdict(value, [reference(printed)], ci95)
    assert (found.kind, found.text) == (kind, text)
    assert found.difference == pytest.approx(value - float(printed))


def test_fractions_are_compared_as_percent() -> None:
    value = metric(0.854, unit="fraction", ci95=[0.85, 0.858])
    found = judge(result(model={"weight": WEIGHT, "image_size": 480}), value, [reference("85.4")])
    assert (found.kind, found.difference) == ("reproduces", pytest.approx(0.0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"weight": None}, "not a released checkpoint"),
        ({"image_size": 384}, "published at 480x480"),
        ({"allow_missing": ["head.*"]}, "tensors were missing"),
        ({"weight": "beit3_large_patch16_480_vqa"}, ""),
    ],
)
def test_another_checkpoint_resolution_or_incomplete_weights_have_no_published_value(model: dict, reason: str) -> None:
    found = verdict(77.65, [reference("77.65")], **model)
    assert (found.kind, found.difference, found.reference) == ("no published value", None, None)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("protocol", "kind", "reason"),
    [
        ("re-ranked 256", "reproduces", ""),
        ("re-ranked 16", "no published value", "published re-ranked 256, measured re-ranked 16"),
        ("dual encoder", "no published value", "published re-ranked 256, measured dual encoder"),
    ],
)
def test_a_value_of_another_protocol_is_not_judged(protocol: str, kind: str, reason: str) -> None:
    weight = "blip_model_base_retrieval_coco"
    own = reference("81.9", checkpoint=weight, resolution="384x384")
    model = {"weight": weight, "image_size": 384, "protocol": protocol}
    found = judge(result(task="coco-retrieval", model=model), metric(81.9), [own])
    assert (found.kind, found.reason) == (kind, reason)


def test_the_giant_is_never_the_reference() -> None:
    giant = reference("84.19", checkpoint="", variant="giant (ViT-g layout, patch 14)")
    assert verdict(84.19, [giant]).kind == "no published value"


def test_the_source_nearest_to_the_origin_and_with_most_digits_is_the_reference() -> None:
    rerun = reference("143.42", source_kind="third-party measurement")
    coarse, fine = reference("84.4"), reference("84.386")
    assert verdict(84.386, [rerun, coarse, fine]).reference is fine
    third = verdict(143.42, [rerun])
    assert (third.kind, third.text) == ("reproduces", "reproduces 143.42 (third-party measurement)")


def test_rows_that_cannot_be_told_apart_share_a_rank() -> None:
    rows = [Standing(80.0, 1.0), Standing(79.2, 1.0), Standing(75.0, 1.0), None, Standing(79.5, half_unit=0.05)]
    assert ranks(rows) == [1, 1, 4, None, 1]


def test_a_metric_where_less_is_better_is_ranked_the_other_way_round() -> None:
    assert ranks([Standing(3.0), Standing(1.0), Standing(2.0)], higher_is_better=False) == [3, 1, 2]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (Standing(82.0, half_unit=0.05), Standing(82.1, half_unit=0.05), False),
        (Standing(84.4, half_unit=0.05), Standing(84.386, half_unit=0.0005), True),
        (Standing(80.0, 0.3), Standing(80.4, 0.3), True),
        (Standing(80.0, 0.3), Standing(80.5, 0.3), False),
        (Standing(80.0, 0.3), Standing(80.33, half_unit=0.05), True),
    ],
)
def test_ties_follow_interval_and_rounding(a: Standing, b: Standing, same: bool) -> None:
    assert tied(a, b) is tied(b, a) is same


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), max_size=12))
def test_ranks_start_at_one_and_never_punish_the_better_of_equally_sure_rows(rows: list[tuple[float, float]]) -> None:
    found = ranks([Standing(value, 1.0) for value, _ in rows])
    assert not rows or min(found) == 1
    for (a, _), rank_a in zip(rows, found, strict=True):
        for (b, _), rank_b in zip(rows, found, strict=True):
            assert a < b or rank_a <= rank_b


_STANDINGS = st.builds(
    Standing,
    st.sampled_from([0.0, 50.0, 50.05, 50.1, 50.3, 51.0]) | st.floats(0, 100),
    st.sampled_from([0.0, 0.3]) | st.floats(0, 5),
    st.sampled_from([0.0, 0.05]),
)


@given(st.lists(_STANDINGS | st.none(), max_size=30), st.booleans())
def test_a_rank_counts_the_rows_that_are_better_and_not_tied(
    rows: list[Standing | None], higher_is_better: bool
) -> None:
    sign = 1 if higher_is_better else -1
    for row, rank in zip(rows, ranks(rows, higher_is_better), strict=True):
        better = [o for o in rows if o and row and sign * (o.value - row.value) > 0 and not tied(o, row)]
        assert rank == (None if row is None else 1 + len(better))
