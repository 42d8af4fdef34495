"""The hyper-parameters of a fine-tuning: of the model's family, or of the task, and what ``-o`` puts over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beit3_bench.backbones import recipe
from beit3_bench.backbones.family import Asked, Family
from beit3_bench.backbones.recipe import Recipe, is_recipe_key
from beit3_bench.tasks.contract import Task


def asked_of(task_class: type[Task], values: Mapping[str, Any] | None = None) -> Asked:
    """What a task wants of a model, as far as it shows before its data are read.

    values: of its options.
    """
    return Asked(task_class.ability, task_class.name, task_class.images, task_class.uses_text, values=values or {})


def load_recipe(
    family: Family, task_class: type[Task], name: str, overrides: Mapping[str, str] | None = None
) -> Recipe:
    """See `backbones.recipe.load_recipe`."""
    return recipe.load_recipe(family, asked_of(task_class), name, overrides, task_class.recipes())


def split_options(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """``-o`` options of the recipe, and of the task (an unknown one is the task's, which knows the nearest name)."""
    of_recipe = {k: v for k, v in options.items() if is_recipe_key(k)}
    return of_recipe, {k: v for k, v in options.items() if k not in of_recipe}
