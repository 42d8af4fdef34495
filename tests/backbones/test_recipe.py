"""Hyper-parameters as data: what a section may hold, what it inherits, and what a resumed training may change."""

from __future__ import annotations

import dataclasses

import pytest

from beit3_bench.backbones import recipe
from beit3_bench.backbones.recipe import Recipe, is_recipe_key, make_recipe, resolve_section
from beit3_bench.errors import BenchError


def test_every_field_with_a_number_has_a_range():
    numeric = {f.name for f in dataclasses.fields(Recipe) if f.type in ("int", "float")}
    assert numeric == set(recipe._RANGES)


def test_a_section_of_the_wrong_type_is_named():
    with pytest.raises(BenchError, match="auto_augment: 3 is not a text"):
        make_recipe({"auto_augment": 3}, "x")


def test_changed_names_what_decides_and_not_how_it_is_carried_out():
    now = Recipe(lr=3e-5)
    stored = now.to_dict()
    assert now.changed(stored) == {}
    other = dataclasses.replace(now, lr=1e-3, micro_batch=4, save_steps=10, checkpoint_activations=True)
    assert other.changed(stored) == {"lr": (3e-5, 1e-3)}


def test_recipe_keys_are_told_from_task_options():
    assert is_recipe_key("layer-decay")
    assert not is_recipe_key("templates")


def test_a_section_inherits_values_and_options():
    sections = {
        "base": {"lr": 1e-3, "epochs": 2, "options": {"head": "a", "scale": "1"}},
        "large": {"inherits": "base", "lr": 1e-4, "options": {"head": "b"}},
        "large-long": {"inherits": "large", "epochs": 9},
    }
    found = resolve_section(sections, "large-long", "x.toml")
    assert found == {"lr": 1e-4, "epochs": 9, "options": {"head": "b", "scale": "1"}}
    assert resolve_section(sections, "base", "x.toml") == sections["base"]


@pytest.mark.parametrize(
    "sections", [{"a": {"inherits": "b"}}, {"a": {"inherits": "a"}}, {"a": {"inherits": "c"}, "c": {"inherits": "a"}}]
)
def test_a_section_that_inherits_from_nothing_or_itself_is_named(sections):
    with pytest.raises(BenchError, match=r"x\.toml: section [ac] inherits from '[abc]', which is not another section"):
        resolve_section(sections, "a", "x.toml")
