"""BEiT-3's recipes by the name of a task."""

from __future__ import annotations

from collections.abc import Mapping

from beit3_bench.backbones import recipe
from beit3_bench.backbones.abilities import Embeds
from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.backbones.family import Asked
from beit3_bench.backbones.recipe import Recipe


def load_recipe(task: str, name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """See `backbones.recipe.load_recipe`; which ability is asked does not matter."""
    return recipe.load_recipe(BEiT3Family(), Asked(Embeds, task), name, overrides)


def recipe_names(task: str) -> tuple[str, ...]:
    return BEiT3Family().recipe_names(task)
