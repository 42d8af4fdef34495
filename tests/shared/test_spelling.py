"""A typo is met with the nearest name, anything else with the names that there are."""

from __future__ import annotations

import pytest

from beit3_bench.spelling import did_you_mean


@pytest.mark.parametrize(
    ("name", "settings", "answer"),
    [
        ("nlvr", {}, "did you mean 'nlvr2'?"),
        ("nlvr", {"otherwise": "see the list"}, "did you mean 'nlvr2'?"),
        ("zzz", {}, "known: nlvr2, vqav2"),
        ("zzz", {"what": "it has"}, "it has: nlvr2, vqav2"),
        ("zzz", {"otherwise": "see the list"}, "see the list"),
    ],
)
def test_the_nearest_name_or_all_of_them(name, settings, answer):
    assert did_you_mean(name, ["nlvr2", "vqav2"], **settings) == answer


def test_nothing_known_is_said():
    assert did_you_mean("x", []) == "known: none"


def test_names_may_come_from_anything_that_is_iterated_once():
    assert did_you_mean("nlvr", iter(["nlvr2"])) == "did you mean 'nlvr2'?"
    assert did_you_mean("x", {"nlvr2": 1}.keys()) == "known: nlvr2"
